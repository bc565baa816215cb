"""This file holds the reader of configurations of BitNet models for Hugging Face transformers.

What a configuration asks for and this package does not compute is refused, option by option; nothing is left out.

References
----------
.. [1] github.com/huggingface/transformers, src/transformers/models and quantizers, version 5.23.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nanochat.config import Activation, ModelConfig
from nanochat.errors import ConfigError

__all__ = ["MODEL_TYPES", "StoredScale", "read_model", "read_quantization"]

# What stands beside a linear's weight: the inverse of the scale, the scale, or nothing.
StoredScale = Literal["inverse", "direct", "none"]

_ACTIVATIONS: dict[str, Activation] = {"relu2": "relu2_glu", "silu": "swiglu", "swish": "swiglu"}
# Scalings that change nothing where their factor is 1.
_SCALED_BY_FACTOR = ("linear", "llama3")
# Names of modules that are no ternary linears, which alone may be left as they are.
_NOT_TERNARY = {"lm_head", "model.embed_tokens", "embed_tokens", "model.norm", "norm"}


@dataclass(frozen=True, kw_only=True)
class _Family:
    """What transformers takes for granted in a type of model."""

    hidden_act: str
    rope_theta: float
    norm_eps: float
    context_length: int
    qk_norm: bool = False
    sub_norm: bool = False
    head_dim: int | None = None


_FAMILIES = {
    "bitnet": _Family(
        hidden_act="relu2", rope_theta=500_000.0, norm_eps=1e-5, context_length=2048, sub_norm=True
    ),
    "llama": _Family(hidden_act="silu", rope_theta=10_000.0, norm_eps=1e-6, context_length=2048),
    "qwen3": _Family(
        hidden_act="silu",
        rope_theta=10_000.0,
        norm_eps=1e-6,
        context_length=32768,
        qk_norm=True,
        head_dim=128,
    ),
}
MODEL_TYPES = tuple(_FAMILIES)


def read_model(fields: Mapping[str, object]) -> ModelConfig:
    """Our configuration of a model whose type is in `MODEL_TYPES`, from the content of its ``config.json``."""
    family = _FAMILIES[str(fields["model_type"])]
    _refuse_options(fields)
    width = _count(fields, "hidden_size")
    num_heads = _count(fields, "num_attention_heads")
    head_dim = _optional(fields, "head_dim")
    if head_dim is None:
        head_dim = family.head_dim or width // num_heads
    activation = fields.get("hidden_act", family.hidden_act)
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise ConfigError(
            f"hidden_act is {activation!r:.80}: this package computes {', '.join(_ACTIVATIONS)}"
        )
    if family.sub_norm and num_heads * head_dim != width:
        raise ConfigError(
            f"num_attention_heads={num_heads} of head_dim={head_dim}: the norm of what attention gives has "
            f"hidden_size={width} numbers, which must be their product"
        )
    tied = fields.get("tie_word_embeddings")
    tied = False if tied is None else tied
    if not isinstance(tied, bool):
        raise ConfigError(f"tie_word_embeddings is {tied!r:.80}: write true or false")
    context_length = _optional(fields, "max_position_embeddings")
    num_kv_heads = _optional(fields, "num_key_value_heads")
    return ModelConfig(
        vocab_size=_count(fields, "vocab_size"),
        width=width,
        num_layers=_count(fields, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_heads if num_kv_heads is None else num_kv_heads,
        head_dim=head_dim,
        ffn_width=_count(fields, "intermediate_size"),
        context_length=family.context_length if context_length is None else context_length,
        activation=_ACTIVATIONS[activation],
        qk_norm=family.qk_norm,
        sub_norm=family.sub_norm,
        rope_theta=_rope_theta(fields, family),
        tie_embeddings=tied,
        num_streams=1,
        table_format="dense",
        weight_block="row",
        activation_block="token",
        norm_eps=_number("rms_norm_eps", fields.get("rms_norm_eps", family.norm_eps)),
    )


def _refuse_options(fields: Mapping[str, object]) -> None:
    for name in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if fields.get(name):
            raise ConfigError(f"{name} is {fields[name]!r:.80}: this package has no place for it")
    kinds = fields.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise ConfigError(
            f"layer_types is {kinds!r:.80}: this package attends to all tokens in every layer"
        )


def _rope_theta(fields: Mapping[str, object], family: _Family) -> float:
    # Version 5 of transformers writes one object where version 4 wrote a number and an object.
    theta = fields.get("rope_theta", family.rope_theta)
    for name in ("rope_scaling", "rope_parameters"):
        rope = fields.get(name) or {}
        if not isinstance(rope, dict):
            raise ConfigError(f"{name} is {rope!r:.80}: must be an object or null")
        kind = rope.get("rope_type", rope.get("type", "default"))
        is_scaled = kind not in _SCALED_BY_FACTOR or rope.get("factor") != 1.0
        if kind != "default" and is_scaled:
            raise ConfigError(
                f"{name} is {rope!r:.200}: this package rotates heads by rope_theta alone, and has no scaling of kind "
                f'{kind!r:.40} for longer texts; pass a model without one, whose rope_type is "default"'
            )
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise ConfigError(
                f"{name} is {rope!r:.200}: this package rotates whole heads; pass a model without partial_rotary_factor"
            )
        theta = rope.get("rope_theta", theta)
    return _number("rope_theta", theta)


def read_quantization(settings: object) -> StoredScale:
    """What stands beside the weights, by ``quantization_config``; nothing where they are rounded as they are read."""
    if not isinstance(settings, dict) or settings.get("quant_method") != "bitnet":
        raise ConfigError(
            f'quantization_config is {settings!r:.80}: must have "quant_method": "bitnet", without which the linears '
            "are not ternary; pass a ternary model"
        )
    if settings.get("use_rms_norm"):
        raise ConfigError("use_rms_norm is true: this package has no norm inside of linears")
    left = settings.get("modules_to_not_convert")
    if left is not None:
        named = left if isinstance(left, list) else [left]
        names = {str(name).removesuffix(".weight") for name in named}
        if not isinstance(left, list) or not names <= _NOT_TERNARY:
            raise ConfigError(
                f"modules_to_not_convert is {left!r:.200}: in this package every linear is ternary"
            )
        if "lm_head" not in names:
            raise ConfigError(
                f"modules_to_not_convert is {left!r:.200}, without lm_head: this package has no ternary head"
            )
    kind = settings.get("linear_class", "bitlinear")
    mode = settings.get("quantization_mode", "offline")
    if kind not in ("bitlinear", "autobitlinear") or mode not in ("offline", "online"):
        raise ConfigError(
            f"linear_class is {kind!r:.80} and quantization_mode {mode!r:.80}: must be bitlinear or autobitlinear, "
            "and offline or online"
        )
    if kind == "bitlinear":
        return "inverse"
    return "none" if mode == "online" else "direct"


def _count(fields: Mapping[str, object], name: str) -> int:
    value = _optional(fields, name)
    if value is None:
        raise ConfigError(f"{name} is missing: fetch the file again")
    return value


def _optional(fields: Mapping[str, object], name: str) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise ConfigError(f"{name} is {value!r:.80}: must be a whole number, 1 or more")
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} is {value!r:.80}: must be a number")
    # The configuration bounds it; an integer may be too large for a float.
    return float(value) if abs(value) < 1e30 else math.inf
