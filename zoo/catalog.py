"""This file holds the catalog: the names that stand for models, and where the weights of each are.

To add a model, write an entry: ``nanochat models pull OWNER/NAME --json`` prints its commit and its files. The tests of
the catalog check every entry.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from nanochat.errors import ModelNotFoundError
from nanochat.files import FileRecord, require_as_recorded

__all__ = ["CATALOG", "Entry", "advice", "canonical", "directory", "require_pinned", "similar"]

_WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model with a name that users write: its preset's, until it is published.

    Parameters
    ----------
    aliases : tuple of str
        What it may be called besides.
    preset : str
        Its configuration; see `nanochat.presets`.
    repo : str or None
        ``owner/name`` of its weights on the Hugging Face Hub, if they are published.
    revision : str
        The commit of `repo` that is meant, 40 hexadecimal digits.
    ships : bool
        Whether its weights come with this package.
    files : mapping
        Size and hash of every file that belongs to the model, compared each time before one is opened.
    licence : str
        SPDX identifier of the weights' licence.
    """

    name: str
    aliases: tuple[str, ...] = ()
    preset: str
    repo: str | None = None
    revision: str = ""
    ships: bool = False
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    description: str
    licence: str = "MIT"

    def __post_init__(self) -> None:
        # A name must not come to mean other weights.
        exists = self.ships or self.repo is not None
        pinned = self.repo is None or len(self.revision) == 40
        assert pinned, f"{self.name}: pin its commit"
        assert exists == bool(self.files), f"{self.name}: pin its files"


CATALOG: Mapping[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="nanochat-tiny",
            preset="tiny",
            ships=True,
            files={
                "config.json": FileRecord(
                    bytes=925,
                    sha256="47f538d4015bd9c78c44e3105e829fdcd0fa7827e5bfcf267125009482eb5e5e",
                ),
                "generation_config.json": FileRecord(
                    bytes=41,
                    sha256="3eaef933d39a62cc4a9e6238be69232d949faac9067fedc42fb645c5435b6545",
                ),
                "model.safetensors": FileRecord(
                    bytes=2310504,
                    sha256="9e9b239dc79524f7daae1e990da5d61de350135e5982f0d8bb31a04542383260",
                ),
                "nanochat.json": FileRecord(
                    bytes=16307,
                    sha256="afb406716fc1b0f6c80e51512cd545383796bb2aa05abddff39f658c76fe30c3",
                ),
                "tokenizer.json": FileRecord(
                    bytes=260571,
                    sha256="93fe2e2376b0c551acd07f2822bbee32c1b5da25e128df730099cf9ac49d04c0",
                ),
                "tokenizer_config.json": FileRecord(
                    bytes=718,
                    sha256="0997e57bdb0c8a1d14dbc5663442621f63e3124b374f0848facbb765b64a9565",
                ),
            },
            description="6M parameters, to try everything at once",
        ),
        Entry(
            name="d20",
            preset="d20",
            aliases=("nanochat-d20",),
            description="560M parameters in the shape of nanochat's d20",
        ),
        Entry(
            name="nano-125m",
            preset="nano-125m",
            aliases=("nanochat-125m",),
            description="125M parameters, the size of GPT-2 small",
        ),
        Entry(
            name="small-560m",
            preset="small-560m",
            aliases=("nanochat-560m",),
            description="560M parameters, most of them in the layers",
        ),
        Entry(
            name="nano-1b",
            preset="nano-1b",
            aliases=("nanochat-1b",),
            description="1B parameters, for phones and laptops",
        ),
        Entry(
            name="medium-3b-moe",
            preset="medium-3b-moe",
            aliases=("nanochat-3b-moe",),
            description="3B parameters in a mixture of experts, half of them active",
        ),
        Entry(
            name="large-7b",
            preset="large-7b",
            aliases=("nanochat-7b",),
            description="7B parameters, the usual large shape",
        ),
    )
}


_ALIASES = {alias: entry.name for entry in CATALOG.values() for alias in entry.aliases}


def canonical(name: str) -> str:
    """The name in the catalog of what may have another; any other name as it is."""
    return _ALIASES.get(name, name)


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
        require_as_recorded(folder / name, record, by="the catalog")


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
        for spelling in (entry.name, entry.preset, *entry.aliases)
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
