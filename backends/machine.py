"""This file holds what this machine has that a backend could use, told without loading one."""

import platform
import sys
from pathlib import Path

__all__ = ["has_apple_gpu", "has_cuda_driver"]

# Where a CUDA driver shows on Linux: as usual, in some containers, and in WSL.
_DRIVERS = (Path("/proc/driver/nvidia"), Path("/dev/nvidiactl"), Path("/dev/dxg"))


def has_apple_gpu() -> bool:
    """Whether this is a Mac with Apple silicon."""
    return sys.platform == "darwin" and platform.machine() == "arm64"


def has_cuda_driver() -> bool | None:
    """Whether there is a driver for NVIDIA's GPUs; `None` where only torch can tell."""
    if sys.platform != "linux":
        return False if sys.platform == "darwin" else None
    return any(path.exists() for path in _DRIVERS)
