"""This file holds the measured read bandwidth, the bound of every product whose matrix is larger than the caches."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

__all__ = ["read_bandwidth"]


def read_bandwidth(*, threads: int, num_bytes: int = 2**30, runs: int = 7) -> float:
    """Bytes per second that `threads` threads read, each its own part of one large array; the best of `runs`.

    NumPy's sum of int64 is vector code that waits for memory only, and runs without the interpreter's lock: Numba
    loops, with one accumulator or with four, were at most as fast.

    Parameters
    ----------
    num_bytes : int
        Size of all parts; many times that of the last level of cache.
    """
    with ThreadPoolExecutor(threads) as pool:
        # Made by the threads, so that on a machine with several nodes their memory is spread, too.
        parts = list(pool.map(np.ones, [num_bytes // 8 // threads] * threads, [np.int64] * threads))
        seconds = []
        for _ in range(runs):
            begin = time.perf_counter()
            list(pool.map(np.sum, parts))
            seconds.append(time.perf_counter() - begin)
    return sum(part.nbytes for part in parts) / min(seconds)
