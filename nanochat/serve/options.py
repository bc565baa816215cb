"""This file holds the options of a server as text: from the environment, and as another program passes them."""

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

__all__ = ["ServeOptions", "serve_options"]

Options = TypeVar("Options")

_LOGGER = logging.getLogger(__name__)
_PREFIX = "NANOCHAT_SERVE_"
# Those that click names after the argument, not the flag.
_VARIABLES = {"threads": "num_threads"}


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
    kinds: tuple[type[Any], ...] = (Settings, _ModelOptions)
    names = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    for name in given:
        if name not in names:
            raise InputError(
                f"there is no option {name!r:.80}{did_you_mean(name, names)}: name one of {', '.join(sorted(names))}"
            )
    variables = {
        name: os.environ.get(_PREFIX + _VARIABLES.get(name, name).upper()) for name in names
    }
    values = {**{name: value for name, value in variables.items() if value}, **given}
    if without := sorted(values.keys() & set(ignored)):
        _LOGGER.warning(
            "%s: without effect here, where another program listens", ", ".join(without)
        )
    values = {name: value for name, value in values.items() if name not in ignored}
    settings = _read(Settings, values)
    asked = _read(_ModelOptions, values)
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


def _read(kind: type[Options], values: Mapping[str, object]) -> Options:
    """Those of the values that are fields of a dataclass, as one."""
    read = {}
    for name, hint in get_type_hints(kind).items():
        if name not in values:
            continue
        value = values[name]
        if isinstance(value, str):
            if name in SIZES:
                value = read_size(value)
            elif get_origin(hint) is tuple:
                value = value.split()
        try:
            read[name] = msgspec.convert(value, hint, strict=False, dec_hook=_path)
        except msgspec.ValidationError as error:
            raise InputError(f"{name}={value!r:.80}: {error}") from error
    return kind(**read)


def _path(kind: type[Path], value: object) -> Path:
    return kind(str(value))
