"""This file holds the launcher: it runs the kernels of operations, and can note those of a step to repeat them later.

A step that generates one token runs the same kernels on the same arrays every time; only what lies in the arrays
changes. Repeated from its notes, it is one call of native code, where Python would need microseconds for each kernel.
"""

import math
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nanochat.backends.numba.runtime.threads import (
    Call,
    PackedCall,
    Program,
    run,
    run_program,
)

__all__ = ["Launcher", "Notes"]


class Pool:
    """Memory that is used again once no array needs it, since what the system gives anew it must first clear.

    At most `most` bytes are kept.
    """

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._kept = 0
        self._buffers: dict[int, list[NDArray[np.uint8]]] = defaultdict(list)
        self._numbers: set[int] = set()

    def empty(self, size: int) -> NDArray[np.uint8]:
        """Memory of `size` bytes, not set."""
        # The list, the loop and the argument refer to a buffer; every view of it does, too.
        for buffer in self._buffers[size]:
            if sys.getrefcount(buffer) == _REFERENCES_OF_A_FREE_BUFFER:
                return _aligned(buffer, size)
        buffer = np.empty(size + _LINE, np.uint8)
        if size > self._most // 4:
            return _aligned(buffer, size)
        if self._kept + size > self._most:
            # Those in use live on without the pool.
            self._buffers, self._kept, self._numbers = defaultdict(list), 0, set()
        self._buffers[size].append(buffer)
        self._numbers.add(id(buffer))
        self._kept += size
        return _aligned(buffer, size)

    def holds(self, array: object) -> bool:
        """Whether an array lies in memory that this pool keeps."""
        return isinstance(array, np.ndarray) and id(array.base) in self._numbers


def _aligned(buffer: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """A part that begins on a cache line, or every load of a vector would meet two of them."""
    start = -int(buffer.__array_interface__["data"][0]) % _LINE
    return buffer[start : start + size]


class Notes:
    """A recording of one step: its calls of kernels.

    What the calls write to is the pool's, and is used again within the step once no later call needs it: each call is
    written down before the next, and holds nothing of the pool.
    """

    def __init__(self, pool: Pool) -> None:
        self.calls: list[PackedCall] = []
        self.complete = True
        self.pool = pool
        # In a loop, whether all tokens have left it: then calls are not run, but for those within `always`.
        self.everyone: NDArray[np.int64] | None = None
        self.skips = True
        self._program: Program | None = None
        self._planned = -1

    def add(self, call: Call) -> None:
        """Write down a call."""
        if self.everyone is not None and self.skips:
            call = replace(call, unless=self.everyone)
        self.calls.append(PackedCall.of(call, is_lent=self.pool.holds))

    def repeat(self, threads: int, *, positions: int = 0) -> None:
        """Run all calls again, where they were noted, for a longest row of so many positions."""
        if self._program is None:
            self._program = Program(self.calls, threads=threads)
            self.calls.clear()
        # Cut anew whenever that could change a little.
        if self._planned != positions.bit_length():
            self._planned = positions.bit_length()
            self._program.plan(positions)
        run_program(self._program)


class Launcher:
    """Runs kernels, on several threads if it pays; their number includes the calling one."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        # Each Python thread that uses a model notes its own step.
        self._local = threading.local()

    @property
    def notes(self) -> Notes | None:
        """What is being noted by this Python thread."""
        notes: Notes | None = getattr(self._local, "notes", None)
        return notes

    def note(self, step: Callable[[], Any], pool: Pool | None = None) -> tuple[Any, Notes]:
        """Run a step, and note it; what it writes to is taken from the pool, by default one of its own."""
        notes = self._local.notes = Notes(Pool(most=sys.maxsize) if pool is None else pool)
        try:
            return step(), notes
        finally:
            self._local.notes = None

    @contextmanager
    def always(self) -> Iterator[None]:
        """Note calls as ones that are run also when all tokens have left a loop."""
        notes = self.notes
        if notes is None:
            yield
            return
        notes.skips = False
        try:
            yield
        finally:
            notes.skips = True

    def empty(self, shape: Sequence[int], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """An array that is not yet set, for the result of a kernel."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if self.notes is not None:
            pool = self.notes.pool
        elif size < _LARGE:
            return np.empty(shape, dtype)
        else:
            pool = self._pool()
        return pool.empty(size).view(dtype).reshape(shape)

    def like(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """An array of the same shape that is not yet set."""
        return self.empty(x.shape)

    def _pool(self) -> Pool:
        # Another thread could find the same buffer free.
        pool: Pool | None = getattr(self._local, "pool", None)
        if pool is None:
            pool = self._local.pool = Pool(most=_MOST_KEPT)
        return pool

    def __call__(
        self,
        kernel: Callable[..., object],
        *arguments: object,
        tasks: int,
        nanoseconds: float,
        nanoseconds_per_position: float = 0.0,
    ) -> None:
        """Run ``kernel(*arguments, first, last)`` for all tasks; see `Call`."""
        per_position = nanoseconds_per_position
        self.together([Call(kernel, arguments, tasks, nanoseconds, True, per_position)])

    def together(self, calls: Sequence[Call]) -> None:
        """Run calls that do not need each other's results, which may be done at once."""
        calls = [*(replace(call, join=False) for call in calls[:-1]), *calls[-1:]]
        if (notes := self.notes) is not None:
            for call in calls:
                notes.add(call)
        if len(calls) == 1:
            run(calls[0], threads=self.threads)
        elif self.threads == 1 or sum(call.nanoseconds for call in calls) < _WORTH_A_PROGRAM:
            for call in calls:
                call.kernel(*call.arguments, 0, call.tasks)
        else:
            run_program(Program(calls, threads=self.threads))


# Bytes of a cache line.
_LINE = 64
# Bytes from which an array's memory comes from the system and goes back to it, and how many are kept instead.
_LARGE, _MOST_KEPT = 128 * 1024, 128 * 2**20
# Nanoseconds of work for which several calls are made a list for the threads.
_WORTH_A_PROGRAM = 40_000


def _count_references() -> int:
    buffers = [np.empty(1, np.uint8)]
    return next(sys.getrefcount(buffer) for buffer in buffers)


_REFERENCES_OF_A_FREE_BUFFER = _count_references()
