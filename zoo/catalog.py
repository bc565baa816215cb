"""This file holds the catalog: the names that stand for models, and where the weights of each are."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from nanochat.errors import ModelNotFoundError

__all__ = ["CATALOG", "Entry", "directory", "similar", "ways_on"]

_WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model with a name.

    Parameters
    ----------
    name : str
        What users write.
    preset : str
        Its configuration; see `nanochat.presets`.
    repo : str or None
        ``owner/name`` of its weights on the Hugging Face Hub, if they are published.
    ships : bool
        Whether its weights come with this package.
    description : str
        One line for lists.
    licence : str
        SPDX identifier of the weights' licence.
    """

    name: str
    preset: str
    repo: str | None = None
    ships: bool = False
    description: str
    licence: str = "MIT"


CATALOG: Mapping[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="nanochat-tiny",
            preset="tiny",
            ships=True,
            description="6M parameters, to try everything at once",
        ),
        Entry(
            name="nanochat-d20",
            preset="d20",
            description="560M parameters in the shape of nanochat's d20",
        ),
        Entry(
            name="nanochat-125m",
            preset="nano-125m",
            description="125M parameters, the size of GPT-2 small",
        ),
        Entry(
            name="nanochat-560m",
            preset="small-560m",
            description="560M parameters, most of them in the layers",
        ),
        Entry(
            name="nanochat-1b",
            preset="nano-1b",
            description="1B parameters, for phones and laptops",
        ),
        Entry(
            name="nanochat-3b-moe",
            preset="medium-3b-moe",
            description="3B parameters in a mixture of experts, half of them active",
        ),
        Entry(
            name="nanochat-7b",
            preset="large-7b",
            description="7B parameters, the usual large shape",
        ),
    )
}


def directory(entry: Entry) -> Path:
    """The directory of a model that ships.

    Raises
    ------
    ModelNotFoundError
        If it does not ship, or was left out of this installation.
    """
    path = _WEIGHTS / entry.name
    if not entry.ships or not path.is_dir():
        missing = "is not in this installation" if entry.ships else "has no published weights yet"
        raise ModelNotFoundError(f"{entry.name} {missing}: {ways_on(entry.preset)}")
    return path


def similar(name: str) -> list[str]:
    """Names of the catalog that resemble `name`, the nearest first.

    Examples
    --------
    >>> similar("nano-125m"), similar("tiny"), similar("llama")
    (['nanochat-125m', 'nanochat-1b'], ['nanochat-tiny'], [])
    """
    spellings = {
        spelling: entry.name
        for entry in CATALOG.values()
        for spelling in (entry.name, entry.preset, entry.name.removeprefix("nanochat-"))
    }
    # A name can be near by several of its spellings; each counts once.
    close = get_close_matches(name.lower(), spellings)
    return list(dict.fromkeys(spellings[spelling] for spelling in close))


def ways_on(preset: str) -> str:
    """What to do without published weights."""
    return (
        f"train it with `nanochat train --preset {preset}`, or pass a model of the Hugging Face Hub as owner/name, "
        "or the path of a model directory or .gguf file"
    )
