"""This file holds the arguments and options that several verbs share."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
from click.shell_completion import CompletionItem

from nanochat import backends
from nanochat.cli.run import as_file_errors

if TYPE_CHECKING:
    from nanochat.config import ModelConfig
    from nanochat.generation.options import GenerationOptions

__all__ = [
    "Command",
    "as_json_option",
    "backend_option",
    "find_config",
    "find_stated",
    "model_argument",
    "threads_option",
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
threads_option = click.option(
    "--threads",
    "num_threads",
    type=click.IntRange(min=1, max=256),
    help="Threads of the CPU that share the work; more than cores are slower.  [default: one for each physical core]",
)
as_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of text."
)


def find_config(name: str) -> "ModelConfig":
    """The configuration of a preset or a model; no weights are loaded."""
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

    found = _find(name)
    if not isinstance(found, Path):
        return {}, ""
    with as_file_errors():
        generation, where = load_generation(found)
    return stated_options(generation, where=where), where


def _find(name: str) -> "ModelConfig | Path":
    """The preset of that name, or the place of the model."""
    from nanochat.presets import PRESETS, preset
    from nanochat.zoo.catalog import CATALOG, canonical
    from nanochat.zoo.hub import resolve

    if name in PRESETS:
        return preset(name)
    entry = CATALOG.get(canonical(name))
    if entry is not None and not entry.ships and not Path(name).is_dir():
        return preset(entry.preset)
    return resolve(name)
