"""This file holds the stamp of every result: the machine that it was measured on, and the commit."""

import os
import platform
import re
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nanochat.backends.host import processor

__all__ = ["commit", "machine"]

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("mlx", "numba", "numpy", "onnxruntime", "torch", "triton")


@cache
def machine() -> dict[str, object]:
    """Processor, cores, memory in GiB, GPUs, system, and versions of Python and of what computes."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "cpu": processor(),
        "cores": _cores(),
        "memory": _memory(),
        "gpus": _gpus(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions,
    }


@cache
def commit() -> str:
    """Short hash of the tree, with "+" if files differ from it; "unknown" outside of a checkout."""
    try:
        head = _output("git", "-C", str(_ROOT), "rev-parse", "--short", "HEAD")
        changed = _output("git", "-C", str(_ROOT), "status", "--porcelain", "-uno")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def _output(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> float:
    if not hasattr(os, "sysconf"):
        return float("nan")
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _gpus() -> list[str]:
    """NVIDIA GPUs by the driver's files, which need no library."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    found = (re.search(r"^Model:\s*(.+)$", file.read_text(), re.MULTILINE) for file in files)
    return [match[1] for match in found if match]
