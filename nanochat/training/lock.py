"""This file holds the lock of a run's directory, where two processes would write one log and one set of snapshots."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nanochat.errors import SaveError, TrainingError

if sys.platform != "win32":
    import fcntl

__all__ = ["locked"]

_LOGGER = logging.getLogger(__name__)
# Descriptors by which this process has locks. One that it forks, to prepare batches, has a share in them, and would
# hold them for the seconds until it misses its parent.
_HELD: set[int] = set()


def _let_go() -> None:
    while _HELD:
        os.close(_HELD.pop())


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """A block in which a directory, which is made, belongs to this process, for no longer than that lives.

    Raises
    ------
    SaveError
        If there can be no such directory.
    TrainingError
        If it belongs to another process.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(
            f"cannot write {directory}: {error.strerror or error}; pass another directory"
        ) from error
    if sys.platform == "win32":
        # Directories cannot be opened there.
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise TrainingError(
            f"another process writes the run in {directory}: wait for it or end it, or pass another directory"
        ) from error
    except OSError as error:
        # Some network file systems have no locks.
        _LOGGER.warning(
            "%s cannot be locked (%s): do not start a second process on it", directory, error
        )
    _HELD.add(descriptor)
    try:
        yield
    finally:
        _HELD.remove(descriptor)
        os.close(descriptor)
