"""This file holds the threads that share the work of kernels, and the loop that runs a list of calls on them.

A call is cut into chunks of its tasks, and a thread that is free claims the next chunk. Chunks are in lanes, one after
another in memory, and a thread stays in its lane until that is empty: what follows its chunk has been asked for, by the
product or the processor. Every thread walks the same list; where results are needed, it waits until all chunks before
are done. The calling thread takes part and waits for chunks, never for threads: one that sleeps, or that the system has
put aside, delays nothing but the chunk in its hands.

Threads that find nothing to do look for a millisecond or two, since the next token follows soon, and then sleep. So a
call costs some hundred nanoseconds on threads that are awake, where an empty parallel loop costs OpenMP 2 to 6
microseconds and Numba's own pool 100 to 300.
"""

import atexit
import ctypes
import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba.runtime import intrinsics
from nanochat.backends.numba.runtime.compilation import kernel

__all__ = ["Call", "PackedCall", "Program", "run", "run_program"]

_LOG = logging.getLogger(__name__)

# Words of `_control`, each on a cache line of its own where threads look for changes.
_EPOCH, _TABLE, _COUNT, _MEMBERS, _STOP, _YIELD, _ASLEEP = 0, 8, 9, 10, 11, 12, 16
_LINE = 8
# Words of a call in `_claims`. Those of lanes come first, each the epoch, in the upper half, and the lane's next chunk.
_DONE, _CHUNKS, _JOIN, _LANES = 4, 5, 6, 7
# Words of a call in a program's table.
_ENTRY, _BLOCK, _TASKS, _UNLESS = 0, 1, 2, 5

_EPOCHS = 2**31 - 1
_MOST_CALLS = 4096
_MOST_THREADS = 256
# More would not fit a call's line. With a lane each, two threads of a Xeon decode 1.08 times as fast from memory.
_MOST_LANES = 4
# Nanoseconds: the least work worth a chunk, and how long an idle thread looks for work.
_CHUNK, _PATIENCE = 4_000, 2_000_000
# Pauses before a waiting thread offers its core to others.
_IMPATIENT = 2_000


@dataclass(frozen=True, eq=False)
class Call:
    """A kernel ``f(*arguments, first, last)`` for all of its tasks."""

    # From `compilation.kernel` and its likes.
    kernel: Callable[..., object]
    # Arrays in C order, int and float. A kernel has one signature, that of its first call.
    arguments: tuple[object, ...]
    # Independent parts of the work.
    tasks: int
    # About what all of it takes one thread.
    nanoseconds: float
    # Whether all calls so far must be done before the next begins.
    join: bool = True
    # About what is added for each position that the longest row of the step has.
    nanoseconds_per_position: float = 0.0
    # An int64 number: the call is not run in a list where this is not 0.
    unless: NDArray[np.int64] | None = None


@dataclass(frozen=True, eq=False)
class PackedCall:
    """A call whose arguments are written down as kernels read them, so that only what `alive` holds is kept for it."""

    call: Call
    kinds: intrinsics.Signature
    block: NDArray[np.int64]
    alive: tuple[object, ...]

    @classmethod
    def of(cls, call: Call, *, is_lent: Callable[[object], bool] = lambda _: False) -> "PackedCall":
        """Pack a call; arguments that are lent are kept alive by somebody else."""
        kinds = intrinsics.signature(call.arguments)
        block = intrinsics.pack(call.arguments, kinds)
        alive = (call.unless, *(each for each in call.arguments if not is_lent(each)))
        return cls(replace(call, arguments=()), kinds, block, alive)


class Program:
    """Calls that can be run in this order again and again, on the same arrays, shared by so many threads."""

    def __init__(self, calls: Sequence[Call | PackedCall], *, threads: int) -> None:
        self.threads = min(threads, _MOST_THREADS)
        self.table = np.zeros((len(calls), _LINE), np.int64)
        self.calls = [PackedCall.of(call) if isinstance(call, Call) else call for call in calls]
        _compile(self.calls)
        for row, packed in zip(self.table, self.calls, strict=True):
            kinds, entry, packed.block[0], _ = _KERNELS[id(packed.call.kernel)]
            # A kernel has one signature, that of its first call.
            if packed.kinds != kinds:
                raise TypeError(f"a kernel compiled for {kinds} got {packed.kinds}")
            row[:5] = entry, _address(packed.block), packed.call.tasks, 1, packed.call.join
            if packed.call.unless is not None:
                row[_UNLESS] = _address(packed.call.unless)
        self._growing = [
            i for i, each in enumerate(self.calls) if each.call.nanoseconds_per_position
        ]
        self._cut(range(len(self.calls)), positions=0)

    def plan(self, positions: int) -> None:
        """Cut what grows with the sequence as finely as pays for a longest row of so many positions."""
        self._cut(self._growing, positions)

    def _cut(self, numbers: Iterable[int], positions: int) -> None:
        for i in numbers:
            call = self.calls[i].call
            nanoseconds = call.nanoseconds + positions * call.nanoseconds_per_position
            chunks = min(call.tasks, int(nanoseconds / _CHUNK), 16 * self.threads)
            # As many for each thread: of three chunks, one of two threads does two.
            if chunks > self.threads:
                chunks -= chunks % self.threads
            self.table[i, 3] = max(1, chunks) if self.threads > 1 else 1


