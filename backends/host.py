"""This file holds what this machine is: its processor, the cores that may be used, and GPUs, told without a backend."""

import functools
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

__all__ = [
    "has_amx",
    "has_apple_gpu",
    "has_cuda_driver",
    "is_intel",
    "largest_cache",
    "num_cores",
    "processor",
]

_CPUS = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_CPU_INFORMATION = Path("/proc/cpuinfo")
# What tells the processor's name on a Mac.
_SYSCTL = Path("/usr/sbin/sysctl")
# Where a CUDA driver shows on Linux: as usual, in some containers, and in WSL.
_DRIVERS = (Path("/proc/driver/nvidia"), Path("/dev/nvidiactl"), Path("/dev/dxg"))


@functools.cache
def processor() -> str:
    """The processor's name, for people; its architecture where the system does not say more."""
    if sys.platform == "darwin" and _SYSCTL.exists():
        command = [str(_SYSCTL), "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.strip()
    model = re.search(r"^model name\s*:\s*(.+)$", _read(_CPU_INFORMATION), re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


def num_cores(cpus: Path = _CPUS, quota: Path = _QUOTA) -> int:
    """How many threads are worth starting: physical cores, no more than a container's share of processor time.

    Linux describes cores in `cpus`, and limits groups of processes in `quota`; elsewhere all cores are counted.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    siblings = {_read(cpus / f"cpu{cpu}/topology/thread_siblings_list") or cpu for cpu in allowed}
    limit, _, period = _read(quota).partition(" ")
    if limit.isdigit() and period.isdigit():
        return max(1, min(len(siblings), int(limit) // int(period)))
    return len(siblings)


def is_intel() -> bool:
    """Whether the processor is Intel's, by its name."""
    return "Intel" in processor()


def has_amx() -> bool:
    """Whether the processor multiplies tiles of matrices (Intel's AMX), as far as Linux tells."""
    return re.search(r"^flags\s*:.* amx_tile\b", _read(_CPU_INFORMATION), re.MULTILINE) is not None


def largest_cache(cpus: Path = _CPUS) -> int:
    """Bytes of the last level of cache, as Linux describes it in `cpus`; 0 where it is not told."""
    sizes = [_read(file) for file in cpus.glob("cpu0/cache/index*/size")]
    return max((1024 * int(size[:-1]) for size in sizes if re.fullmatch(r"\d+K", size)), default=0)


def has_apple_gpu() -> bool:
    """Whether this is a Mac with Apple silicon."""
    return sys.platform == "darwin" and platform.machine() == "arm64"


def has_cuda_driver() -> bool | None:
    """Whether there is a driver for NVIDIA's GPUs; `None` where only torch can tell."""
    if sys.platform != "linux":
        return False if sys.platform == "darwin" else None
    return any(path.exists() for path in _DRIVERS)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
