"""This file holds the C library, through which the kernel is asked for what Python has no names for."""

import ctypes
from functools import cache

__all__ = ["libc"]


@cache
def libc() -> ctypes.CDLL:
    """The library that this process runs on; what failed is told by :func:`ctypes.get_errno`."""
    # To open it takes a tenth of a millisecond, and a job asks a dozen times.
    return ctypes.CDLL(None, use_errno=True)
