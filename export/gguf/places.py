"""This file holds where a leaf lies in the tensors of an architecture of llama.cpp: in which rows, and in what order.

Orders of heads are those of this package, so that nothing is put in order when a model runs.

Legend: H query heads of D features; N value heads, M key heads, r = N / M, of K key and V value features.

References
----------
.. [1] github.com/ggml-org/llama.cpp, src/llama-arch.cpp, src/models and conversion, commit 0c1e570.
"""

import functools
import math
from dataclasses import replace

import numpy as np

from nanochat.config import ModelConfig
from nanochat.export.places import Index, Place, gated_rows
from nanochat.shapes import delta_key_heads, layer_kinds, shapes
from nanochat.weights import Ternary, named_leaves

__all__ = ["NEIGHBOURS", "places", "with_heads"]

# Architectures that rotate neighbouring features of a head, where this package rotates features half a head apart.
NEIGHBOURS = ("llama", "minicpm")
_NAMES = {
    "embedding": "token_embd",
    "norm": "output_norm",
    "head": "output",
    "mixer_site.norm": "attn_norm",
    "mixer.q": "attn_q",
    "mixer.k": "attn_k",
    "mixer.v": "attn_v",
    "mixer.o": "attn_output",
    "mixer.q_norm": "attn_q_norm",
    "mixer.k_norm": "attn_k_norm",
    "mixer.sub_norm": "attn_sub_norm",
    "network_site.norm": "ffn_norm",
    "network.gate": "ffn_gate",
    "network.up": "ffn_up",
    "network.down": "ffn_down",
    "network.sub_norm": "ffn_sub_norm",
    "network.router": "ffn_gate_inp",
}
# In `qwen35`, by the leaf; the norm before a network has another name there than elsewhere.
_DELTA = {
    "mixer.q": "attn_qkv.weight",
    "mixer.k": "attn_qkv.weight",
    "mixer.v": "attn_qkv.weight",
    "mixer.gate": "attn_gate.weight",
    "mixer.o": "ssm_out.weight",
    "mixer.q_conv": "ssm_conv1d.weight",
    "mixer.k_conv": "ssm_conv1d.weight",
    "mixer.v_conv": "ssm_conv1d.weight",
    "mixer.beta": "ssm_beta.weight",
    "mixer.decay": "ssm_alpha.weight",
    "mixer.log_rate": "ssm_a",
    "mixer.time_bias": "ssm_dt.bias",
    "mixer.norm": "ssm_norm.weight",
}
_NETWORK_NORM = "post_attention_norm.weight"


# What a damaged file says of heads may make these large, and of layers many.
_one_for_all_layers = functools.lru_cache(maxsize=16)


def places(config: ModelConfig, architecture: str, *, grouped: bool) -> dict[str, Place]:
    """The place of every leaf, in the order of the weights.

    In `qwen35`, `grouped` says that the columns of ``ssm_out`` are in the order of this package already.
    """
    kinds, found = layer_kinds(config), {}
    for name, _ in named_leaves(shapes(config)):
        if name.startswith("signs."):
            continue
        layer, _, rest = name.removeprefix("layers.").partition(".")
        if name.startswith("layers.") and architecture == "qwen35":
            if rest == "network_site.norm":
                found[name] = Place(tensor=f"blk.{layer}.{_NETWORK_NORM}")
                continue
            if kinds[int(layer)] == "delta" and rest in _DELTA:
                tensor = f"blk.{layer}.{_DELTA[rest]}"
                rows, heads = _delta_order(config, rest, grouped=grouped)
                found[name] = Place(tensor=tensor, rows=rows, heads=heads)
                continue
            if rest in ("mixer.q", "mixer.gate"):
                rows = gated_rows(config, gate=rest == "mixer.gate")
                found[name] = Place(tensor=f"blk.{layer}.attn_q.weight", rows=rows)
                continue
        expert = rest.split(".")[2] if rest.startswith("network.networks.") else None
        found[name] = Place(
            tensor=_name(name),
            rows=_half_split(config, rest) if architecture in NEIGHBOURS else None,
            expert=None if expert is None else int(expert),
        )
    return found


def with_heads(leaf: Ternary, heads: Index) -> Ternary:
    """The columns of a matrix head by head in another order; blocks of scales become no wider than a head."""
    rows, width = len(leaf.packed), leaf.columns // len(heads)
    block = math.gcd(leaf.weight_block, width)
    scales = np.repeat(leaf.scales, leaf.weight_block // block, axis=1)
    return replace(
        leaf,
        packed=leaf.packed.reshape(rows, len(heads), -1)[:, heads].reshape(rows, -1),
        scales=scales.reshape(rows, len(heads), -1)[:, heads].reshape(rows, -1),
    )


@_one_for_all_layers
def _half_split(config: ModelConfig, rest: str) -> Index | None:
    """Rows of queries and keys in the order in which features of a head are rotated here: pairs half a head apart."""
    heads = {"mixer.q": config.num_heads, "mixer.k": config.num_kv_heads}.get(rest)
    if heads is None:
        return None
    dims = config.rope_dims or config.head_dim
    of_head = np.arange(config.head_dim)
    of_head[:dims] = of_head[:dims].reshape(-1, 2).T.reshape(-1)
    return (config.head_dim * np.arange(heads)[:, None] + of_head).reshape(-1)


@_one_for_all_layers
def _delta_order(
    config: ModelConfig, rest: str, *, grouped: bool
) -> tuple[Index | None, Index | None]:
    """Rows, and order of the heads of columns, of a leaf of Gated DeltaNet."""
    keys = delta_key_heads(config) * config.delta_key_dim
    order, values = _value_heads(config), config.delta_value_dim
    match rest:
        case "mixer.q" | "mixer.q_conv":
            return np.arange(keys), None
        case "mixer.k" | "mixer.k_conv":
            return keys + np.arange(keys), None
        case "mixer.v" | "mixer.v_conv" | "mixer.gate":
            first = 0 if rest == "mixer.gate" else 2 * keys
            return first + (values * order[:, None] + np.arange(values)).reshape(-1), None
        case "mixer.beta" | "mixer.decay" | "mixer.log_rate" | "mixer.time_bias":
            return order, None
        case "mixer.o":
            return None, None if grouped else order
    return None, None


def _value_heads(config: ModelConfig) -> Index:
    """Where each value head stands in a file: those of one key head lie M apart, here they follow each other."""
    key_heads = delta_key_heads(config)
    share = config.delta_heads // key_heads
    head = np.arange(config.delta_heads)
    return head % share * key_heads + head // share


def _name(name: str) -> str:
    """The tensor that a leaf is, or of which it is a part, in most architectures."""
    if not name.startswith("layers."):
        return f"{_NAMES[name]}.weight"
    _, layer, rest = name.split(".", 2)
    if rest.startswith("network.networks."):
        stacked = _NAMES[f"network.{rest.rpartition('.')[2]}"]
        return f"blk.{layer}.{stacked}_exps.weight"
    return f"blk.{layer}.{_NAMES[rest]}.weight"
