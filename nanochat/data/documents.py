"""This file holds the reading of documents: one file, one document, or pieces of one, each contents once."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat.data.sources import Files, find_files
from nanochat.data.splits import is_held_out, pieces
from nanochat.errors import DataError

__all__ = ["Document", "Unit", "choose_unit", "documents", "documents_of", "log_dropped"]

Unit = Literal["file", "piece"]

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Document:
    """The text of one file or piece, unchanged, its path relative to the pattern, and whether it is for evaluation."""

    path: str
    text: str
    held_out: bool


def documents(
    patterns: Sequence[str | Path],
    *,
    held_out: float = 0.02,
    max_file_bytes: int = 2**30,
    dropped: Counter[str] | None = None,
    unit: Unit = "file",
) -> Iterator[Document]:
    """Yield the files that `patterns` match, or pieces of them, in order of their paths, each contents once.

    Left out and counted: files that are not UTF-8, are empty, are larger than `max_file_bytes`, or
    equal an earlier file but for whitespace.

    Parameters
    ----------
    patterns : sequence of str or Path
        Files, directories (all files below them) and globs (``**`` crosses directories).
    held_out : float
        Share of the files, or of each file's text, that is for evaluation, at least 0 and below 1.
    max_file_bytes : int
        Largest file that is read, bytes. Large source files are mostly generated tables.
    dropped : Counter, optional
        Receives the number of files left out, by reason. Without it, the log does.
    unit : {"file", "piece"}
        What is held out whole: files, chosen by a hash of their paths; or the ends of sections of every file, which
        are a million characters long, or shorter.
    """
    counts: Counter[str] = Counter() if dropped is None else dropped
    yield from documents_of(find_files(patterns), held_out, max_file_bytes, counts, unit)
    if dropped is None:
        log_dropped(counts)


def documents_of(
    files: Files, held_out: float, max_file_bytes: int, counts: Counter[str], unit: Unit
) -> Iterator[Document]:
    """Yield what `documents` does, of files that are found already; `counts` receives what is left out."""
    seen: set[bytes] = set()
    for name, path in files:
        text = _read(path, max_file_bytes, counts)
        if text is None:
            continue
        contents = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
        if contents in seen:
            counts["duplicate"] += 1
            continue
        seen.add(contents)
        if unit == "piece":
            for number, part, is_for_evaluation in pieces(text, held_out):
                yield Document(path=f"{name}#{number}", text=part, held_out=is_for_evaluation)
        else:
            yield Document(path=name, text=text, held_out=is_held_out(name, held_out))


def choose_unit(files: Files, held_out: float, max_file_bytes: int) -> Unit:
    """Files, if there are some for either split; this reads as many as it takes to see that."""
    found = set()
    num_files = 0
    for document in documents_of(files, held_out, max_file_bytes, Counter(), "file"):
        found.add(document.held_out)
        num_files += 1
        if len(found) == 2:
            return "file"
    if not held_out or not num_files:
        return "file"
    _LOGGER.warning(
        "too few files to hold some of them out (files: %d, share: %s): the end of each, or of every million "
        "characters in it, is held out instead",
        num_files,
        held_out,
    )
    return "piece"


def log_dropped(dropped: Counter[str]) -> None:
    """Warn of the files that were left out, by reason."""
    if dropped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        _LOGGER.warning("left out %d files: %s", dropped.total(), reasons)


def _read(path: Path, max_file_bytes: int, dropped: Counter[str]) -> str | None:
    try:
        if path.stat().st_size > max_file_bytes:
            dropped[f"larger than {max_file_bytes} bytes"] += 1
            return None
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        dropped["not UTF-8"] += 1
        return None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; make it readable or leave it out") from error
    if not text.strip():
        dropped["empty"] += 1
        return None
    return text
