"""This file holds how a ``config.json`` says that queries and keys are rotated, with transformers' own defaults.

References
----------
.. [1] github.com/huggingface/transformers, src/transformers/modeling_rope_utils.py, version 5.24.
"""

import logging
import math
from typing import Any

from nanochat.config import check_field
from nanochat.errors import ConfigError
from nanochat.export.folders.fields import Fields

__all__ = ["partial_rope_fields", "read_rope"]

_LOGGER = logging.getLogger(__name__)

# Version 5 of transformers writes one object where version 4 wrote a number and an object.
_OBJECTS = ("rope_scaling", "rope_parameters")
# What an object may hold. Sections are of positions in a picture, of which those of texts are equal.
_KNOWN = {
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "factor",
    "high_freq_factor",
    "long_factor",
    "low_freq_factor",
    "mrope_interleaved",
    "mrope_section",
    "mscale",
    "mscale_all_dim",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rope_theta",
    "rope_type",
    "short_factor",
    "truncate",
    "type",
}
_KINDS = ("default", "mrope", "linear", "llama3", "yarn", "longrope")


def read_rope(
    fields: Fields, *, theta: float | None, usual_share: float, head_dim: int, context_length: int
) -> dict[str, Any]:
    """The fields of our configuration for the rotation.

    Parameters
    ----------
    fields : Fields
        Of the whole model.
    theta : float, optional
        The base where none is written; without one, it must be.
    usual_share : float
        Of a head's features that are rotated, where none is written.
    head_dim, context_length : int
    """
    rope = _merged(fields)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in _KINDS:
        raise ConfigError(
            f"rope_type is {kind!r:.80}: this package rotates by {', '.join(_KINDS)}; pass a model with one of these"
        )
    name = "partial_rotary_factor"
    share = (rope if name in rope else fields).number(name, usual_share)
    if share != 1 and usual_share == 1:
        raise ConfigError(
            f"partial_rotary_factor is {share:g}: models of this type rotate whole heads, and programs differ in what "
            "they make of it; pass a model without"
        )
    if not 0 < share <= 1:
        raise ConfigError(
            f"partial_rotary_factor is {share:g}: must be above 0, and at most 1, the whole head"
        )
    dims = int(head_dim * share)
    found: dict[str, Any] = {
        "rope_theta": (rope if "rope_theta" in rope else fields).number("rope_theta", theta),
        "rope_dims": 0 if dims == head_dim else dims,
    }
    if not dims:
        raise ConfigError(
            f"partial_rotary_factor is {share:g}: of {head_dim} features of a head, some must be rotated"
        )
    match kind:
        case "linear":
            return found | {"rope_type": "linear", "rope_scale": rope.number("factor")}
        case "llama3":
            return found | {
                "rope_type": "llama3",
                "rope_scale": rope.number("factor"),
                "rope_original_context": _original_context(fields, rope),
                "rope_low": rope.number("low_freq_factor"),
                "rope_high": rope.number("high_freq_factor"),
            }
        case "yarn":
            return found | _yarn(fields, rope)
        case "longrope":
            return found | _longrope(fields, rope, dims=dims, context_length=context_length)
    return found


def partial_rope_fields(*, theta: float, dims: int, head_dim: int) -> dict[str, object]:
    """What `read_rope` reads of a plain rotation of the first features of a head, as programs of today do.

    >>> partial_rope_fields(theta=1e7, dims=64, head_dim=256)["rope_parameters"]
    {'rope_type': 'default', 'rope_theta': 10000000.0, 'partial_rotary_factor': 0.25}
    """
    share = dims / head_dim
    # They round the product down.
    while int(head_dim * share) < dims:
        share = math.nextafter(share, 2)
    rope = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": share}
    return {"rope_parameters": rope}


def _merged(fields: Fields) -> Fields:
    """What both objects say, which must not contradict each other."""
    values: dict[str, object] = {}
    for name in _OBJECTS:
        own = fields.inside(name)
        for key in own.names:
            value = own.get(key)
            if isinstance(value, dict):
                raise own.wrong(key, "one value for all layers, as this package rotates all alike")
            if key not in _KNOWN:
                _LOGGER.warning("%s.%s is no field of a rotation, and is not read", name, key)
            if key in values and values[key] != value:
                raise ConfigError(
                    f"{name}.{key} is {value!r:.80}, and {values[key]!r:.80} in {_OBJECTS[0]}: programs differ in "
                    "which they take; delete the one that is wrong"
                )
            values[key] = value
    return Fields(values, where="rope_parameters.")


def _original_context(fields: Fields, rope: Fields) -> int:
    """The tokens that a model was first trained for, which programs guess differently where they are not written."""
    name = "original_max_position_embeddings"
    original = (fields if name in fields and name not in rope else rope).count(name)
    check_field("rope_original_context", original)
    return original


def _yarn(fields: Fields, rope: Fields) -> dict[str, Any]:
    factor = rope.number("factor")
    if not rope.flag("truncate", True):
        raise rope.wrong("truncate", "true: this package rounds the ends of the ramp outwards")
    magnitude = _magnitude(factor, 1.0)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        numerator, denominator = (
            _magnitude(factor, rope.number(name)) for name in ("mscale", "mscale_all_dim")
        )
        if not denominator > 0:
            raise rope.wrong("mscale_all_dim", "a number that gives a positive magnitude")
        magnitude = numerator / denominator
    magnitude = rope.number("attention_factor", magnitude)
    if factor == 1:
        return {"rope_magnitude": magnitude}
    return {
        "rope_type": "yarn",
        "rope_scale": factor,
        "rope_original_context": _original_context(fields, rope),
        "rope_low": rope.number("beta_slow", 1.0) or 1.0,
        "rope_high": rope.number("beta_fast", 32.0) or 32.0,
        "rope_magnitude": magnitude,
    }


def _magnitude(factor: float, share: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * share * math.log(factor) + 1.0


def _longrope(fields: Fields, rope: Fields, *, dims: int, context_length: int) -> dict[str, Any]:
    original = _original_context(fields, rope)
    factor = rope.number("factor", context_length / original)
    usual = 1.0
    if factor > 1 and original > 1:
        usual = math.sqrt(1 + math.log(factor) / math.log(original))
    is_short = context_length <= original
    if not is_short:
        _LOGGER.warning(
            "long_factor is used for texts of any length, where other programs use short_factor up to %d tokens: this "
            "package has one rotation for all positions",
            original,
        )
    return {
        "rope_type": "factors",
        "rope_factors": rope.numbers("short_factor" if is_short else "long_factor", dims // 2),
        "rope_magnitude": rope.number("attention_factor", usual),
    }
