"""This file holds files of records, a line of JSON each, that an interrupted evaluation goes on writing.

The first line says what the rest are records of. Only records of the same go into one file.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from nanochat.errors import FormatError, InputError, SaveError, VersionError

__all__ = ["Record", "Records", "read_records", "recording"]

Record = Mapping[str, object]

_FORMAT, _VERSION = "nanochat-records", 1


class Records:
    """What a file holds: what its records are of, and themselves."""

    def __init__(self, path: Path, of: Record, rows: list[Record]) -> None:
        self.path = path
        self.of = of
        self.rows = rows


class _Writer(Records):
    """A file that is being written."""

    def append(self, rows: Iterable[Record]) -> None:
        """Write more rows, so that they are on disk when this returns.

        Raises
        ------
        SaveError
            If they cannot be written; what stood there before still does.
        """
        new = [dict(row) for row in rows]
        text = "".join(f"{json.dumps(row)}\n" for row in new)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise SaveError(
                f"cannot write {self.path}: {error}; free some room and go on"
            ) from error
        self.rows += new


def read_records(path: Path) -> Records:
    """Read a file of records; a last line that was cut off is left out.

    Raises
    ------
    FormatError
        If it is none.
    InputError
        If there is no such file.
    """
    return _read(path)[0]


@contextmanager
def recording(path: Path, of: Record) -> Iterator[_Writer]:
    """Open a file of records of `of`, with those that it holds already, or make it.

    Raises
    ------
    InputError
        If its records are of something else, and where they differ.
    SaveError
        If it cannot be written.
    """
    if path.exists():
        found, size = _read(path)
        for name in {**found.of, **of}:
            if found.of.get(name) != of.get(name):
                raise InputError(
                    f"{path} is of {name}={found.of.get(name)!r:.60}, not {of.get(name)!r:.60}: "
                    "pass another --out, or --overwrite"
                )
        try:
            with path.open("r+b") as file:
                file.truncate(size)
        except OSError as error:
            raise SaveError(f"cannot write {path}: {error}") from error
        yield _Writer(path, of, found.rows)
        return
    writer = _Writer(path, of, [])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"format": _FORMAT, "version": _VERSION, **of})
        path.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise SaveError(f"cannot write {path}: {error}; pass another --out") from error
    yield writer


def _read(path: Path) -> tuple[Records, int]:
    """The records, and how many bytes of the file they take."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            f"there is no file {path}: pass one that `nanochat eval` has written"
        ) from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error}") from error
    whole = content[: content.rfind(b"\n") + 1]
    rows: list[dict[str, object]] = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise FormatError(f"{path}:{number}: no JSON: {error}; delete the line") from error
        if not isinstance(row, dict):
            raise FormatError(f"{path}:{number}: {line[:40]!r} is no JSON object: delete the line")
        rows.append(row)
    if not rows or rows[0].pop("format", None) != _FORMAT:
        raise FormatError(
            f"{path} does not begin with a line of the format {_FORMAT!r}: pass a file that `nanochat eval` has written"
        )
    version = rows[0].pop("version", None)
    if version != _VERSION:
        raise VersionError(
            f"{path} is of version {version!r} of its format, and this package knows {_VERSION}: update nanochat"
        )
    return Records(path, rows[0], list(rows[1:])), len(whole)