def run(call: Call, *, threads: int) -> None:
    """Run one call now; what is soon done is done on this thread."""
    if threads == 1 or call.nanoseconds < 4 * _CHUNK:
        call.kernel(*call.arguments, 0, call.tasks)
    else:
        run_program(Program([call], threads=threads))


def run_program(program: Program) -> None:
    """Run all calls; on this thread alone if another one uses the threads, so that there are never more than cores."""
    pool = _pool()
    if program.threads == 1 or not pool.lock.acquire(blocking=False):
        _run_alone(program.table)
        return
    try:
        pool.wake(program.threads)
        for start in range(0, max(1, len(program.table)), _MOST_CALLS):
            part = program.table[start : start + _MOST_CALLS]
            _lead(pool.control, pool.claims, part, program.threads)
    finally:
        pool.lock.release()


class _ThreadPool:
    """Threads of this process; none is started before it is needed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.control = np.zeros(_ASLEEP + _LINE * _MOST_THREADS, np.int64)
        self.claims = np.zeros(_MOST_CALLS * _LINE, np.int64)
        self._doors: list[threading.Lock] = []
        self._threads: list[threading.Thread] = []
        # How many can be started.
        self._most = _MOST_THREADS
        self._ready = False

    def wake(self, threads: int) -> None:
        """Start what is missing, and call those that sleep; none is waited for."""
        while len(self._threads) < min(threads - 1, self._most):
            try:
                self._start()
            except RuntimeError as error:
                # The calling thread alone does all work, too.
                self._most = len(self._threads)
                _LOG.warning(
                    "%s: %d threads share the work, not %d; allow this process more threads, or pass num_threads=%d",
                    error,
                    self._most + 1,
                    threads,
                    self._most + 1,
                )
        for index, door in enumerate(self._doors[: threads - 1]):
            if self.control[_ASLEEP + _LINE * index] and door.locked():
                door.release()

    def stop(self) -> None:
        """End all threads: native code must not look at arrays that the interpreter frees when it ends."""
        self.control[_STOP] = 1
        for door in self._doors:
            if door.locked():
                door.release()
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        if not self._ready:
            self._ready = True
            self.control[_YIELD] = _yield_address()
            # Compiled here, not by two threads at once.
            _serve(self.control, self.claims, 0, 0, 0)
            atexit.register(self.stop)
        index = len(self._threads)
        door = threading.Lock()
        door.acquire()
        thread = threading.Thread(target=self._work, args=(index, door), daemon=True)
        thread.start()
        self._doors.append(door)
        self._threads.append(thread)

    def _work(self, index: int, door: threading.Lock) -> None:
        seen = int(self.control[_EPOCH])
        patience = _patience()
        while not self.control[_STOP]:
            seen = _serve(self.control, self.claims, index, seen, patience)
            door.acquire()


_POOL: list[_ThreadPool] = []


def _pool() -> _ThreadPool:
    if not _POOL:
        _POOL.append(_ThreadPool())
    return _POOL[0]


# A forked process has none of its parent's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_POOL.clear)


@kernel
def _run_alone(table: NDArray[np.int64]) -> None:
    for row in range(table.shape[0]):
        unless = table[row, _UNLESS]
        if unless == 0 or intrinsics.peek(unless, 0) == 0:
            intrinsics.call(table[row, _ENTRY], table[row, _BLOCK], 0, table[row, _TASKS])


@kernel
def _lead(
    control: NDArray[np.int64], claims: NDArray[np.int64], table: NDArray[np.int64], threads: int
) -> None:
    epoch = control[_EPOCH] % _EPOCHS + 1
    lanes = min(threads, _MOST_LANES)
    for row in range(table.shape[0]):
        at = row * _LINE
        # Closed before it is rewritten: a thread that is late on the last list could take its claim for one of these
        # chunks. Now it finds another epoch, or its claim gone.
        for lane in range(_MOST_LANES):
            intrinsics.store(claims, at + lane, epoch << 32 | 0xFFFFFFFF)
        intrinsics.store(claims, at + _DONE, 0)
        intrinsics.store(claims, at + _CHUNKS, table[row, 3])
        join = 1 if row == table.shape[0] - 1 else table[row, 4]
        intrinsics.store(claims, at + _JOIN, join)
        intrinsics.store(claims, at + _LANES, lanes)
        for lane in range(lanes):
            intrinsics.store(claims, at + lane, epoch << 32)
    control[_TABLE] = table.ctypes.data
    control[_COUNT] = table.shape[0]
    control[_MEMBERS] = threads - 1
    intrinsics.store(control, _EPOCH, epoch)
    _walk(control, claims, epoch, 0)


@kernel
def _serve(
    control: NDArray[np.int64], claims: NDArray[np.int64], index: int, seen: int, patience: int
) -> int:
    """Take part in every list of calls; the last epoch, once there was nothing to do for `patience` pauses."""
    asleep = _ASLEEP + _LINE * index
    intrinsics.store(control, asleep, 0)
    idle = 0
    while intrinsics.load(control, _STOP) == 0:
        epoch = intrinsics.load(control, _EPOCH)
        if epoch != seen and index < intrinsics.load(control, _MEMBERS):
            seen, idle = epoch, 0
            _walk(control, claims, epoch, index + 1)
        elif idle < patience:
            # Lists for fewer threads keep the others awake no longer than none at all.
            seen = epoch
            idle += 1
            _wait(control, idle)
        else:
            intrinsics.store(control, asleep, 1)
            # The caller looks who sleeps before it begins an epoch: what began in between is seen here.
            if intrinsics.load(control, _EPOCH) == seen:
                return seen
            intrinsics.store(control, asleep, 0)
            idle = 0
    return seen


@kernel
def _walk(control: NDArray[np.int64], claims: NDArray[np.int64], epoch: int, member: int) -> None:
    """Take part in a list of calls; the member 0 leads."""
    joined = 0
    for row in range(intrinsics.load(control, _COUNT)):
        at = row * _LINE
        lanes = intrinsics.load(claims, at + _LANES)
        for turn in range(lanes):
            lane = (member + turn) % lanes
            while True:
                claim = intrinsics.load(claims, at + lane)
                chunks = intrinsics.load(claims, at + _CHUNKS)
                if claim >> 32 != epoch:
                    return
                chunk = lane * chunks // lanes + (claim & 0xFFFFFFFF)
                # A call of one chunk stays where the results of others are in the cache.
                if chunk >= (lane + 1) * chunks // lanes or (chunks == 1 and member > 0):
                    break
                if intrinsics.compare_and_swap(claims, at + lane, claim, claim + 1):
                    # A list lives as long as one of its chunks is not done.
                    call = intrinsics.load(control, _TABLE) + row * _LINE * 8
                    tasks = intrinsics.peek(call, _TASKS)
                    first, last = chunk * tasks // chunks, (chunk + 1) * tasks // chunks
                    unless = intrinsics.peek(call, _UNLESS)
                    if unless == 0 or intrinsics.peek(unless, 0) == 0:
                        intrinsics.call(
                            intrinsics.peek(call, _ENTRY),
                            intrinsics.peek(call, _BLOCK),
                            first,
                            last,
                        )
                    intrinsics.add(claims, at + _DONE, 1)
        if intrinsics.load(claims, at + _JOIN):
            while joined <= row:
                if not _is_done(control, claims, joined * _LINE, epoch):
                    return
                joined += 1


@kernel
def _is_done(control: NDArray[np.int64], claims: NDArray[np.int64], at: int, epoch: int) -> bool:
    """Wait until all chunks of a call are done; False if another list has begun."""
    waited = 0
    while intrinsics.load(claims, at + _DONE) < intrinsics.load(claims, at + _CHUNKS):
        if intrinsics.load(claims, at) >> 32 != epoch:
            return False
        waited += 1
        _wait(control, waited)
    return True


@kernel
def _wait(control: NDArray[np.int64], waited: int) -> None:
    intrinsics.pause()
    if waited % _IMPATIENT == 0:
        intrinsics.call_plain(control[_YIELD])


@kernel
def _pauses(count: int) -> None:
    for _ in range(count):
        intrinsics.pause()


@functools.cache
def _patience() -> int:
    """Pauses that take `_PATIENCE` nanoseconds."""
    _pauses(1)
    start = time.perf_counter_ns()
    _pauses(10_000)
    return 10_000 * _PATIENCE // max(1, time.perf_counter_ns() - start)


def _yield_address() -> int:
    """The function of the system that lets other threads run."""
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0


# The signature, entry and address of a kernel by its number; it is kept, so that no other gets its number.
_KERNELS: dict[int, tuple[intrinsics.Signature, int, int, object]] = {}


def _compile(calls: Sequence[PackedCall]) -> None:
    new = {id(c.call.kernel): c for c in calls if id(c.call.kernel) not in _KERNELS}
    if not new:
        return
    kernels = [(each.call.kernel, each.kinds) for each in new.values()]
    addresses = [intrinsics.address(kernel, kinds) for kernel, kinds in kernels]
    entries = intrinsics.entries((kinds for _, kinds in kernels), near=kernels[0][0])
    for (known, kinds), entry, address in zip(kernels, entries, addresses, strict=True):
        _KERNELS[id(known)] = kinds, entry, address, known


def _address(array: NDArray[np.int64]) -> int:
    return int(array.__array_interface__["data"][0])
