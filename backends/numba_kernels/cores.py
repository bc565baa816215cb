"""This file holds how many threads are worth starting: one for each physical core that this process may use."""

import os
from pathlib import Path

__all__ = ["num_cores"]

_CPUS = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def num_cores(cpus: Path = _CPUS, quota: Path = _QUOTA) -> int:
    """Physical cores, no more than a container's share of processor time; where the system does not say, all cores.

    Parameters
    ----------
    cpus, quota : Path
        Where Linux describes cores, and limits groups of processes.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    siblings = {_read(cpus / f"cpu{cpu}/topology/thread_siblings_list") or cpu for cpu in allowed}
    limit, _, period = _read(quota).partition(" ")
    if limit.isdigit() and period.isdigit():
        return max(1, min(len(siblings), int(limit) // int(period)))
    return len(siblings)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
