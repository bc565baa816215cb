"""This file holds the measured read bandwidth, the bound of every product whose matrix is larger than the caches."""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Reading", "read_bandwidth"]


class Reading:
    """Arrays that threads read, each an equal part of each of them.

    NumPy's sum of int64 is vector code that waits for memory only, and runs without the interpreter's lock: Numba
    loops, with one accumulator or with four, were at most as fast.

    Parameters
    ----------
    arrays : sequence of ndarray
        Together many times the size of the last level of cache; each begins at a multiple of 8 bytes.
    """

    def __init__(self, arrays: Iterable[NDArray[Any]], *, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads)
        words = [array.reshape(-1).view(np.uint8) for array in arrays]
        words = [array[: array.size // 8 * 8].view(np.int64) for array in words]
        self._parts = list(zip(*(np.array_split(array, threads) for array in words), strict=True))
        self.num_bytes = sum(array.nbytes for array in words)

    def run(self) -> None:
        """Read all of it."""
        list(self._pool.map(_sum_all, self._parts))

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def _sum_all(arrays: Iterable[NDArray[np.int64]]) -> None:
    for array in arrays:
        np.sum(array)


def read_bandwidth(*, threads: int, num_bytes: int = 2**30, runs: int = 7) -> float:
    """Bytes per second that so many threads read (see `Reading`), the best of `runs`."""
    with ThreadPoolExecutor(threads) as pool:
        # Made by threads, so that on a machine with several nodes their memory is spread, too.
        sizes = [num_bytes // 8 // threads] * threads
        reading = Reading(pool.map(np.ones, sizes, [np.int64] * threads), threads=threads)
    seconds = []
    for _ in range(runs):
        begin = time.perf_counter()
        reading.run()
        seconds.append(time.perf_counter() - begin)
    reading.close()
    return reading.num_bytes / min(seconds)
