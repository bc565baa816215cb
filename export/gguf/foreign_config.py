"""This file holds the reader of the hyperparameters of other people's GGUF files, with llama.cpp's own defaults.

What a file asks for and this package does not compute is refused, key by key; nothing is left out.

References
----------
.. [1] github.com/ggml-org/llama.cpp, src/llama-model.cpp and src/models, commit 0c1e570.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nanochat.errors import ConfigError, FormatError
from nanochat.export.gguf.container import GgufFile, GgufTensor, MetadataValue
from nanochat.export.gguf.types import Q8_0

__all__ = ["ARCHITECTURES", "read_hyperparameters"]

# What an architecture has beside attention, RMSNorm and SwiGLU.
ARCHITECTURES: Mapping[str, Mapping[str, bool]] = {
    "bitnet": {"qk_norm": False, "sub_norm": True},
    "llama": {"qk_norm": False, "sub_norm": False},
    "qwen2": {"qk_norm": False, "sub_norm": False},
    "qwen3": {"qk_norm": True, "sub_norm": False},
    "qwen3moe": {"qk_norm": True, "sub_norm": False},
}
_TABLE, _HEAD = "token_embd.weight", "output.weight"
# Each with the value that changes nothing.
_WITHOUT_PLACE: Mapping[str, tuple[object, ...]] = {
    "attention.clamp_kqv": (0.0,),
    "attention.scale": (0.0,),
    "attention.sliding_window": (0,),
    "expert_shared_count": (0,),
    "expert_weights_scale": (0.0, 1.0),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scale_linear": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.factor": (0.0, 1.0),
    "rope.scaling.type": ("none", "linear"),
}


def read_hyperparameters(architecture: str, file: GgufFile) -> dict[str, Any]:
    """The fields of our configuration, save for the two block sizes; the architecture is one of `ARCHITECTURES`."""
    keys = _Keys(architecture, file.metadata)
    keys.refuse()
    if _TABLE not in file.tensors:
        raise FormatError(f"the tensor {_TABLE} is missing; fetch the file again")
    width, num_heads = keys.count("embedding_length"), keys.count("attention.head_count")
    head_dim = keys.count("attention.key_length", width // num_heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if keys.count(name, head_dim) != head_dim:
            raise ConfigError(
                f"{keys.name(name)} is {keys.count(name)}, but heads have {head_dim} features: this package has one "
                "width of heads, and rotates all of it"
            )
    experts: dict[str, int] = {"ffn_width": 0}
    if architecture == "qwen3moe":
        experts |= {
            "num_experts": keys.count("expert_count"),
            "experts_per_token": keys.count("expert_used_count"),
            "expert_width": keys.count("expert_feed_forward_length"),
        }
    else:
        experts["ffn_width"] = keys.count("feed_forward_length")
        if keys.count("expert_count", 0):
            raise ConfigError(
                f"{keys.name('expert_count')} is {keys.count('expert_count')}: of mixtures of experts this package "
                "reads those of qwen3moe"
            )
    tables = [file.tensors[name] for name in (_TABLE, _HEAD) if name in file.tensors]
    return {
        **ARCHITECTURES[architecture],
        **experts,
        "vocab_size": tables[0].shape[0],
        "width": width,
        "num_layers": keys.count("block_count"),
        "num_heads": num_heads,
        "num_kv_heads": keys.count("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "context_length": keys.count("context_length"),
        "rope_theta": keys.number("rope.freq_base", 10_000.0),
        "norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "tie_embeddings": len(tables) == 1,
        "num_streams": 1,
        "table_format": "int8" if all(map(_has_row_scales, tables)) else "dense",
    }


class _Keys:
    """Hyperparameters of an architecture, by their names without it."""

    def __init__(self, architecture: str, metadata: Mapping[str, MetadataValue]) -> None:
        self._architecture = architecture
        self._metadata = metadata

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

    def refuse(self) -> None:
        """Refuse what would make the model compute something else."""
        for key, harmless in _WITHOUT_PLACE.items():
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
    if tensor.kind != Q8_0 or len(tensor.shape) != 2:
        return False
    blocks = tensor.data.reshape(tensor.shape[0], -1, Q8_0.bytes)
    # -128 stands for nothing that a rounding makes.
    return bool((blocks[:, :, :2] == blocks[:, :1, :2]).all() and (blocks[:, :, 2:] != 0x80).all())
