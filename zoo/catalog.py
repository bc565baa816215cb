"""This file holds the catalog: the names that stand for models, and where the weights of each are.

To add a model, write an entry into a file of ``zoo/models``, and pin it: ``nanochat models pin NAME`` asks the Hub for
its commit and its files. The tests of the catalog check every entry.
"""

import logging
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from nanochat.config import ModelConfig, config_to_dict
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
    "say_other_positions",
    "similar",
]

_LOGGER = logging.getLogger(__name__)

# What it is called where something is taken from it.
NAME = "the catalog"
_WEIGHTS = Path(__file__).parent / "weights"

# What formats have each their own way of, a number of 32 bits among it.
_FORMAT = {
    "activation_block",
    "context_length",
    "delta_gates",
    "norm_eps",
    "table_format",
    "weight_block",
}

CATALOG: Mapping[str, Entry] = load_entries()
_ALIASES = {alias: entry.name for entry in CATALOG.values() for alias in entry.aliases}


def canonical(name: str) -> str:
    """The name in the catalog of what may have another; any other name as it is."""
    return _ALIASES.get(name, name)


def entry_of(repo: str) -> Entry | None:
    """The entry whose weights are in a repository of the Hub, if there is one."""
    return next((entry for entry in CATALOG.values() if entry.repo == repo), None)


def say_other_positions(model: str, config: ModelConfig) -> None:
    """Warn of what has all shapes of a model of the catalog and not its scaling of positions.

    Copies of a model are about that lose it, when they are cut to the context that it was first trained with.
    """
    if config.rope_scale != 1 or config.rope_factors:
        return
    shape = _shape(config)
    scaled = {
        entry.name: theirs
        for entry in CATALOG.values()
        if (theirs := entry.config) is not None
        and theirs.rope_scale != 1
        and _shape(theirs) == shape
    }
    if not scaled:
        return
    theirs = next(iter(scaled.values()))
    _LOGGER.warning(
        "%s: it has the shapes of %s, whose positions are scaled (%s, %g times, to read %d tokens), and its own are "
        "not: if it is a copy of that model, it writes other text, and reads %d tokens",
        model,
        " and ".join(scaled),
        theirs.rope_type,
        theirs.rope_scale,
        theirs.context_length,
        config.context_length,
    )


def _shape(config: ModelConfig) -> dict[str, object]:
    """What a copy in another format, and with other positions, has in common with a model."""
    return {
        name: value
        for name, value in config_to_dict(config).items()
        if name not in _FORMAT and (not name.startswith("rope_") or name == "rope_theta")
    }


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
