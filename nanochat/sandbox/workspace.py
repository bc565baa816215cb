"""This file holds folders that last no longer than the process that made them, in memory where there is room."""

import contextlib
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
    """A new folder for a ``with`` statement, whose name tells its owner, so that what a killed process left is removed.

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
        _sweep(parent, purpose)
        folder = Path(tempfile.mkdtemp(prefix=f"nanochat-{purpose}-{os.getpid()}-", dir=parent))
    except OSError as error:
        raise SandboxError(
            f"cannot make a folder for {purpose}: {error}; free some room, or set TMPDIR to a folder that has it"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parent() -> Path:
    with contextlib.suppress(OSError):
        if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _LEAST_FREE:
            return _MEMORY
    return Path(tempfile.gettempdir())


def _sweep(parent: Path, purpose: str) -> None:
    for folder in parent.glob(f"nanochat-{purpose}-*-*"):
        owner = folder.name.split("-")[2]
        if owner.isdecimal() and not _lives(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
