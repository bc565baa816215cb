"""This file holds the measured read bandwidth, the bound of every product whose matrix is larger than the caches."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

__all__ = ["Reading", "read_bandwidth"]


class Reading:
    """One large array, which threads read: each its own part, made by it, so that several nodes are used.

    NumPy's sum of int64 is vector code that waits for memory only, and runs without the interpreter's lock: Numba
    loops, with one accumulator or with four, were at most as fast.

    Parameters
    ----------
    num_bytes : int
        Size of all parts; many times that of the last level of cache.
    """

    def __init__(self, *, threads: int, num_bytes: int) -> None:
        self._pool = ThreadPoolExecutor(threads)
        sizes = [num_bytes // 8 // threads] * threads
        self._parts = list(self._pool.map(np.ones, sizes, [np.int64] * threads))
        self.num_bytes = sum(part.nbytes for part in self._parts)

    def run(self) -> None:
        """Read all of it."""
        list(self._pool.map(np.sum, self._parts))

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def read_bandwidth(*, threads: int, num_bytes: int = 2**30, runs: int = 7) -> float:
    """Bytes per second that so many threads read (see `Reading`), the best of `runs`."""
    reading = Reading(threads=threads, num_bytes=num_bytes)
    seconds = []
    for _ in range(runs):
        begin = time.perf_counter()
        reading.run()
        seconds.append(time.perf_counter() - begin)
    reading.close()
    return reading.num_bytes / min(seconds)
