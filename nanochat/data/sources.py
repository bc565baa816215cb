"""This file holds the finding of text: the files that patterns match, and data sets of the Hub.

A file's suffix says how it is read: ``.jsonl``, also compressed as ``.jsonl.gz`` or ``.jsonl.zst``, line by line,
``.parquet`` row by row, and everything else as one text.
"""

import glob
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from nanochat.data.reading import Reading
from nanochat.data.records import Chunk, TextFile, line_chunks, opened
from nanochat.errors import DataError, how_to_install

__all__ = ["Sources", "find_sources", "packages_for"]

_HUB = "hub:"


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What there is to read.

    Parameters
    ----------
    files : sequence of pairs
        Relative and absolute path of each file.
    streams : dict of str to str
        Data sets of the Hub, by name, and the commit of each; none of a directory that stands for one.
    """

    files: Sequence[tuple[str, Path]]
    streams: Mapping[str, str | None]

    def chunks(self, reading: Reading, dropped: Counter[str]) -> Iterator[Chunk]:
        """Everything, in order, in parts that can be read by themselves."""
        for name, path in self.files:
            yield from _chunks(name, path, reading, dropped)
        for source, commit in self.streams.items():
            yield from _hub(source).hub_rows(source, commit)


def find_sources(patterns: Sequence[str | Path], *, revision: str | None = None) -> Sources:
    """Find what patterns match, and data sets that they name as ``hub:org/name``, at a revision."""
    if isinstance(patterns, str | Path) or not patterns:
        raise DataError(f"patterns is {patterns!r}: pass a list with at least one path or glob")
    names = [str(each).removeprefix(_HUB) for each in patterns if str(each).startswith(_HUB)]
    if revision and not names:
        raise DataError(f"revision={revision!r:.80} is of no data set: name one as hub:org/name")
    files = [each for each in patterns if not str(each).startswith(_HUB)]
    return Sources(
        files=_found(files),
        streams={name: _hub(name).pinned(name, revision) for name in names},
    )


def _found(patterns: Sequence[str | Path]) -> list[tuple[str, Path]]:
    """The relative and the absolute path of each file that `patterns` match, once, sorted."""
    found: dict[Path, tuple[str, Path]] = {}
    for pattern in patterns:
        base, paths = _expand(str(pattern))
        files = [path for path in paths if path.is_file()]
        if not files:
            raise DataError(
                f"{pattern} matches no file below {Path.cwd()}: correct the path, and quote a glob "
                "in the shell"
            )
        # Links first: in the Hub's cache they have the names that say how files are read.
        for path in sorted(files, key=lambda path: (not path.is_symlink(), path)):
            names = path.relative_to(base).as_posix(), path.absolute()
            found.setdefault(path.resolve(), names)
    return sorted(found.values())


@contextmanager
def packages_for(what: str) -> Iterator[None]:
    """A block that imports what few texts need; `what` needs it, as is said if it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise DataError(
            f"{what} needs the package {error.name}: {how_to_install('data')}"
        ) from error


def _chunks(name: str, path: Path, reading: Reading, dropped: Counter[str]) -> Iterator[Chunk]:
    lower = path.name.lower()
    if lower.endswith(".parquet"):
        yield from _arrow(path).row_groups(name, path, reading.columns)
    elif lower.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
        file = _arrow(path).opened_zstd(path) if lower.endswith(".zst") else opened(path)
        with file:
            yield from line_chunks(name, path, file, reading.max_bytes, dropped)
    else:
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(
                f"{path}: {error.strerror}; make it readable or leave it out"
            ) from error
        if size > reading.max_bytes:
            dropped[f"larger than {reading.max_bytes} bytes"] += 1
        else:
            yield TextFile(name=name, path=path, size=size)


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


def _arrow(path: Path) -> ModuleType:
    with packages_for(str(path)):
        from nanochat.data import arrow
    return arrow


def _hub(source: str) -> ModuleType:
    with packages_for(_HUB + source):
        from nanochat.data import hub
    return hub
