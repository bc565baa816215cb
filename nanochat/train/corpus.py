"""This file holds the way from patterns on the command line to documents: one file, one document.

Every file belongs to one split, by a hash of its path relative to its pattern. So a file stays in its
split when the corpus moves, grows or is read again.
"""

import glob
import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat.errors import DataError, InputError

__all__ = ["Document", "documents", "find_files", "is_held_out", "log_dropped", "position"]

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Document:
    """The text of one file.

    Attributes
    ----------
    path : str
        Path relative to the pattern that found it, with forward slashes.
    text : str
        The contents, unchanged.
    held_out : bool
        True if the file is for evaluation.
    """

    path: str
    text: str
    held_out: bool


def documents(
    patterns: Sequence[str | Path],
    *,
    held_out: float = 0.02,
    max_file_bytes: int = 2**30,
    dropped: Counter[str] | None = None,
) -> Iterator[Document]:
    """Yield the files that `patterns` match, in order of their paths, each contents once.

    Left out and counted: files that are not UTF-8, are empty, are larger than `max_file_bytes`, or
    equal an earlier file but for whitespace.

    Parameters
    ----------
    patterns : sequence of str or Path
        Files, directories (all files below them) and globs (``**`` crosses directories).
    held_out : float
        Share of the files that is for evaluation, at least 0 and below 1.
    max_file_bytes : int
        Largest file that is read, bytes. Large source files are mostly generated tables.
    dropped : Counter, optional
        Receives the number of files left out, by reason. Without it, the log does.

    Raises
    ------
    DataError
        If a pattern matches no file or a file cannot be read.
    """
    counts: Counter[str] = Counter() if dropped is None else dropped
    seen: set[bytes] = set()
    for name, path in find_files(patterns):
        text = _read(path, max_file_bytes, counts)
        if text is None:
            continue
        contents = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
        if contents in seen:
            counts["duplicate"] += 1
            continue
        seen.add(contents)
        yield Document(path=name, text=text, held_out=is_held_out(name, held_out))
    if dropped is None:
        log_dropped(counts)


def log_dropped(dropped: Counter[str]) -> None:
    """Warn of the files that :func:`documents` left out, if there are any."""
    if dropped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        _LOGGER.warning("left out %d files: %s", dropped.total(), reasons)


def find_files(patterns: Sequence[str | Path]) -> list[tuple[str, Path]]:
    """Return the relative and the real path of each file that `patterns` match, once, sorted.

    Raises
    ------
    DataError
        If a pattern matches no file, or there is no pattern.
    """
    if isinstance(patterns, str | Path) or not patterns:
        raise DataError(f"patterns is {patterns!r}: pass a list with at least one path or glob")
    found: dict[Path, str] = {}
    for pattern in patterns:
        base, paths = _expand(str(pattern))
        files = [path for path in paths if path.is_file()]
        if not files:
            raise DataError(
                f"{pattern} matches no file below {Path.cwd()}: correct the path, and quote a glob "
                "in the shell"
            )
        for path in files:
            found.setdefault(path.resolve(), path.relative_to(base).as_posix())
    return sorted((name, path) for path, name in found.items())


def is_held_out(name: str, share: float) -> bool:
    """Return whether the file of this relative path is for evaluation.

    Raises
    ------
    InputError
        If `share` is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise InputError(f"held_out={share} is not a share of the files: pass 0 <= held_out < 1")
    return position(name) < share


def position(name: str, salt: str = "split") -> float:
    """Return a number in [0, 1) that depends on `name` and `salt` only."""
    digest = hashlib.blake2b(f"{salt}\0{name}".encode("utf-8", "surrogateescape"), digest_size=8)
    # 53 bits, what a float holds exactly.
    return (int.from_bytes(digest.digest()) >> 11) / 2**53


def _expand(pattern: str) -> tuple[Path, list[Path]]:
    """Return the directory that names are relative to, and the paths."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        return path, list(path.rglob("*"))
    if path.exists():
        return path.parent, [path]
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
    try:
        return Path(*fixed), list(Path(*fixed).glob("/".join(path.parts[len(fixed) :])))
    except ValueError as error:
        raise DataError(f"{pattern} is not a glob ({error}): write ** between slashes") from error


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
