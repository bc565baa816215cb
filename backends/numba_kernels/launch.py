"""This file holds the launcher: it runs the kernels of operations, and can note those of a step to repeat them later.

A step that generates one token runs the same kernels on the same arrays every time; only what lies in the arrays
changes. Repeated from its notes, it is one call of native code, where Python would need microseconds for each kernel.
"""

import math
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nanochat.backends.numba_kernels.team import Call, Program, run, run_program

__all__ = ["Launcher", "Notes"]


class Notes:
    """What one step did: its calls of kernels, and what Python must do before and after them."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.before: list[Callable[[], None]] = []
        self.after: list[Callable[[], None]] = []
        self.complete = True
        self._program: Program | None = None
        self._buffers: dict[int, list[NDArray[np.uint8]]] = defaultdict(list)

    def empty(self, size: int) -> NDArray[np.uint8]:
        """Memory of `size` bytes that lives as long as the notes: what no array of the step uses any more, or new."""
        for buffer in self._buffers[size]:
            # The list, `buffer` and the argument: a buffer in use has more, since its views keep it.
            if sys.getrefcount(buffer) == _REFERENCES_OF_A_FREE_BUFFER:
                return buffer
        buffer = np.empty(size, np.uint8)
        self._buffers[size].append(buffer)
        return buffer

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
    """Runs kernels, on several threads if it pays.

    Parameters
    ----------
    threads : int
        Threads that share a call, the calling one included.
    """

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
        if self.notes is None:
            return np.empty(shape, dtype)
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return self.notes.empty(size).view(dtype).reshape(shape)

    def __call__(
        self,
        kernel: Callable[..., object],
        *arguments: object,
        tasks: int,
        nanoseconds: float,
    ) -> None:
        """Run ``kernel(*arguments, first, last)`` for all tasks; see `Call`."""
        self.together([Call(kernel, arguments, tasks, nanoseconds)])

    def together(self, calls: Sequence[Call]) -> None:
        """Run calls that do not need each other's results, which may be done at once."""
        if self.notes is not None:
            self.notes.calls += calls
        if len(calls) == 1:
            run(calls[0], threads=self.threads)
        elif self.threads == 1 or sum(call.nanoseconds for call in calls) < _WORTH_A_PROGRAM:
            for call in calls:
                call.kernel(*call.arguments, 0, call.tasks)
        else:
            run_program(Program(calls, threads=self.threads))


# Nanoseconds of work for which several calls are made a list for the threads.
_WORTH_A_PROGRAM = 40_000


def _count_references() -> int:
    buffers = [np.empty(1, np.uint8)]
    return next(sys.getrefcount(buffer) for buffer in buffers)


_REFERENCES_OF_A_FREE_BUFFER = _count_references()
