"""This file holds the reader of other people's ``config.json``, by the type of model, with transformers' defaults.

What a configuration asks for and this package does not compute is refused, option by option; nothing is left out.

References
----------
.. [1] github.com/huggingface/transformers, src/transformers/models, version 5.24.
.. [2] github.com/ml-explore/mlx-lm, mlx_lm/models, version 0.32.2: minicpm, qwen3_5.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanochat.config import Activation, LayerKind, ModelConfig, check_field
from nanochat.errors import ConfigError
from nanochat.export.folders.fields import Fields
from nanochat.export.folders.rope import partial_rope_fields, read_rope
from nanochat.rotary import ntk_theta
from nanochat.shapes import delta_key_heads, layer_kinds, layer_pattern

__all__ = ["MODEL_TYPES", "TEXT_TYPES", "hybrid_fields", "read_configuration", "text_type"]

_ACTIVATIONS: Mapping[str, Activation] = {
    "relu2": "relu2_glu",
    "silu": "swiglu",
    "swish": "swiglu",
}
_KINDS: Mapping[object, LayerKind] = {"full_attention": "attention", "linear_attention": "delta"}
# Each with the values that change nothing.
_WITHOUT_PLACE: Mapping[str, tuple[object, ...]] = {
    "attention_bias": (False,),
    "attn_output_gate": (True,),
    "mlp_bias": (False,),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "sparse_config": (),
    "use_sliding_window": (False,),
}


@dataclass(frozen=True, kw_only=True)
class _Family:
    """What transformers takes for granted in a type of model; without a `rope_theta`, it must be written."""

    context_length: int
    hidden_act: str = "silu"
    rope_theta: float | None = 10_000.0
    norm_eps: float = 1e-6
    qk_norm: bool = False
    sub_norm: bool = False
    attention_gate: bool = False
    head_dim: int | None = None
    rotated_share: float = 1.0


_FAMILIES: Mapping[str, _Family] = {
    "bitnet": _Family(
        context_length=2048, hidden_act="relu2", rope_theta=500_000.0, norm_eps=1e-5, sub_norm=True
    ),
    "llama": _Family(context_length=2048),
    "minicpm": _Family(context_length=2048),
    "qwen2": _Family(context_length=32768),
    "qwen3": _Family(context_length=32768, qk_norm=True, head_dim=128),
    # transformers and mlx-lm differ in the base that they take.
    "qwen3_5_text": _Family(
        context_length=32768,
        rope_theta=None,
        qk_norm=True,
        attention_gate=True,
        head_dim=256,
        rotated_share=0.25,
    ),
}
TEXT_TYPES = tuple(_FAMILIES)
# With parts that are no text, and a configuration for those that are.
_WHOLE: Mapping[str, str] = {
    "prism_hadamard_qwen35": "qwen3_5_text",
    "qwen3_5": "qwen3_5_text",
}
MODEL_TYPES = (*_FAMILIES, *_WHOLE)


def text_type(fields: Mapping[str, object]) -> str:
    """The type of the model that reads and writes text, one of `TEXT_TYPES`, of a type in `MODEL_TYPES`."""
    kind = str(fields["model_type"])
    return _WHOLE.get(kind, kind)


def read_configuration(fields: Mapping[str, object]) -> dict[str, Any]:
    """The fields of our configuration, save for what tensors say, of a type in `MODEL_TYPES`.

    Those are the storage of tables and gates, and the blocks of ternary matrices.
    """
    kind = text_type(fields)
    family, whole = _FAMILIES[kind], Fields(fields)
    text = whole
    if kind != whole.get("model_type"):
        text = whole.inside("text_config") if "text_config" in whole else whole
    _refuse_options(text)
    width, num_heads = text.count("hidden_size"), text.count("num_attention_heads")
    num_layers = text.count("num_hidden_layers")
    head_dim = text.count("head_dim", family.head_dim or width // num_heads or 1)
    context_length = text.count("max_position_embeddings", family.context_length)
    # Before anything is computed of them.
    for name, value in (
        ("width", width),
        ("num_layers", num_layers),
        ("head_dim", head_dim),
        ("context_length", context_length),
    ):
        check_field(name, value)
    activation = text.get("hidden_act") if "hidden_act" in text else family.hidden_act
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise text.wrong(
            "hidden_act", f"one of {', '.join(_ACTIVATIONS)}, which this package computes"
        )
    if family.sub_norm and num_heads * head_dim != width:
        raise ConfigError(
            f"num_attention_heads={num_heads} of head_dim={head_dim}: the norm of what attention gives has "
            f"hidden_size={width} numbers, which must be their product"
        )
    found: dict[str, Any] = {
        "vocab_size": text.count("vocab_size"),
        "width": width,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": text.count("num_key_value_heads", num_heads),
        "head_dim": head_dim,
        "ffn_width": text.count("intermediate_size"),
        "context_length": context_length,
        "activation": _ACTIVATIONS[activation],
        "qk_norm": family.qk_norm,
        "sub_norm": family.sub_norm,
        "attention_gate": family.attention_gate,
        "tie_embeddings": _is_tied(whole, text),
        "num_streams": 1,
        "norm_eps": text.number("rms_norm_eps", family.norm_eps),
        **read_rope(
            text,
            theta=family.rope_theta,
            usual_share=family.rotated_share,
            head_dim=head_dim,
            context_length=context_length,
        ),
    }
    if kind == "qwen3_5_text":
        return found | _delta(text, num_layers)
    _require_attention(text)
    return found | (_scales(text, width, num_layers) if kind == "minicpm" else {})


def hybrid_fields(config: ModelConfig) -> dict[str, object]:
    """What `read_configuration` reads of the rotation and the Gated DeltaNet layers of a ``qwen3_5_text``.

    Each n-th layer, and no other, must attend.
    """
    return {
        **partial_rope_fields(
            theta=ntk_theta(config),
            dims=config.rope_dims or config.head_dim,
            head_dim=config.head_dim,
        ),
        "full_attention_interval": layer_kinds(config).index("attention") + 1,
        "linear_num_value_heads": config.delta_heads,
        "linear_num_key_heads": delta_key_heads(config),
        "linear_key_head_dim": config.delta_key_dim,
        "linear_value_head_dim": config.delta_value_dim,
        "linear_conv_kernel_dim": config.delta_conv_width,
    }


def _refuse_options(text: Fields) -> None:
    for name, harmless in _WITHOUT_PLACE.items():
        value = text.get(name)
        if value is not None and not any(
            type(value) is type(one) and value == one for one in harmless
        ):
            raise ConfigError(f"{name} is {value!r:.80}: this package has no place for it")


def _is_tied(whole: Fields, text: Fields) -> bool:
    tied = text.flag("tie_word_embeddings", whole.flag("tie_word_embeddings", False))
    if whole.flag("tie_word_embeddings", tied) != tied:
        raise ConfigError(
            f"tie_word_embeddings is {not tied}, and {tied} in text_config: programs differ in which they take; make "
            "both the same"
        )
    return tied


def _require_attention(text: Fields) -> None:
    kinds = text.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise ConfigError(
            f"layer_types is {kinds!r:.80}: this package attends to all tokens in every layer of this type of model"
        )


def _scales(text: Fields, width: int, num_layers: int) -> dict[str, float]:
    """The factors of minicpm, without which another model would be computed."""
    depth, base = text.number("scale_depth"), text.number("dim_model_base")
    if not base > 0:
        raise text.wrong("dim_model_base", "a positive number")
    return {
        "embedding_scale": text.number("scale_emb"),
        "residual_scale": depth / math.sqrt(num_layers),
        "logit_scale": width / base,
    }


def _delta(text: Fields, num_layers: int) -> dict[str, Any]:
    """Gated DeltaNet, and which layers have it; mlx-lm's own defaults are others than transformers'."""
    interval = text.count("full_attention_interval", 4)
    kinds: list[LayerKind] = [
        "attention" if (i + 1) % interval == 0 else "delta" for i in range(num_layers)
    ]
    stated = text.get("layer_types")
    if stated is not None:
        if (
            not isinstance(stated, list)
            or len(stated) != num_layers
            or not all(isinstance(kind, str) and kind in _KINDS for kind in stated)
        ):
            raise text.wrong(
                "layer_types", f"a list of {num_layers} of {' and '.join(map(str, _KINDS))}"
            )
        own = [_KINDS[kind] for kind in stated]
        if "full_attention_interval" in text and own != kinds:
            number = next(i for i, kind in enumerate(own) if kind != kinds[i])
            raise ConfigError(
                f"layer_types has {stated[number]!r} for layer {number}, which is of the other kind by "
                f"full_attention_interval ({interval}); fetch the file again"
            )
        kinds = own
    return {
        "layer_pattern": layer_pattern(kinds),
        "delta_heads": text.count("linear_num_value_heads"),
        "delta_key_heads": text.count("linear_num_key_heads"),
        "delta_key_dim": text.count("linear_key_head_dim"),
        "delta_value_dim": text.count("linear_value_head_dim"),
        "delta_conv_width": text.count("linear_conv_kernel_dim"),
    }
