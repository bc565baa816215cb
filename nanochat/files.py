"""This file holds the reading and writing of files that may be hostile, or for which the disk may be too small.

Writers work aside and rename: a file is complete or not there, and what stood there before survives every failure.
Readers know how many bytes they accept before they read one. A file has a record, its size and its hash, which is made
when it is whole and compared when it is used; and a link may not lead a reader out of a model's folder.
"""

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nanochat.errors import FormatError, SaveError

__all__ = [
    "FileRecord",
    "atomic_directory",
    "atomic_file",
    "atomic_write",
    "exists",
    "own_file",
    "parse_json",
    "read_bytes",
    "record_file",
    "require_as_recorded",
    "require_file",
]

# What git keeps in place of a large file begins so, in less than a kilobyte.
_POINTER, _MAX_POINTER_BYTES = b"version https://git-lfs.github.com/spec/", 1024
# Digits of the largest JSON integers that are counts of anything; longer ones are quadratic to parse.
_MAX_DIGITS = 20


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`; the file written there replaces `path` when the block ends well.

    Raises
    ------
    SaveError
        If the block or the replacement meets an `OSError`; `path` is as it was.
    """
    with _aside(path, path.parent) as directory:
        new = directory / path.name
        yield new
        _sync(new)
        new.replace(path)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory whose files move to `path` when the block ends well.

    If there is no `path`, it appears complete or not at all. Otherwise each file replaces its namesake once all are
    written, and other files of `path` stay.

    Raises
    ------
    SaveError
        If the block or the move meets an `OSError`; without space for all files, `path` is as it was.
    """
    # Inside, where possible: `path` may be a mount point, or its parent read-only.
    with _aside(path, path if path.is_dir() else path.parent) as directory:
        new = directory / "new"
        new.mkdir()
        yield new
        files = sorted(file for file in new.rglob("*") if file.is_file())
        for file in files:
            _sync(file)
        if not path.exists():
            new.replace(path)
            return
        for file in files:
            place = path / file.relative_to(new)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)


def atomic_write(path: Path, data: bytes) -> None:
    """Replace the content of `path`, or leave it as it was."""
    with atomic_file(path) as new:
        new.write_bytes(data)


def exists(path: Path) -> bool:
    """Whether something of that name can be seen; names that no file can have are not there."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def require_file(path: Path) -> int:
    """Return the size of `path` in bytes; links are followed, pipes, devices and pointers of Git LFS refused."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: {_reason(error)}; copy or fetch the file again") from error
    if not stat.S_ISREG(status.st_mode):
        raise FormatError(f"{path}: not a regular file; put a copy of the file there")
    if status.st_size < _MAX_POINTER_BYTES and _is_pointer(path):
        raise FormatError(
            f"{path}: a Git LFS pointer of {status.st_size} bytes, in place of the file: run `git lfs pull` in the "
            "clone, or fetch the model with `hf download` or `nanochat models pull`"
        )
    return status.st_size


def read_bytes(path: Path, *, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes."""
    size = require_file(path)
    if size > limit:
        raise FormatError(f"{path}: {size} bytes, over the limit of {limit}; fetch the file again")
    try:
        with path.open("rb") as file:
            # Not `limit`: Python reserves what it is asked to read.
            return file.read(size)
    except OSError as error:
        raise FormatError(f"{path}: {_reason(error)}; make the file readable") from error


def parse_json(data: bytes, name: str) -> dict[str, object]:
    """Return the one JSON object in `data`; `name` is where it comes from.

    As everybody reads it: of a key that is there twice the last value counts, and a number beyond 64 bits, such as the
    ``int(1e30)`` that transformers writes for "no limit", is a float, infinite if that cannot hold it.
    """
    try:
        value = json.loads(data.decode("utf-8"), parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name}: not valid JSON ({error}); fetch the file again") from error
    if not isinstance(value, dict):
        raise FormatError(f"{name}: holds no JSON object; fetch the file again")
    return value


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size and SHA-256, in hexadecimal digits, of a file."""

    bytes: int
    sha256: str


def record_file(path: Path) -> FileRecord:
    """Read a file and record it."""
    size = require_file(path)
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror}; make the file readable") from error
    return FileRecord(bytes=size, sha256=sha256)


def require_as_recorded(path: Path, record: FileRecord, *, by: str) -> None:
    """Refuse a file that is missing or another than was recorded; `by` is what holds the record."""
    size = require_file(path)
    # A file of another size need not be read.
    if size != record.bytes or record_file(path) != record:
        raise FormatError(
            f"{path}: {size} bytes that are not the {record.bytes} of {by} (SHA-256 {record.sha256[:16]}...): "
            "the file is truncated or was changed; fetch it again"
        )


def own_file(folder: Path, name: str) -> Path | None:
    """The file that a name in a folder stands for; `None` if a link takes it from elsewhere.

    The snapshots of the Hub's cache consist of links to the store beside them, which is not elsewhere.
    """
    path = folder / name
    file, root = path.resolve(), folder.resolve()
    return file if file.is_relative_to(root) or _is_cached(path, file, root) else None


def _is_cached(path: Path, file: Path, root: Path) -> bool:
    """Whether a file of a snapshot in the Hub's cache is a link to the store beside it, as the client makes them."""
    for snapshot in (root, *root.parents):
        repository = snapshot.parent.parent
        if snapshot.parent.name == "snapshots" and repository.name.startswith("models--"):
            break
    else:
        return False
    if not path.is_symlink():
        return False
    first = Path(os.path.normpath(path.parent.resolve() / path.readlink()))
    # What is there may lead on, to what repositories share.
    stores = (repository / "blobs", repository.parent / "blobs")
    return first.is_relative_to(stores[0]) and any(file.is_relative_to(s) for s in stores)


@contextmanager
def _aside(path: Path, parent: Path) -> Iterator[Path]:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        # A directory, because a file made by `tempfile` would keep its narrow permissions.
        with tempfile.TemporaryDirectory(
            dir=parent, prefix=f".{path.name[:100]}.", ignore_cleanup_errors=True
        ) as directory:
            yield Path(directory)
    except SaveError:
        raise
    except OSError as error:
        raise SaveError(
            f"cannot write {path}: {_reason(error)}; free space or pass another path"
        ) from error


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        # Whoever reads it says why it cannot.
        return False


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)
