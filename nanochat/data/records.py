"""This file holds the reading of records from files: whole texts, and lines of JSON.

A file is read in chunks, each of which can be read by itself, wherever that is: memory does not grow with the file. A
record has a name that it keeps when others are added behind it.
"""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Protocol

from nanochat.errors import DataError, did_you_mean

__all__ = ["Chunk", "Lines", "Record", "TextFile", "line_chunks", "opened", "text_of"]

# Of lines that are read at once.
_CHUNK_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Record:
    """A text, or the fields of one record, with its name and where it stands, for people."""

    name: str
    place: str
    fields: Mapping[str, object] | str


class Chunk(Protocol):
    """Records that are read at once."""

    @property
    def size(self) -> int:
        """Bytes, about."""
        ...

    def records(self, dropped: Counter[str]) -> Iterator[Record]:
        """Read them; `dropped` receives the number of those left out, by reason."""
        ...


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """A file that is one text, if it is UTF-8."""

    name: str
    path: Path
    size: int

    def records(self, dropped: Counter[str]) -> Iterator[Record]:
        """See `Chunk`."""
        try:
            text = self.path.read_bytes().decode()
        except UnicodeDecodeError:
            dropped["not UTF-8"] += 1
            return
        except OSError as error:
            raise _unreadable(self.path, error) from error
        yield Record(name=self.name, place=str(self.path), fields=text)


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Lines of JSON, the first of which has the number `first`, counted from 0."""

    name: str
    path: Path
    first: int
    lines: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """See `Chunk`."""
        return sum(map(len, self.lines))

    def records(self, dropped: Counter[str]) -> Iterator[Record]:  # noqa: ARG002
        """See `Chunk`."""
        for number, line in enumerate(self.lines, self.first):
            if not line.strip():
                continue
            place = f"{self.path}, line {number + 1}"
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{place}: not valid JSON ({error}): correct or remove that line"
                ) from error
            if not isinstance(fields, dict):
                raise DataError(f"{place}: no JSON object: write one, with a field for the text")
            yield Record(name=f"{self.name}#{number}", place=place, fields=fields)


def line_chunks(
    name: str, path: Path, file: BufferedIOBase, max_bytes: int, dropped: Counter[str]
) -> Iterator[Lines]:
    """Read lines of JSON; those of more than `max_bytes` are left out, without being kept."""
    first, size = 0, 0
    lines: list[bytes] = []
    try:
        while line := file.readline(max_bytes + 1):
            if len(line) > max_bytes:
                dropped[f"larger than {max_bytes} bytes"] += 1
                while line and not line.endswith(b"\n"):
                    line = file.readline(max_bytes + 1)
                # The numbers of the others stay.
                line = b"\n"
            lines.append(line)
            size += len(line)
            if size >= _CHUNK_BYTES:
                yield Lines(name=name, path=path, first=first, lines=tuple(lines))
                first, size, lines = first + len(lines), 0, []
    # Of a file that ends too early, or is none of gzip.
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    if lines:
        yield Lines(name=name, path=path, first=first, lines=tuple(lines))


def opened(path: Path) -> BufferedIOBase:
    """A file of lines, perhaps compressed by gzip."""
    try:
        return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error


def text_of(record: Record, column: str) -> str:
    """The text of a record, which is in that field."""
    fields = record.fields
    if isinstance(fields, str):
        return fields
    if column not in fields:
        chat = ", or pass --chat" if {"messages", "conversations"} & fields.keys() else ""
        raise DataError(
            f"{record.place}: no field {column!r:.80}{did_you_mean(column, fields)}: choose one of "
            f"{', '.join(map(str, fields)) or 'none'} with --column (column= in Python){chat}"
        )
    text = fields[column]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise DataError(
            f"{record.place}: {column} is {text!r:.80}, not a text: choose another field of "
            f"{', '.join(map(str, fields))} with --column (column= in Python)"
        )
    return text


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or error
    return DataError(f"{path}: {reason}; copy it again, make it readable or leave it out")
