"""This file holds what can be said of this machine as a place for the kernels: instructions, threads and files."""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanochat.backends.host import num_cores
from nanochat.backends.numba.products import activation
from nanochat.backends.numba.runtime import compilation
from nanochat.backends.numba.runtime.compilation import end_wait
from nanochat.backends.numba.runtime.isa import Isa, available, chosen, has_half
from nanochat.backends.numba.runtime.memory import nodes
from nanochat.backends.numba.runtime.threads import Call, Program, run_program
from nanochat.backends.numba.tuning import choices
from nanochat.backends.numba.tuning.tuner import is_on

__all__ = ["KernelReport", "call_microseconds", "huge_pages", "report", "threads_warning"]

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

# Microseconds that cost a small model more than its arithmetic; with a core for each thread it is under 5.
_SLOW = 50.0
# Calls of a list, and how often it is run.
_CALLS, _RUNS = 50, 20
# Numbers, and about how many nanoseconds, for each thread.
_NUMBERS, _PIECE = 20_000, 5_000.0


@dataclass(frozen=True, kw_only=True)
class KernelReport:
    """What `nanochat doctor` tells of the Numba backend."""

    isa: Isa
    # All that this processor has, the fastest first.
    available: tuple[Isa, ...]
    # One for each physical core.
    threads: int
    # What a call on all threads costs besides its work.
    call_microseconds: float
    # What is wrong with the threads, and what to do; empty if nothing is.
    warning: str
    # Whether keys and values may be kept in float16.
    float16: bool
    # What Linux gives: always, madvise (to those who ask, as the kernels do), never; or unknown.
    huge_pages: str
    memory_nodes: int
    # Where compiled kernels are kept; empty if nowhere.
    kernels: str
    kernels_writable: bool
    # The file where `nanochat tune` keeps its answers; empty if there is none.
    choices: str
    # Answers that are kept there and may be used.
    num_choices: int
    # Whether ``NANOCHAT_TUNE`` lets products be measured.
    tuning: bool


def report() -> KernelReport:
    """Look at this machine, for a fraction of a second once the kernels are compiled.

    Raises
    ------
    InputError, BackendError
        If ``NANOCHAT_ISA`` or ``NANOCHAT_TUNE`` cannot be followed.
    """
    isa, threads = chosen(), num_cores()
    microseconds = call_microseconds(threads)
    folder, file = compilation.folder(activation.add), choices.path()
    end_wait()
    return KernelReport(
        isa=isa,
        available=available(),
        threads=threads,
        call_microseconds=microseconds,
        warning=threads_warning(microseconds, threads),
        float16=has_half(),
        huge_pages=huge_pages(),
        memory_nodes=max(1, len(nodes())),
        kernels="" if folder is None else str(folder),
        kernels_writable=folder is not None and os.access(folder, os.W_OK),
        choices="" if file is None else str(file),
        num_choices=len(choices.load()),
        tuning=is_on(),
    )


def call_microseconds(threads: int) -> float:
    """What a call costs besides its work, which is as long for every thread as a piece of a small matrix."""
    size = threads * _NUMBERS
    x, y = np.zeros(size, np.float32), np.zeros(size, np.float32)
    call = Call(activation.add, (x, x, y), tasks=size, nanoseconds=threads * _PIECE)
    shared, alone = (Program([call] * _CALLS, threads=number) for number in (threads, 1))
    # The mean: a thread that sometimes loses its core keeps all others waiting.
    spent = _mean_microseconds(shared) - _mean_microseconds(alone) / threads
    return max(0.0, spent / _CALLS)


def _mean_microseconds(program: Program) -> float:
    run_program(program)
    start = time.perf_counter_ns()
    for _ in range(_RUNS):
        run_program(program)
    return (time.perf_counter_ns() - start) / _RUNS / 1000


def threads_warning(microseconds: float, threads: int) -> str:
    """What is wrong if a call takes so long, and what to do; nothing if it is fast enough."""
    if microseconds <= _SLOW:
        return ""
    return (
        f"a call on {threads} threads costs {microseconds:.0f} microseconds besides its work, over {_SLOW:.0f}: other "
        "programs use these cores, or the container or virtual machine has less processor time than cores; stop them, "
        f"or pass --threads {max(1, threads // 2)}"
    )


def huge_pages(enabled: Path = _HUGE_PAGES) -> str:
    """When Linux gives huge pages: always, madvise or never, which `enabled` has in brackets; unknown elsewhere."""
    try:
        found = re.search(r"\[(\w+)\]", enabled.read_text())
    except OSError:
        return "unknown"
    return found[1] if found else "unknown"
