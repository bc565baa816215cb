"""This file holds the catalog: the names that stand for models, and where the weights of each are.

To add a model, write an entry into a file of ``zoo/models``, and pin it: ``nanochat models pin NAME`` asks the Hub for
its commit and its files. The tests of the catalog check every entry.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from nanochat.errors import ModelNotFoundError
from nanochat.files import require_as_recorded
from nanochat.zoo.entries import Entry, load_entries

__all__ = [
    "CATALOG",
    "NAME",
    "advice",
    "canonical",
    "directory",
    "entry_of",
    "require_meant",
    "require_pinned",
    "similar",
]

# What it is called where something is taken from it.
NAME = "the catalog"
_WEIGHTS = Path(__file__).parent / "weights"

CATALOG: Mapping[str, Entry] = load_entries()
_ALIASES = {alias: entry.name for entry in CATALOG.values() for alias in entry.aliases}


def canonical(name: str) -> str:
    """The name in the catalog of what may have another; any other name as it is."""
    return _ALIASES.get(name, name)


def entry_of(repo: str) -> Entry | None:
    """The entry whose weights are in a repository of the Hub, if there is one."""
    return next((entry for entry in CATALOG.values() if entry.repo == repo), None)


def require_meant(entry: Entry) -> None:
    """Refuse a short name of which the catalog does not know what it stands for."""
    if not entry.is_pinned:
        raise ModelNotFoundError(
            f"{entry.name} is not pinned: the catalog knows no commit, sizes or hashes of its files, so nothing says "
            f"that they are the ones that were meant. To take what is there today, pass {entry.repo}, or {entry.name} "
            "with --unpinned (in Python, unpinned=True)"
        )


def directory(entry: Entry) -> Path:
    """The directory of a model that ships."""
    path = _WEIGHTS / entry.name
    if not _WEIGHTS.parent.is_dir():
        raise ModelNotFoundError(
            f"nanochat-ternary runs from inside {_archive(_WEIGHTS)}, which is not unpacked, so {entry.name} cannot be "
            "opened: install that file with pip"
        )
    if not entry.ships or not path.is_dir():
        missing = "is not in this installation" if entry.ships else "has no published weights yet"
        raise ModelNotFoundError(f"{entry.name} {missing}: {advice(entry.preset)}")
    return path


def _archive(path: Path) -> Path:
    """The file that a path leads into."""
    return next((parent for parent in path.parents if parent.is_file()), path)


def require_pinned(entry: Entry, folder: Path) -> None:
    """Refuse a folder whose files are not those that the catalog means."""
    for name, record in entry.files.items():
        require_as_recorded(folder / name, record, by=NAME)


def similar(name: str) -> list[str]:
    """Names of the catalog that resemble `name`, the nearest first.

    Examples
    --------
    >>> similar("nano-125m"), similar("tiny"), similar("llama")
    (['nano-125m', 'nano-1b'], ['nanochat-tiny'], [])
    """
    spellings = {
        spelling: entry.name
        for entry in CATALOG.values()
        for spelling in filter(None, (entry.name, entry.preset, *entry.aliases))
    }
    # A name can be near by several of its spellings; each counts once.
    close = get_close_matches(name.lower(), spellings)
    return list(dict.fromkeys(spellings[spelling] for spelling in close))


def advice(preset: str) -> str:
    """What to do without published weights."""
    return (
        f"train it with `nanochat train --preset {preset}`, or pass a model of the Hugging Face Hub as owner/name, "
        "or the path of a model directory or .gguf file"
    )
