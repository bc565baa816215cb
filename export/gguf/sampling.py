"""This file holds how a model's authors want tokens to be chosen, in the keys that llama.cpp has for it.

References
----------
.. [1] github.com/ggml-org/llama.cpp, gguf-py, ``Keys.General.SAMPLING_*``, and common/common.cpp, which takes them as
   the defaults of its options.
"""

import logging
from collections.abc import Mapping
from typing import cast

import gguf
import numpy as np

from nanochat.export.gguf.container import Field, MetadataValue
from nanochat.generation.stated import stated_options

__all__ = ["SAMPLING", "new_sampling", "read_sampling"]

# Where it stands, for people.
SAMPLING = "general.sampling"

_KEYS = gguf.Keys.General
# By the names that generation_config.json has.
_NAMES = {
    "temperature": _KEYS.SAMPLING_TEMP,
    "top_k": _KEYS.SAMPLING_TOP_K,
    "top_p": _KEYS.SAMPLING_TOP_P,
    "min_p": _KEYS.SAMPLING_MIN_P,
    "repetition_penalty": _KEYS.SAMPLING_PENALTY_REPEAT,
}
# What there is no option for here; 0 switches each of them off.
_UNKNOWN = (_KEYS.SAMPLING_SEQUENCE, _KEYS.SAMPLING_XTC_PROBABILITY, _KEYS.SAMPLING_MIROSTAT)
_LOGGER = logging.getLogger(__name__)


def new_sampling(generation: Mapping[str, object]) -> dict[str, Field]:
    """The keys of what a ``generation_config.json`` states."""
    stated = stated_options(generation, where="generation_config.json")
    numbers = cast(Mapping[str, float], stated)
    return {
        key: np.int32(numbers[name]) if name == "top_k" else np.float32(numbers[name])
        for name, key in _NAMES.items()
        if name in numbers
    }


def read_sampling(metadata: Mapping[str, MetadataValue]) -> dict[str, object]:
    """What the keys of a file state, as a ``generation_config.json`` would; empty if they state nothing."""
    stated: dict[str, object] = {}
    for name, key in _NAMES.items():
        value = metadata.get(key)
        if isinstance(value, float):
            # The decimal number that was rounded to float32.
            value = float(str(np.float32(value)))
        if value is not None:
            stated[name] = value
    overlooked = [key for key in _UNKNOWN if metadata.get(key)]
    if stated.get("repetition_penalty", 1.0) != 1.0 and _KEYS.SAMPLING_PENALTY_LAST_N in metadata:
        overlooked.append(_KEYS.SAMPLING_PENALTY_LAST_N)
    for key in overlooked:
        _LOGGER.warning("%s is %.40r, for which there is no option: overlooked", key, metadata[key])
    return {"do_sample": True, **stated} if stated else {}
