"""This file holds the launcher: it runs the kernels of operations, and can note those of a step to repeat them later.

A step that generates one token runs the same kernels on the same arrays every time; only what lies in the arrays
changes. Repeated from its notes, it is one call of native code, where Python would need microseconds for each kernel.
"""

import math
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nanochat.backends.numba.runtime.threads import Call, Program, run, run_program

__all__ = ["Launcher", "Notes"]


class Pool:
    """Memory that is used again once no array needs it, since what the system gives anew it must first clear.

    At most `most` bytes are kept.
    """

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._kept = 0
        self._buffers: dict[int, list[NDArray[np.uint8]]] = defaultdict(list)

    def empty(self, size: int) -> NDArray[np.uint8]:
        """Memory of `size` bytes, not set."""
        # The list, the loop and the argument refer to a buffer; every view of it does, too.
        for buffer in self._buffers[size]:
            if sys.getrefcount(buffer) == _REFERENCES_OF_A_FREE_BUFFER:
                return buffer
        buffer = np.empty(size, np.uint8)
        if size > self._most // 4:
            return buffer
        if self._kept + size > self._most:
            # Those in use live on without the pool.
            self._buffers, self._kept = defaultdict(list), 0
        self._buffers[size].append(buffer)
        self._kept += size
        return buffer


class Notes:
    """A recording of one step: its calls of kernels, and what Python must do before and after them."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.before: list[Callable[[], None]] = []
        self.after: list[Callable[[], None]] = []
        self.complete = True
        # What the calls write to lives as long as the notes.
        self.pool = Pool(most=sys.maxsize)
        self._program: Program | None = None

    def repeat(self, threads: int) -> None:
        """Run all calls again, on the arrays that they were noted with."""
        if self._program is None:
            self._program = Program(self.calls, threads=threads)
            self.calls.clear()
        for check in self.before:
            check()
        run_program(self._program)
        for act in self.after:
            act()


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

    def note(self, step: Callable[[], Any]) -> tuple[Any, Notes]:
        """Run a step, and note it."""
        notes = self._local.notes = Notes()
        try:
            return step(), notes
        finally:
            self._local.notes = None

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

    def _pool(self) -> Pool:
        # Another thread could find the same buffer free.
        pool: Pool | None = getattr(self._local, "pool", None)
        if pool is None:
            pool = self._local.pool = Pool(most=_MOST_KEPT)
        return pool

    def __call__(
        self, kernel: Callable[..., object], *arguments: object, tasks: int, nanoseconds: float
    ) -> None:
        """Run ``kernel(*arguments, first, last)`` for all tasks; see `Call`."""
        self.together([Call(kernel, arguments, tasks, nanoseconds)])

    def together(self, calls: Sequence[Call]) -> None:
        """Run calls that do not need each other's results, which may be done at once."""
        calls = [*(replace(call, join=False) for call in calls[:-1]), *calls[-1:]]
        if self.notes is not None:
            self.notes.calls += calls
        if len(calls) == 1:
            run(calls[0], threads=self.threads)
        elif self.threads == 1 or sum(call.nanoseconds for call in calls) < _WORTH_A_PROGRAM:
            for call in calls:
                call.kernel(*call.arguments, 0, call.tasks)
        else:
            run_program(Program(calls, threads=self.threads))


# Bytes from which an array's memory comes from the system and goes back to it, and how many are kept instead.
_LARGE, _MOST_KEPT = 128 * 1024, 128 * 2**20
# Nanoseconds of work for which several calls are made a list for the threads.
_WORTH_A_PROGRAM = 40_000


def _count_references() -> int:
    buffers = [np.empty(1, np.uint8)]
    return next(sys.getrefcount(buffer) for buffer in buffers)


_REFERENCES_OF_A_FREE_BUFFER = _count_references()
