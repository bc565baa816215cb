"""This file holds folders that last no longer than the process that made them, in memory where there is room."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nanochat.errors import SandboxError

__all__ = ["workspace"]

_MEMORY = Path("/dev/shm")
# Below which a folder in memory is not used.
_LEAST_FREE = 2**28


@contextlib.contextmanager
def workspace(purpose: str) -> Iterator[Path]:
    """A new folder for a ``with`` statement, in which programs can be run; what a killed process left is removed.

    Its owner has a lock on it, since no name would tell: in another container, its number is that of another process.

    Parameters
    ----------
    purpose : str
        A word for its name.

    Raises
    ------
    SandboxError
        If no folder can be made.
    """
    try:
        parent = _parent()
        prefix = f"nanochat-{purpose}-"
        _sweep(parent, prefix)
        folder, lock = _new(parent, prefix)
    except OSError as error:
        raise SandboxError(
            f"cannot make a folder for {purpose}: {error}; free some room, or set TMPDIR to a folder that has it"
        ) from error
    owner = os.getpid()
    try:
        yield folder
    finally:
        # It is not for a fork of the owner to remove it.
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _parent() -> Path:
    with contextlib.suppress(OSError):
        if (
            os.access(_MEMORY, os.W_OK)
            and _may_execute(_MEMORY)
            and shutil.disk_usage(_MEMORY).free >= _LEAST_FREE
        ):
            return _MEMORY
    parent = Path(tempfile.gettempdir())
    if not _may_execute(parent):
        raise SandboxError(
            f"no program can be run in {parent}, which is mounted with 'noexec': set TMPDIR to another folder"
        )
    return parent


def _may_execute(folder: Path) -> bool:
    # Docker mounts its memory so that nothing in it is executed.
    return not os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0)


def _new(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = _lock(folder)
        if lock is not None:
            if folder.exists():
                return folder, lock
            # Before it was locked, another process took it for one that was left over.
            os.close(lock)


def _sweep(parent: Path, prefix: str) -> None:
    for folder in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            lock = _lock(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder until the descriptor is closed; `None` if it is locked."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
