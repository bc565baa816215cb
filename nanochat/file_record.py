"""This file holds the record of a file: its size and its hash, made when it is whole and compared when it is used."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from nanochat.errors import FormatError
from nanochat.files import require_file

__all__ = ["FileRecord", "record_file", "require_as_recorded"]

_CHUNK_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size and SHA-256, in hexadecimal digits, of a file."""

    bytes: int
    sha256: str


def record_file(path: Path) -> FileRecord:
    """Read a file and record it.

    Raises
    ------
    FormatError
        If it is no regular file, or cannot be read.
    """
    size = require_file(path)
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror}; make the file readable") from error
    return FileRecord(bytes=size, sha256=sha256)


def require_as_recorded(path: Path, record: FileRecord, *, by: str) -> None:
    """Refuse a file that is missing or another than was recorded.

    Parameters
    ----------
    by : str
        What holds the record, for the error.

    Raises
    ------
    FormatError
        With what was found and what was expected.
    """
    size = require_file(path)
    # A file of another size need not be read.
    if size != record.bytes or record_file(path) != record:
        raise FormatError(
            f"{path}: {size} bytes that are not the {record.bytes} of {by} (SHA-256 {record.sha256[:16]}...): "
            "the file is truncated or was changed; fetch it again"
        )
