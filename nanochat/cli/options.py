"""This file holds the arguments and options that several verbs share."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import click

from nanochat import backends
from nanochat.cli.run import as_file_errors

if TYPE_CHECKING:
    from nanochat.config import ModelConfig
    from nanochat.generation import Options
    from nanochat.lm import Model
    from nanochat.ops import Storage

__all__ = [
    "as_json_option",
    "backend_option",
    "find_config",
    "generation_options",
    "kv_cache_option",
    "load_model",
    "model_argument",
    "read_options",
    "threads_option",
]

Command = TypeVar("Command", bound=Callable[..., object])

model_argument = click.argument("model", default="nanochat-tiny", metavar="[MODEL]")
backend_option = click.option(
    "--backend",
    type=click.Choice(["auto", *backends.NAMES, *backends.GRAPHS]),
    default="auto",
    show_default=True,
    help="What computes; `nanochat doctor` shows what auto chooses.",
)
kv_cache_option = click.option(
    "--kv-cache",
    type=click.Choice(["float32", "float16", "int8"]),
    default="float32",
    show_default=True,
    help="What keys and values are kept in; the narrow ones round, and are faster in a long context.",
)
threads_option = click.option(
    "--threads",
    "num_threads",
    type=click.IntRange(min=1, max=256),
    help="Threads of the CPU that share the work.  [default: one for each physical core]",
)
as_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of text."
)

_shown = functools.partial(click.option, show_default=True)
_GENERATION = (
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        help="Most tokens to generate.  [default: 256, or what the context has left]",
    ),
    _shown(
        "--temperature",
        default=0.7,
        help="How freely to choose; 0 always takes the most probable token.",
    ),
    _shown("--top-k", default=0, help="Choose among this many most probable tokens; 0 is off."),
    _shown(
        "--top-p",
        default=1.0,
        help="Choose among the fewest tokens of this total probability; 1 is off.",
    ),
    _shown(
        "--min-p",
        default=0.0,
        help="Choose among tokens at least this fraction as probable as the first; 0 is off.",
    ),
    _shown(
        "--repetition-penalty",
        default=1.0,
        help="Make tokens that were there before less probable; 1 is off.",
    ),
    click.option(
        "--stop", multiple=True, help="Text that ends the answer and is left out of it; repeatable."
    ),
    _shown("--seed", default=0, help="The same seed gives the same text."),
)


def generation_options(command: Command) -> Command:
    """Add the options of `nanochat.generation.Options`."""
    for option in reversed(_GENERATION):
        command = option(command)
    return command


def read_options(values: Mapping[str, object]) -> "Options":
    """The generation options of a command line, without those that were not given and have no default."""
    from nanochat import generation

    # The options are declared with the names and types of the arguments.
    options = cast("Options", {name: value for name, value in values.items() if value is not None})
    # Better refused now than when a large model has been loaded.
    generation.read_options(options)
    return options


def load_model(
    name: str,
    backend: str,
    kv_cache: "Storage" = "float32",
    num_threads: int | None = None,
) -> "Model":
    """Load a model for a verb."""
    from nanochat.lm import from_pretrained

    with as_file_errors():
        return from_pretrained(name, backend=backend, kv_cache=kv_cache, num_threads=num_threads)


def find_config(name: str) -> "ModelConfig":
    """The configuration of a preset or a model; no weights are loaded."""
    from nanochat.export.formats import load_config
    from nanochat.presets import PRESETS, preset
    from nanochat.zoo.catalog import CATALOG
    from nanochat.zoo.hub import resolve

    if name in PRESETS:
        return preset(name)
    if name in CATALOG and not CATALOG[name].ships and not Path(name).is_dir():
        return preset(CATALOG[name].preset)
    path = resolve(name)
    with as_file_errors():
        return load_config(path)
