"""This file holds the reader of the hyperparameters of other people's GGUF files, with llama.cpp's own defaults.

What a file asks for and this package does not compute is refused, key by key; nothing is left out.

References
----------
.. [1] github.com/ggml-org/llama.cpp, src/llama-model.cpp and src/models, commit 0c1e570.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nanochat.config import LayerKind, check_field
from nanochat.errors import ConfigError, FormatError
from nanochat.export.gguf.container import GgufFile, GgufTensor, MetadataValue
from nanochat.export.gguf.types import BF16, F16, F32, PACKINGS, Q4_0, Q6_K, Q8_0
from nanochat.shapes import layer_pattern

__all__ = ["ARCHITECTURES", "ROPE_FACTORS", "read_hyperparameters"]

_LOGGER = logging.getLogger(__name__)

# What an architecture has beside attention, RMSNorm and SwiGLU.
ARCHITECTURES: Mapping[str, Mapping[str, object]] = {
    "bitnet": {"qk_norm": False, "sub_norm": True},
    # Of bitnet.cpp, a fork of llama.cpp.
    "bitnet-b1.58": {"qk_norm": False, "sub_norm": True, "activation": "relu2_glu"},
    "llama": {"qk_norm": False},
    "minicpm": {"qk_norm": False},
    "qwen2": {"qk_norm": False},
    "qwen3": {"qk_norm": True},
    "qwen35": {"qk_norm": True, "attention_gate": True},
    "qwen3moe": {"qk_norm": True},
}
# Tensors by which frequencies are divided: at any length, up to the original one, and beyond it.
ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
_TABLE, _HEAD = "token_embd.weight", "output.weight"
# Each with the value that changes nothing.
_WITHOUT_PLACE: Mapping[str, tuple[object, ...]] = {
    "attention.clamp_kqv": (0.0,),
    "attention.scale": (0.0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "expert_shared_count": (0,),
    "expert_weights_scale": (0.0, 1.0),
    "rope.scaling.alpha": (0.0,),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "ssm.dt_b_c_rms": (False,),
}
_SCALES = ("embedding_scale", "residual_scale", "logit_scale")


def read_hyperparameters(architecture: str, file: GgufFile) -> dict[str, Any]:
    """The fields of our configuration, save for the blocks; the architecture is one of `ARCHITECTURES`.

    Of tensors, types and shapes are looked at, the numbers of factors of the rotation, and scales of 8-bit tables.
    """
    keys = _Hyperparameters(architecture, file.metadata)
    keys.refuse(() if architecture == "minicpm" else _SCALES)
    if _TABLE not in file.tensors:
        raise FormatError(f"the tensor {_TABLE} is missing; fetch the file again")
    width, num_heads = keys.count("embedding_length"), keys.count("attention.head_count")
    head_dim = keys.count("attention.key_length", width // num_heads)
    if keys.count("attention.value_length", head_dim) != head_dim:
        raise ConfigError(
            f"{keys.name('attention.value_length')} is {keys.count('attention.value_length')}, but heads have "
            f"{head_dim} features: this package has one width of heads"
        )
    num_layers = keys.count("block_count")
    # Before lists of layers are made.
    check_field("num_layers", num_layers)
    ahead = keys.count("nextn_predict_layers", 0)
    if ahead >= num_layers:
        raise ConfigError(
            f"{keys.name('nextn_predict_layers')} is {ahead}, of {num_layers} blocks: some must be the model's; fetch "
            "the file again"
        )
    tables = [file.tensors[name] for name in (_TABLE, _HEAD) if name in file.tensors]
    forms = [_form(tensor) for tensor in tables]
    fields: dict[str, Any] = {
        "sub_norm": False,
        **ARCHITECTURES[architecture],
        **_networks(architecture, keys),
        "vocab_size": tables[0].shape[0],
        "width": width,
        "num_layers": num_layers - ahead,
        "num_heads": num_heads,
        "num_kv_heads": keys.count("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "context_length": keys.count("context_length"),
        "norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "tie_embeddings": len(tables) == 1,
        "num_streams": 1,
        "table_format": forms[0],
        "head_format": "table" if len(set(forms)) == 1 else forms[1],
        **_rotation(keys, head_dim, file),
    }
    if architecture == "qwen35":
        fields |= _delta(keys, file, num_layers - ahead)
    if architecture == "minicpm":
        # Older files lack them, and programs differ in what they take then.
        fields |= {name: keys.number(name) for name in _SCALES}
    return fields


def _networks(architecture: str, keys: "_Hyperparameters") -> dict[str, int]:
    if architecture == "qwen3moe":
        return {
            "ffn_width": 0,
            "num_experts": keys.count("expert_count"),
            "experts_per_token": keys.count("expert_used_count"),
            "expert_width": keys.count("expert_feed_forward_length"),
        }
    if keys.count("expert_count", 0):
        raise ConfigError(
            f"{keys.name('expert_count')} is {keys.count('expert_count')}: of mixtures of experts this package "
            "reads those of qwen3moe"
        )
    return {"ffn_width": keys.count("feed_forward_length")}


def _delta(keys: "_Hyperparameters", file: GgufFile, num_layers: int) -> dict[str, Any]:
    """Gated DeltaNet, and which layers have it."""
    heads, inner = keys.count("ssm.time_step_rank"), keys.count("ssm.inner_size")
    if inner % heads:
        raise ConfigError(
            f"{keys.name('ssm.inner_size')} is {inner}, no multiple of {keys.name('ssm.time_step_rank')}, which is "
            f"{heads}; fetch the file again"
        )
    interval = keys.count("full_attention_interval", 4)
    kinds: list[LayerKind] = [
        "attention" if (i + 1) % interval == 0 else "delta" for i in range(num_layers)
    ]
    for number, kind in enumerate(kinds):
        found = "delta" if f"blk.{number}.ssm_a" in file.tensors else "attention"
        if found != kind:
            raise ConfigError(
                f"{keys.name('full_attention_interval')} is {interval}, by which block {number} has "
                f"{'attention' if kind == 'attention' else 'a delta rule'}, and its tensors are those of the other; "
                "fetch the file again"
            )
    gates = {
        file.tensors[f"blk.{number}.{name}.weight"].kind
        for number, kind in enumerate(kinds)
        for name in ("ssm_alpha", "ssm_beta")
        if kind == "delta" and f"blk.{number}.{name}.weight" in file.tensors
    }
    form = "dense"
    if all(kind in PACKINGS for kind in gates):
        form = "ternary"
    elif len(gates) == 1:
        form = {F16: "float16", BF16: "bfloat16"}.get(
            min(gates, key=lambda kind: kind.name), "dense"
        )
    return {
        "layer_pattern": layer_pattern(kinds),
        "delta_heads": heads,
        "delta_key_heads": keys.count("ssm.group_count"),
        "delta_key_dim": keys.count("ssm.state_size"),
        "delta_value_dim": inner // heads,
        "delta_conv_width": keys.count("ssm.conv_kernel"),
        "delta_gates": form,
    }


def _rotation(keys: "_Hyperparameters", head_dim: int, file: GgufFile) -> dict[str, Any]:
    """How queries and keys are rotated."""
    context = keys.count("context_length")
    dims = keys.count("rope.dimension_count", head_dim)
    original = keys.count("rope.scaling.original_context_length", context)
    kind = keys.text("rope.scaling.type", "none", ("none", "linear", "yarn", "longrope"))
    factor = keys.number("rope.scaling.factor", 1.0) or 1.0
    magnitude = keys.number("rope.scaling.attn_factor", 1.0)
    fields: dict[str, Any] = {
        "rope_theta": keys.number("rope.freq_base", 10_000.0),
        "rope_dims": 0 if dims == head_dim else dims,
    }
    if "rope.scale_linear" in keys and kind == "none":
        kind, factor = "linear", keys.number("rope.scale_linear") or 1.0
    short = context <= original
    plain, *lengths = ROPE_FACTORS
    name = plain if plain in file.tensors else lengths[0 if short else 1]
    if name in file.tensors:
        if kind not in ("none", "longrope"):
            raise ConfigError(
                f"{keys.name('rope.scaling.type')} is {kind!r}, and {name} scales frequencies, too: one of them at a "
                "time; fetch the file again"
            )
        factors = _factors(name, file.tensors[name], dims // 2)
        if name == lengths[1] and lengths[0] in file.tensors:
            _LOGGER.warning(
                "%s is used for texts of any length, where llama.cpp uses %s if it is asked for a context of %d tokens "
                "or less",
                name,
                lengths[0],
                original,
            )
        return fields | {
            "rope_type": "factors",
            "rope_factors": factors,
            "rope_magnitude": magnitude,
        }
    if kind == "longrope":
        raise ConfigError(
            f"{keys.name('rope.scaling.type')} is {kind!r}, and there is no tensor {name}; fetch the file again"
        )
    if kind == "yarn" and factor != 1:
        return fields | {
            "rope_type": "yarn",
            "rope_scale": factor,
            "rope_original_context": original,
            "rope_low": keys.number("rope.scaling.yarn_beta_slow", 1.0),
            "rope_high": keys.number("rope.scaling.yarn_beta_fast", 32.0),
            "rope_magnitude": magnitude * (0.1 * math.log(factor) + 1),
        }
    if kind == "linear" and factor != 1:
        fields |= {"rope_type": "linear", "rope_scale": factor}
    return fields | {"rope_magnitude": magnitude}


def _factors(name: str, tensor: GgufTensor, count: int) -> tuple[float, ...]:
    if tensor.kind != F32 or tensor.shape != (count,):
        raise FormatError(
            f"{name} is {tensor.kind.name} of shape {list(tensor.shape)}, must be F32 of [{count}], a factor for each "
            "pair of rotated features; fetch the file again"
        )
    return tuple(tensor.data.reshape(-1).view("<f4").tolist())


def _form(tensor: GgufTensor) -> str:
    """How a table is kept here; any other type as float32 numbers."""
    if tensor.kind in PACKINGS:
        return "ternary"
    if tensor.kind == Q8_0:
        return "int8" if _has_row_scales(tensor) else "int8_32"
    return {F16: "float16", BF16: "bfloat16", Q4_0: "int8_32", Q6_K: "int8_16"}.get(
        tensor.kind, "dense"
    )


class _Hyperparameters:
    """Hyperparameters of an architecture, by their names without it."""

    def __init__(self, architecture: str, metadata: Mapping[str, MetadataValue]) -> None:
        self._architecture = architecture
        self._metadata = metadata

    def __contains__(self, key: str) -> bool:
        return self.name(key) in self._metadata

    def name(self, key: str) -> str:
        """The whole name."""
        return f"{self._architecture}.{key}"

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number; 0 only where that is the default."""
        value = self._metadata.get(self.name(key), default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            # Each layer has its own, and all are equal.
            value = value[0].item()
        least = 0 if default == 0 else 1
        if type(value) is not int or value < least:
            raise self._wrong(key, value, f"a whole number, {least} or more, for all layers")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number with a fraction."""
        value = self._metadata.get(self.name(key), default)
        if type(value) is not float or not np.isfinite(value):
            raise self._wrong(key, value, "a finite number")
        return value

    def text(self, key: str, default: str, known: tuple[str, ...]) -> str:
        """One of some words."""
        value = self._metadata.get(self.name(key), default)
        if value not in known:
            raise self._wrong(key, value, f"one of {', '.join(known)}, which this package computes")
        return str(value)

    def refuse(self, scales: Sequence[str]) -> None:
        """Refuse what would make the model compute something else; these scales are none of it."""
        for key, harmless in (*_WITHOUT_PLACE.items(), *((key, (0.0, 1.0)) for key in scales)):
            value = self._metadata.get(self.name(key), harmless[0])
            if not any(type(value) is type(one) and value == one for one in harmless):
                raise ConfigError(
                    f"{self.name(key)} is {value!r:.80}: this package computes no such thing; pass a model without it"
                )

    def _wrong(self, key: str, value: object, rule: str) -> ConfigError:
        return ConfigError(
            f"{self.name(key)} is {value!r:.80}, must be {rule}; fetch the file again"
        )


def _has_row_scales(tensor: GgufTensor) -> bool:
    """Whether a table is what this package's 8-bit tables are."""
    blocks = tensor.data.reshape(tensor.shape[0], -1, Q8_0.bytes)
    return bool((blocks[:, :, :2] == blocks[:, :1, :2]).all())
