"""This file holds the arguments and options that several verbs share."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
from click.shell_completion import CompletionItem

from nanochat import backends
from nanochat.cli.run import as_file_errors
from nanochat.errors import InputError
from nanochat.sandbox.layers import KINDS

if TYPE_CHECKING:
    from nanochat.config import ModelConfig
    from nanochat.generation.options import GenerationOptions
    from nanochat.zoo.entries import Entry

__all__ = [
    "Command",
    "as_json_option",
    "backend_option",
    "find_config",
    "find_stated",
    "meant_to_think",
    "model_argument",
    "sandbox_option",
    "tables_option",
    "threads_option",
    "unpinned_option",
]

Command = TypeVar("Command", bound=Callable[..., object])


def _complete_model(
    _context: click.Context, _argument: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of the catalog that ship or are published, and files."""
    from nanochat.zoo.catalog import CATALOG

    names = [entry.name for entry in CATALOG.values() if entry.files]
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return [*found, CompletionItem(incomplete, type="file")]


model_argument = click.argument(
    "model", default="nanochat-tiny", metavar="[MODEL]", shell_complete=_complete_model
)
backend_option = click.option(
    "--backend",
    type=click.Choice(["auto", *backends.BACKENDS]),
    default="auto",
    show_default=True,
    help="What computes; `nanochat doctor` shows what auto chooses.",
)
sandbox_option = click.option(
    "--sandbox",
    type=click.Choice(KINDS),
    default="auto",
    show_default=True,
    help="What programs run in; `nanochat doctor` shows what holds here.",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1, max=256),
    help="Threads of the CPU that share the work; more than cores are slower.  [default: one for each physical core]",
)
unpinned_option = click.option(
    "--unpinned",
    is_flag=True,
    help="Take what is at the Hub today for a name of which the catalog knows no commit.",
)
tables_option = click.option(
    "--tables",
    type=click.Choice(["int8"]),
    help="Round embedding and head to 8 bits, and say what that changes.  [default: as they are stored]",
)
as_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of text."
)


def find_config(name: str) -> "ModelConfig":
    """The configuration of a preset, a model, or a name of the catalog; no weights are loaded."""
    from nanochat.export.formats import load_config

    found = _find(name)
    if not isinstance(found, Path):
        return found
    with as_file_errors():
        return load_config(found)


def find_stated(name: str) -> "tuple[GenerationOptions, str]":
    """How a model's authors say that tokens be chosen, and where; nothing of a preset."""
    from nanochat.export.formats import load_generation
    from nanochat.generation.stated import stated_options
    from nanochat.zoo.catalog import NAME as CATALOG_NAME

    found = _find(name)
    if not isinstance(found, Path):
        entry = _entry(name)
        if entry is None or not entry.sampling:
            return {}, ""
        return stated_options(entry.sampling, where=CATALOG_NAME), CATALOG_NAME
    with as_file_errors():
        generation, where = load_generation(found)
    return stated_options(generation, where=where), where


def meant_to_think(name: str, template: str) -> bool | None:
    """Whether a model is meant to think, as the catalog says; `None` where its template has no switch for that."""
    from nanochat.text.chat import thinking_variables
    from nanochat.zoo.catalog import entry_of
    from nanochat.zoo.hub import split_name

    model = split_name(name)[0]
    entry = _entry(model) or (None if Path(name).exists() else entry_of(model))
    if entry is None or not entry.thinking:
        return None
    thinking = entry.thinking == "on"
    try:
        return thinking if thinking_variables(template, thinking=thinking, budget=None) else None
    except InputError:
        return None


def _find(name: str) -> "ModelConfig | Path":
    """The preset of that name, or the place of the model."""
    from nanochat.presets import PRESETS, preset
    from nanochat.zoo.hub import resolve

    if name in PRESETS:
        return preset(name)
    entry = _entry(name)
    if entry is not None and not entry.ships and entry.config is not None:
        return entry.config
    return resolve(name)


def _entry(name: str) -> "Entry | None":
    """What the catalog says of a name; nothing of what is on this disk."""
    from nanochat.zoo.catalog import CATALOG, canonical

    return None if Path(name).is_dir() else CATALOG.get(canonical(name))
