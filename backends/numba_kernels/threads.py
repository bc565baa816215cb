"""This file holds the choice between one thread and several, made anew for every call of a kernel."""

import functools
import logging
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext

import numba
from numba.core import config
from numba.np.ufunc.parallel import threading_layer

__all__ = ["num_threads", "run", "start_threads"]

_LOG = logging.getLogger(__name__)
_OWN_POOL = threading.Lock()

# Nanoseconds of work on one thread below which the others are not woken, which takes OpenMP some microseconds.
_WORTH_THREADS = 50_000
# Numba's own pool takes a hundred microseconds or more.
_WORTH_OWN_POOL = 500_000
# Work of less than the first that took more than the second on all threads has waited for a core that another process
# held: a time slice is 3 milliseconds and more. Then one thread works alone for the third.
_SHORT, _STALLED, _ALONE = 1_000_000, 3_000_000, 100_000_000


_alone_until = 0


def run(
    kernel: Callable[..., None],
    parallel: Callable[..., None],
    arguments: tuple[object, ...],
    *,
    tasks: int,
    nanoseconds: float,
) -> None:
    """Run all tasks of a kernel: on several threads, if one would take that long and no other process is in the way."""
    global _alone_until
    if nanoseconds < _WORTH_THREADS or time.perf_counter_ns() < _alone_until:
        kernel(*arguments, 0, tasks)
        return
    own_pool = start_threads() == "workqueue"
    parts = min(tasks, numba.get_num_threads())
    if parts == 1 or (own_pool and nanoseconds < _WORTH_OWN_POOL):
        kernel(*arguments, 0, tasks)
        return
    start = time.perf_counter_ns()
    # Numba's own pool aborts the process if two threads use it at once.
    with _OWN_POOL if own_pool else nullcontext():
        parallel(*arguments, tasks, parts)
    end = time.perf_counter_ns()
    if nanoseconds < _SHORT and end - start > _STALLED:
        _alone_until = end + _ALONE


def num_threads() -> int:
    """Threads that a large call is shared among."""
    return int(numba.get_num_threads())


@functools.cache
def start_threads() -> str:
    """Start Numba's threads, and name what runs them."""
    settings = vars(config)
    if settings["THREADING_LAYER_PRIORITY"] == ["tbb", "omp", "workqueue"]:
        # Numba's default: nobody chose. An empty loop took OpenMP 2 microseconds, and Numba's own pool 100.
        settings["THREADING_LAYER_PRIORITY"] = ["omp", "tbb", "workqueue"]
    numba.get_num_threads()
    layer: str = threading_layer()  # type: ignore[no-untyped-call]
    if layer == "workqueue":
        _LOG.warning(
            "Numba found neither OpenMP nor TBB and runs threads by its own slower pool: install one of them "
            "(`pip install tbb`) for faster decoding"
        )
    return layer
