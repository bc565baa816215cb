"""This file holds how much memory is free for this process."""

import logging
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

__all__ = ["free_bytes", "group_bytes"]

_LOGGER = logging.getLogger(__name__)

# Bytes of address space that a model takes beyond its memory: stacks of threads, and pieces in which compiled code and
# small arrays are allocated. With 70 MB left, LLVM ends the process; with 115 MB, a small model runs on numba.
_ADDRESSES = 2**27


def free_bytes(*, root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: of the machine, of its container, of its own limits; `None` if unknown.

    Swap is not counted: a model that lies there does not run, it waits. ``proc`` and ``sys`` of Linux are in `root`.
    """
    try:
        found: list[int | None] = [psutil.virtual_memory().available, group_bytes(root)]
        found += _own_limits()
    # What psutil meets on systems that tell it nothing, or something else than it knows.
    except (psutil.Error, OSError, RuntimeError, ValueError) as error:
        _LOGGER.debug("free memory is unknown (%s), so no model is refused", error)
        return None
    return max(0, min(number for number in found if number is not None))


def group_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that the control groups of this process leave it; `None` without a limit.

    A group may take what it does not use yet, and what it caches of files; so must all groups above it.
    """
    mounts = root / "sys/fs/cgroup"
    found: list[int] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            # Beside groups of the first version, those of the second are one folder below.
            for mount in (mounts, mounts / "unified"):
                found += _left(mount, path, ("memory.max", "memory.current"), "")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            found += _left(mounts / "memory", path, names, "total_")
    return min(found, default=None)


def _own_limits() -> Iterator[int]:
    """What the limits of this process leave it, where there are any."""
    if not hasattr(psutil.Process, "rlimit"):
        return
    process = psutil.Process()
    used = process.memory_info()
    limits = ((psutil.RLIMIT_AS, used.vms + _ADDRESSES), (psutil.RLIMIT_DATA, used.data))
    for limit, taken in limits:
        soft, _ = process.rlimit(limit)
        if soft != psutil.RLIM_INFINITY:
            yield soft - taken


def _left(mount: Path, path: str, names: tuple[str, str], prefix: str) -> Iterator[int]:
    """What each group from the innermost on leaves; folders that a container does not see are passed over."""
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    for count in range(len(parts), -1, -1):
        group = mount.joinpath(*parts[:count])
        limit, current = (_text(group / name).strip() for name in names)
        if limit.isdigit() and current.isdigit():
            statistics = dict(
                line.split(" ", 1) for line in _text(group / "memory.stat").splitlines()
            )
            files = (statistics.get(f"{prefix}{name}_file", "") for name in ("active", "inactive"))
            yield int(limit) - int(current) + sum(int(n) for n in files if n.isdigit())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
