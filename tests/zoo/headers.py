"""This file holds full-size headers of public models, written byte by byte, with holes in place of their tensors."""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nanochat.config import ModelConfig

__all__ = [
    "BF16",
    "F32",
    "KEYS_OF_QWEN35",
    "LEGACY_Q2_0",
    "PQ2_0",
    "PTQ1_0",
    "Q1_0",
    "Q2_0",
    "Kind",
    "keys_of_qwen3",
    "qwen3",
    "qwen35",
    "rotations",
    "vocabulary",
    "write",
    "write_folder",
]


class Kind(NamedTuple):
    """A type of tensors: its number in files, and columns and bytes of a block."""

    number: int
    columns: int
    bytes: int


F32, BF16 = Kind(0, 1, 4), Kind(30, 1, 2)
Q1_0, Q2_0, LEGACY_Q2_0 = Kind(41, 128, 18), Kind(42, 64, 18), Kind(42, 128, 34)
PQ2_0, PTQ1_0 = Kind(142, 128, 34), Kind(143, 128, 28)
Tensor = tuple[str, tuple[int, ...], Kind]


def qwen3(
    width: int, layers: int, heads: int, hidden: int, *, tied: bool, kind: Kind
) -> list[Tensor]:
    size = 128
    found: list[Tensor] = [
        ("token_embd.weight", (151_669, width), kind),
        ("output_norm.weight", (width,), F32),
    ]
    if not tied:
        found.append(("output.weight", (151_669, width), kind))
    for number in range(layers):
        shapes: dict[str, tuple[tuple[int, ...], Kind]] = {
            "attn_norm": ((width,), F32),
            "attn_q": ((heads * size, width), kind),
            "attn_k": ((8 * size, width), kind),
            "attn_v": ((8 * size, width), kind),
            "attn_q_norm": ((size,), F32),
            "attn_k_norm": ((size,), F32),
            "attn_output": ((width, heads * size), kind),
            "ffn_norm": ((width,), F32),
            "ffn_gate": ((hidden, width), kind),
            "ffn_up": ((hidden, width), kind),
            "ffn_down": ((width, hidden), kind),
        }
        found += [(f"blk.{number}.{n}.weight", shape, k) for n, (shape, k) in shapes.items()]
    return found


def qwen35(gates: Kind, kind: Kind) -> list[Tensor]:
    width, hidden, vocabulary = 5120, 17_408, 248_320
    found: list[Tensor] = [
        ("token_embd.weight", (vocabulary, width), kind),
        ("output_norm.weight", (width,), F32),
        ("output.weight", (vocabulary, width), kind),
    ]
    for number in range(64):
        shapes: dict[str, tuple[tuple[int, ...], Kind]] = {
            "attn_norm.weight": ((width,), F32),
            "post_attention_norm.weight": ((width,), F32),
            "ffn_gate.weight": ((hidden, width), kind),
            "ffn_up.weight": ((hidden, width), kind),
            "ffn_down.weight": ((width, hidden), kind),
        }
        if number % 4 == 3:
            shapes |= {
                "attn_q.weight": ((2 * 24 * 256, width), kind),
                "attn_k.weight": ((4 * 256, width), kind),
                "attn_v.weight": ((4 * 256, width), kind),
                "attn_q_norm.weight": ((256,), F32),
                "attn_k_norm.weight": ((256,), F32),
                "attn_output.weight": ((width, 24 * 256), kind),
            }
        else:
            shapes |= {
                "attn_qkv.weight": ((16 * 128 * 2 + 48 * 128, width), kind),
                "attn_gate.weight": ((48 * 128, width), kind),
                "ssm_alpha.weight": ((48, width), gates),
                "ssm_beta.weight": ((48, width), gates),
                "ssm_conv1d.weight": ((16 * 128 * 2 + 48 * 128, 4), F32),
                "ssm_a": ((48,), F32),
                "ssm_dt.bias": ((48,), F32),
                "ssm_norm.weight": ((128,), F32),
                "ssm_out.weight": ((width, 48 * 128), kind),
            }
        found += [(f"blk.{number}.{n}", shape, k) for n, (shape, k) in shapes.items()]
    return found


def keys_of_qwen3(
    width: int, layers: int, heads: int, hidden: int, context: int
) -> dict[str, object]:
    keys: dict[str, object] = {
        "block_count": layers,
        "context_length": context,
        "embedding_length": width,
        "feed_forward_length": hidden,
        "attention.head_count": heads,
        "attention.head_count_kv": 8,
        "attention.key_length": 128,
        "attention.value_length": 128,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e6,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": context // 4,
    }
    return {"general.architecture": "qwen3"} | {f"qwen3.{k}": v for k, v in keys.items()}


KEYS_OF_QWEN35 = {"general.architecture": "qwen35"} | {
    f"qwen35.{key}": value
    for key, value in {
        "block_count": 64,
        "context_length": 262_144,
        "embedding_length": 5120,
        "feed_forward_length": 17_408,
        "attention.head_count": 24,
        "attention.head_count_kv": 4,
        "attention.key_length": 256,
        "attention.value_length": 256,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e7,
        "rope.dimension_count": 64,
        "rope.dimension_sections": np.array([11, 11, 10, 0], np.int32),
        "full_attention_interval": 4,
        "ssm.conv_kernel": 4,
        "ssm.state_size": 128,
        "ssm.group_count": 16,
        "ssm.time_step_rank": 48,
        "ssm.inner_size": 6144,
    }.items()
}


