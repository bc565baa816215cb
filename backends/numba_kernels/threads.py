"""This file holds the choice between one thread and several, for every call of a kernel."""

import functools
import logging
import threading
from collections.abc import Callable
from contextlib import nullcontext

import numba
from numba.core import config
from numba.np.ufunc.parallel import threading_layer

__all__ = ["run"]

_LOG = logging.getLogger(__name__)
_OWN_POOL = threading.Lock()

# Nanoseconds of work on one thread below which the others are not woken. That takes OpenMP some microseconds, and far
# more when other processes hold the cores.
_WORTH_THREADS = 50_000.0
# Numba's own pool takes a hundred microseconds or more.
_WORTH_OWN_POOL = 500_000.0


def run(
    kernel: Callable[..., None],
    parallel: Callable[..., None],
    arguments: tuple[object, ...],
    *,
    tasks: int,
    nanoseconds: float,
) -> None:
    """Run all tasks of a kernel, on several threads if one would take that long."""
    if nanoseconds < _WORTH_THREADS or tasks == 1:
        kernel(*arguments, 0, tasks)
        return
    own_pool = _start_threads() == "workqueue"
    threads = min(tasks, numba.get_num_threads())
    if threads == 1 or (own_pool and nanoseconds < _WORTH_OWN_POOL):
        kernel(*arguments, 0, tasks)
        return
    # Numba's own pool aborts the process if two threads use it at once.
    with _OWN_POOL if own_pool else nullcontext():
        parallel(*arguments, tasks, threads)


@functools.cache
def _start_threads() -> str:
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
