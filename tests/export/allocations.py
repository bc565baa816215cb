"""This file holds a limit of the memory that readers of damaged files may take."""

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["BESIDE", "allocations_limited"]

# Bytes that any reader may take: for configurations, vocabularies, rows that are read at once, what libraries keep.
BESIDE = 2**25


@contextlib.contextmanager
def allocations_limited(num_bytes: int) -> Iterator[None]:
    """Let this process take so many bytes more: beyond that the system gives it none, and ``MemoryError`` is raised.

    Tracing allocations instead takes three times as long as reading the files. Only Linux tells what is taken already:
    elsewhere there is no limit.
    """
    if sys.platform != "linux":
        yield
        return
    # Windows has no such module.
    import resource

    taken = re.search(r"^VmData:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert taken is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * int(taken[1]) + num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
