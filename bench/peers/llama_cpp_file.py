"""This file holds the writer of GGUF files that stock llama.cpp runs: architecture ``qwen3``, ternary linears.

They are for comparisons: the tokenizer is a list of names, so the file takes token numbers and no text.
"""

from pathlib import Path
from typing import Literal

import gguf
import numpy as np
from numpy.typing import NDArray

from bench.random_model import random_packed_weights
from nanochat import ternary
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError
from nanochat.export.gguf_types import TQ2_0, pack_q8_0, pack_ternary
from nanochat.weights import Dense, Int8, Latent, Stored, Ternary, Weights, named_leaves

__all__ = ["TableType", "write_model", "write_random_model"]

TableType = Literal["Q8_0", "F16"]

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
    "network_site.norm": "ffn_norm",
    "network.gate": "ffn_gate",
    "network.up": "ffn_up",
    "network.down": "ffn_down",
}


def write_random_model(
    path: Path, config: ModelConfig, seed: int, *, table: TableType = "Q8_0"
) -> None:
    """Write the model of `bench.random_model.random_packed_weights`; see `write_model`."""
    write_model(path, config, random_packed_weights(config, seed), table=table)


def write_model(
    path: Path, config: ModelConfig, weights: Weights[Stored], *, table: TableType = "Q8_0"
) -> None:
    """Write a file for llama.cpp: linears as TQ2_0 with the same codes and scales, norms as F32.

    Parameters
    ----------
    weights
        Without latent leaves; embedding and head with 8 bits.
    table : {"Q8_0", "F16"}
        Type of embedding and head. The first holds the same codes and scales, the second rounds their products.

    Raises
    ------
    ConfigError
        If the architecture ``qwen3`` has no such model.
    """
    _require_stock(config)
    tensors = {_name(name): leaf for name, leaf in named_leaves(weights) if name[:6] != "ahead."}
    writer = gguf.GGUFWriter(path, "qwen3")
    try:
        _add_metadata(writer, config)
        for name, leaf in tensors.items():
            kind = _kind(leaf, table)
            shape = gguf.quant_shape_to_byte_shape(_shape(leaf), kind)
            size = int(np.prod(shape, dtype=np.int64))
            writer.add_tensor_info(name, shape, np.dtype(np.uint8), size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        # One at a time: the packed model is never in memory twice.
        for leaf in tensors.values():
            writer.write_tensor_data(_pack(leaf, table))
    finally:
        writer.close()


def _require_stock(config: ModelConfig) -> None:
    """Refuse what ``qwen3`` has no place for."""
    required = {
        "num_streams": 1,
        "qk_norm": True,
        "sub_norm": False,
        "attention_gate": False,
        "activation": "swiglu",
        "layer_pattern": ("attention",) * len(config.layer_pattern),
        "rope_scale": 1.0,
        "num_experts": 0,
        "loop_count": 1,
        "table_format": "int8",
        "weight_block": TQ2_0.columns,
    }
    for name, value in required.items():
        if getattr(config, name) != value:
            raise ConfigError(
                f"{name}={getattr(config, name)!r}: stock llama.cpp can run this model only with {name}={value!r}; "
                "compare that one"
            )


def _name(name: str) -> str:
    """Return llama.cpp's name for the leaf of that path."""
    if not name.startswith("layers."):
        return f"{_NAMES[name]}.weight"
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{_NAMES[rest]}.weight"


def _add_metadata(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    writer.add_name("nanochat-ternary benchmark")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_TQ2_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.ffn_width)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    names = [f"token{i}" for i in range(config.vocab_size)]
    writer.add_token_list(names)
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    # The reader asks for one, and never uses it.
    writer.add_token_merges([f"{names[0]} {names[0]}"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def _kind(leaf: Stored, table: TableType) -> gguf.GGMLQuantizationType:
    match leaf:
        case Ternary():
            return gguf.GGMLQuantizationType.TQ2_0
        case Int8():
            return gguf.GGMLQuantizationType[table]
        case Dense():
            return gguf.GGMLQuantizationType.F32
        case Latent():
            raise AssertionError


def _shape(leaf: Stored) -> tuple[int, ...]:
    match leaf:
        case Ternary():
            return len(leaf.packed), leaf.columns
        case Int8():
            return leaf.codes.shape
        case _:
            return leaf.values.shape


def _pack(leaf: Stored, table: TableType) -> NDArray[np.uint8]:
    match leaf:
        case Ternary():
            return pack_ternary(
                TQ2_0, ternary.unpack(leaf.packed, columns=leaf.columns), leaf.scales
            )
        case Int8() if table == "Q8_0":
            return pack_q8_0(leaf.codes, leaf.scales)
        case Int8():
            values = ternary.dequantize(leaf.codes, leaf.scales[:, None])
            return values.astype("<f2").view(np.uint8)
        case Dense():
            return leaf.values.astype("<f4").view(np.uint8)
        case Latent():
            raise AssertionError
