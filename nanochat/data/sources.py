"""This file holds the finding of text: the files that paths, directories and globs match."""

import glob
import itertools
from collections.abc import Sequence
from pathlib import Path

from nanochat.errors import DataError

__all__ = ["Files", "find_files"]

# Their relative and their real paths.
Files = Sequence[tuple[str, Path]]


def find_files(patterns: Sequence[str | Path]) -> list[tuple[str, Path]]:
    """Return the relative and the real path of each file that `patterns` match, once, sorted."""
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
