"""This file holds how the authors of a model say that its tokens be chosen, as ``generation_config.json`` has it."""

import logging
from collections.abc import Mapping

from nanochat.errors import InputError
from nanochat.generation.options import GenerationOptions, read_options

__all__ = ["in_words", "stated_options"]

# Options that have the same name there, and mean the same.
_NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_LOGGER = logging.getLogger(__name__)


def stated_options(generation: Mapping[str, object], *, where: str) -> GenerationOptions:
    """The options of sampling that a model's authors state, checked; what cannot be one is overlooked, with a warning.

    Parameters
    ----------
    generation : mapping
        Content of a ``generation_config.json``. One that says ``"do_sample": false`` states none: it is what programs
        write of their own.
    where : str
        Where that stands, for the warning.

    Examples
    --------
    >>> stated_options({"do_sample": True, "temperature": 0.6, "top_p": None, "eos_token_id": 2}, where="x")
    {'temperature': 0.6}
    """
    if generation.get("do_sample") is False:
        return {}
    stated: GenerationOptions = {}
    for name in _NAMES:
        value = generation.get(name)
        if value is None:
            continue
        one: GenerationOptions = {name: value}  # type: ignore[misc]  # it is one of its names
        try:
            read_options(one)
        except InputError as error:
            _LOGGER.warning("%s: %s; overlooked", where, error)
        else:
            stated.update(one)
    return stated


def in_words(options: Mapping[str, object]) -> str:
    """Options for people.

    >>> in_words({"temperature": 0.6, "top_k": 20})
    'temperature 0.6, top_k 20'
    """
    return ", ".join(f"{name} {value}" for name, value in options.items())
