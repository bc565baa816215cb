"""This file holds the options of a server by their names: as text, from a file, and as the command has read them."""

import dataclasses
import functools
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_origin, get_type_hints

import msgspec

from nanochat.errors import InputError, did_you_mean
from nanochat.lm import Model
from nanochat.ops import Storage
from nanochat.serve.loading import ToServe
from nanochat.serve.settings import SIZES, Settings, read_size

__all__ = ["ServeOptions", "made_options", "serve_options", "typed_options"]

Options = TypeVar("Options")

_LOGGER = logging.getLogger(__name__)
_PREFIX = "NANOCHAT_SERVE_"


@dataclass(frozen=True, kw_only=True)
class _ModelOptions:
    """How models are loaded; names and meanings are those of the flags of `nanochat serve`."""

    model: tuple[str, ...] = ("nanochat-tiny",)
    served_name: tuple[str, ...] = ()
    backend: str = "auto"
    threads: int | None = None
    kv_cache: Storage = "float32"
    tables: Literal["int8"] | None = None
    unpinned: bool = False


_KINDS: tuple[type[Any], ...] = (Settings, _ModelOptions)


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What was asked for: how to serve, which models, and the threads of each, None being all that there are."""

    settings: Settings
    models: Sequence[ToServe]
    threads: int | None


def serve_options(given: Mapping[str, object], *, ignored: Collection[str]) -> ServeOptions:
    """Settings and models by the names of their options, each with what was given, else with its variable's value.

    Several values of one option are separated by spaces.

    Parameters
    ----------
    ignored : collection of str
        Settings that have no effect here, which a warning says if one is given.

    Raises
    ------
    InputError
        If a name is unknown or a value is wrong.
    """
    names = [field.name for kind in _KINDS for field in dataclasses.fields(kind)]
    for name in given:
        if name not in names:
            raise InputError(
                f"there is no option {name!r:.80}{did_you_mean(name, names)}: name one of {', '.join(sorted(names))}"
            )
    variables = {name: os.environ.get(_PREFIX + name.upper()) for name in names}
    values = {**{name: value for name, value in variables.items() if value}, **given}
    if without := sorted(values.keys() & set(ignored)):
        _LOGGER.warning(
            "%s: without effect here, where another program listens", ", ".join(without)
        )
    values = {name: value for name, value in values.items() if name not in ignored}
    return made_options(typed_options(values, is_text=True))


def made_options(values: Mapping[str, Any]) -> ServeOptions:
    """Settings and models from values by the names of their options, which have the types of these.

    Raises
    ------
    InputError, ConfigError
        If they do not go together.
    """
    settings, asked = _made(Settings, values), _made(_ModelOptions, values)
    if twice := next((name for name in asked.model if asked.model.count(name) > 1), None):
        raise InputError(f"model {twice!r:.200} is there twice: name it once")
    if len(asked.model) > 1 and asked.served_name:
        raise InputError("served_name is for one model: leave it out, or pass one model")
    models = [
        ToServe(
            load=functools.partial(
                Model.from_pretrained,
                model,
                backend=asked.backend,
                num_threads=asked.threads,
                kv_cache=asked.kv_cache,
                tables=asked.tables,
                unpinned=asked.unpinned,
            ),
            names=asked.served_name or (model,),
        )
        for model in asked.model
    ]
    return ServeOptions(settings=settings, models=models, threads=asked.threads)


def typed_options(values: Mapping[str, object], *, is_text: bool) -> dict[str, Any]:
    """Values by the names of their options, with the types of these.

    Parameters
    ----------
    is_text : bool
        Whether a text may stand for a number, a truth, or several values with spaces between them. Sizes such as 4GB
        are text in any case.

    Raises
    ------
    InputError
        If a value is no such thing.
    """
    hints = {name: hint for kind in _KINDS for name, hint in get_type_hints(kind).items()}
    read = {}
    for name, value in values.items():
        if name in SIZES and isinstance(value, str):
            read[name] = read_size(value)
            continue
        hint = hints[name]
        if is_text and isinstance(value, str) and get_origin(hint) is tuple:
            value = value.split()
        try:
            read[name] = msgspec.convert(value, hint, strict=not is_text, dec_hook=_path)
        except msgspec.ValidationError as error:
            raise InputError(f"{name}={value!r:.80}: {error}") from error
    return read


def _made(kind: type[Options], values: Mapping[str, Any]) -> Options:
    """A dataclass with those of the values that are its fields."""
    return kind(**{name: values[name] for name in get_type_hints(kind) if name in values})


def _path(kind: type[Path], value: object) -> Path:
    if not isinstance(value, str | Path):
        raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
    return kind(value)
