"""This file holds the memory of files whose SHA-256 was taken: they are known again without being read.

A file is the one that was read if its size, the times of its last change, its inode and its device are. What leaves all
of these as they were, such as a disk that fails, is found by reading alone: whoever wants that asks for it.
"""

import json
import logging
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock

from nanochat.errors import FormatError, SaveError
from nanochat.files import FileRecord, atomic_write, exists, parse_json, read_bytes, record_file

__all__ = ["NAME", "VerifiedFiles"]

# Beside what the client keeps of a repository, and gone with it.
NAME = "nanochat-verified.json"
_MAX_BYTES = 2**20
# Seconds in which a system may give two changes the same time.
_TICK = 0.02
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Identity:
    """What tells that a file is still the one that was read."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, path: Path) -> "_Identity":
        status = path.stat()
        return cls(
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
            inode=status.st_ino,
            device=status.st_dev,
        )


class VerifiedFiles:
    """The hashes of files in a folder that were read before; `verify` reads them again all the same."""

    def __init__(self, folder: Path, *, verify: bool = False) -> None:
        self._file = folder / NAME
        self._lock = Lock()
        self._verify = verify
        self._known = _load(self._file)
        self._new: dict[str, object] = {}

    def is_known(self, path: Path) -> bool:
        """Whether `record` will tell of a file without reading it."""
        return self._found(path, _Identity.of(path)) is not None

    def record(self, path: Path) -> FileRecord:
        """Size and SHA-256 of a file, which is read unless it is known."""
        before = _Identity.of(path)
        found = self._found(path, before)
        if found is not None:
            return FileRecord(bytes=before.size, sha256=found)
        # A change that comes within a tick of the last one would not show.
        if abs(time.time() - before.ctime_ns / 1e9) < _TICK:
            time.sleep(_TICK)
        record = record_file(path)
        # It may have been changed meanwhile.
        if before == _Identity.of(path):
            with self._lock:
                self._new[_key(path)] = {**asdict(before), "sha256": record.sha256}
        return record

    def save(self) -> None:
        """Keep what was read now for the next process; what cannot be kept is read again."""
        with self._lock:
            new, self._new = self._new, {}
        if not new:
            return
        # Another process may have added to it.
        self._known = {**_load(self._file), **new}
        kept = {key: value for key, value in self._known.items() if exists(Path(key))}
        try:
            atomic_write(self._file, json.dumps(kept).encode())
        except SaveError as error:
            _LOGGER.debug("%s", error)

    def _found(self, path: Path, now: _Identity) -> str | None:
        key = _key(path)
        with self._lock:
            said = self._new.get(key) or (None if self._verify else self._known.get(key))
        match said:
            case {"sha256": str(sha256), **rest} if rest == asdict(now):
                return sha256
        return None


def _key(path: Path) -> str:
    return os.fspath(path.resolve())


def _load(file: Path) -> dict[str, object]:
    if not exists(file):
        return {}
    try:
        return parse_json(read_bytes(file, limit=_MAX_BYTES), str(file))
    except FormatError as error:
        _LOGGER.debug("%s", error)
    return {}