def rotations(tensors: list[Tensor]) -> dict[str, object]:
    names = [n for n, _, kind in tensors if kind in (PQ2_0, PTQ1_0) and n != "token_embd.weight"]
    assert len(names) == 401
    keys = {
        "version": 1,
        "block_size": 1024,
        "transform": "normalized-sylvester-walsh-hadamard",
        "axis": "input-last-dimension",
        "sign_mode": "explicit",
        "sign_widths": np.array([5120, 6144, 17_408], np.int32),
        "sign_values": np.where(np.arange(28_672) % 3 == 0, -1, 1).astype(np.int32),
        "weight_names": names,
        "inverse_weight_names": ["token_embd.weight"],
        "gdn_v_grouped": True,
    }
    return {f"prism.hadamard.{key}": value for key, value in keys.items()}


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def packed(value: object) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + text(value)
        case np.ndarray():
            return struct.pack("<IIQ", 9, 5, value.size) + value.tobytes()
        case [*names]:
            return struct.pack("<IIQ", 9, 8, len(names)) + b"".join(map(text, map(str, names)))
    raise AssertionError(value)


def write(path: Path, keys: Mapping[str, object], tensors: list[Tensor]) -> Path:
    """A file with holes in place of its tensors, save for rates of decay, which are never 0."""
    positions, end = [], 0
    for _, shape, kind in tensors:
        positions.append(end)
        end += -(-math.prod(shape) // kind.columns * kind.bytes // 32) * 32
    infos = [
        text(name)
        + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        + struct.pack("<IQ", kind.number, position)
        for (name, shape, kind), position in zip(tensors, positions, strict=True)
    ]
    values = [text(key) + packed(value) for key, value in keys.items()]
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys))
    data = head + b"".join(values) + b"".join(infos)
    begin = -(-len(data) // 32) * 32
    with path.open("wb") as file:
        file.write(data)
        file.truncate(begin + end)
        for (name, shape, _), position in zip(tensors, positions, strict=True):
            if name.endswith(".ssm_a"):
                file.seek(begin + position)
                file.write(np.full(shape, -1, np.float32).tobytes())
    return path


def vocabulary(size: int, split: str) -> dict[str, object]:
    """Pieces as long as usual, of which merges make a few."""
    bytes_there = [*range(33, 127), *range(161, 173), *range(174, 256)]
    pieces = [chr(byte) for byte in bytes_there] + [chr(256 + n) for n in range(68)]
    merges = ["a b", "ab c"]
    pieces += ["ab", "abc", *(f"piece{n}" for n in range(size - 258))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": np.array([1] * 258 + [3] * (size - 258), np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": size - 1,
    }


def write_folder(
    folder: Path, config: ModelConfig, *, model_type: str, dtype: str, quantization: object
) -> Path:
    """A folder of transformers: packed matrices with a scale each, as `quantization` says, or numbers of `dtype`."""
    fields = {
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "relu2" if model_type == "bitnet" else "silu",
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_embeddings,
    }
    if quantization is not None:
        fields["quantization_config"] = quantization
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        "model.embed_tokens.weight": (dtype, (config.vocab_size, config.width)),
        "model.norm.weight": (dtype, (config.width,)),
    }
    if not config.tie_embeddings:
        tensors["lm_head.weight"] = (dtype, (config.vocab_size, config.width))
    queries, keys = (heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads))
    matrices = {
        "self_attn.q_proj": (queries, config.width),
        "self_attn.k_proj": (keys, config.width),
        "self_attn.v_proj": (keys, config.width),
        "self_attn.o_proj": (config.width, queries),
        "mlp.gate_proj": (config.ffn_width, config.width),
        "mlp.up_proj": (config.ffn_width, config.width),
        "mlp.down_proj": (config.width, config.ffn_width),
    }
    norms = {"input_layernorm": config.width, "post_attention_layernorm": config.width}
    if model_type == "bitnet":
        norms |= {"self_attn.attn_sub_norm": queries, "mlp.ffn_sub_norm": config.ffn_width}
    for layer in (f"model.layers.{number}" for number in range(config.num_layers)):
        for name, size in norms.items():
            tensors[f"{layer}.{name}.weight"] = (dtype, (size,))
        for name, (rows, columns) in matrices.items():
            if quantization is None:
                tensors[f"{layer}.{name}.weight"] = (dtype, (rows, columns))
            else:
                tensors[f"{layer}.{name}.weight"] = ("U8", (rows // 4, columns))
                tensors[f"{layer}.{name}.weight_scale"] = (dtype, (1,))
    (folder / "config.json").write_text(json.dumps(fields))
    _write_safetensors(folder / "model.safetensors", tensors)
    return folder


def _write_safetensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    described, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * {"U8": 1, "F16": 2, "BF16": 2}[dtype]
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    data = json.dumps(described).encode()
    # As the format's library does, for tensors that are not aligned are copied.
    data += b" " * (-len(data) % 8)
    with path.open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        file.truncate(8 + len(data) + end)
