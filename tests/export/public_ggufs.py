"""This file holds tiny models in the formats of public ternary models, written byte by byte and by other rules."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

from tests.export.foreign_ggufs import ROWS, Tensor, vocabulary, write_file

__all__ = [
    "GROUP",
    "NUMBERS",
    "Codes",
    "hadamard",
    "pack",
    "qwen35_keys",
    "qwen35_model",
    "qwen35_tensors",
    "rotated",
    "ternary_part",
    "write_qwen35",
]

GROUP = 128
NUMBERS = {
    "F32": 0,
    "F16": 1,
    "BF16": 30,
    "Q1_0": 41,
    "Q2_0": 42,
    "legacy Q2_0": 42,
    "PQ2_0": 142,
    "PTQ1_0": 143,
}
Floats = NDArray[np.float32]
Digits = NDArray[np.integer[Any]]
Codes = tuple[NDArray[np.int8], NDArray[np.float16]]
# One attention layer in the middle, so that no order of layers goes by chance.
CONFIG: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 128,
    "full_attention_interval": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e5, "partial_rotary_factor": 0.25},
}


def ternary_part(weight: Floats, block: int = GROUP, *, zeros: bool = True) -> Codes:
    """Codes and scales that are near to the numbers of a matrix (R, C), without `zeros` of signs alone."""
    blocks = weight.reshape(len(weight), -1, block)
    scales = np.abs(blocks).mean(axis=2).astype(np.float16)
    near = np.clip(np.rint(blocks / scales[:, :, None].astype(np.float32)), -1, 1)
    codes = near if zeros else np.where(blocks < 0, -1, 1)
    return codes.astype(np.int8).reshape(weight.shape), scales


def numbers(codes: NDArray[np.int8], scales: NDArray[np.float16]) -> Floats:
    block = codes.shape[1] // scales.shape[1]
    return codes.astype(np.float32) * np.repeat(scales.astype(np.float32), block, axis=1)


def pack(codes: NDArray[np.int8], scales: NDArray[np.float16], kind: str) -> NDArray[np.uint8]:
    """The bytes of a matrix, one block after the other."""
    block = 64 if kind == "Q2_0" else 128
    repeated = np.repeat(scales, codes.shape[1] // block // scales.shape[1], axis=1)
    digits = codes.reshape(-1, block) + 1
    packed = {"PTQ1_0": _trits, "Q1_0": _bits}.get(kind, _pairs)(digits).astype(np.uint8)
    halves = repeated.reshape(-1, 1).view(np.uint8)
    parts = [packed, halves] if kind == "PTQ1_0" else [halves, packed]
    return np.concatenate(parts, axis=1).reshape(-1)


def _pairs(digits: Digits) -> Digits:
    return np.asarray((digits.reshape(len(digits), -1, 4) << 2 * np.arange(4)).sum(axis=2))


def _bits(digits: Digits) -> Digits:
    return np.asarray(((digits == 2).reshape(len(digits), -1, 8) << np.arange(8)).sum(axis=2))


def _trits(digits: Digits) -> Digits:
    parts = [[16 * n + m for n in range(5)] for m in range(16)]
    parts += [[80 + 8 * n + m for n in range(5)] for m in range(8)]
    parts += [[120 + 2 * n + h for n in range(4)] for h in range(2)]
    powers = 3 ** np.arange(4, -1, -1)
    numbers = np.stack([digits[:, places] @ powers[: len(places)] for places in parts], axis=1)
    return -(-numbers * 256 // 243)


def qwen35_model(*, tied: bool = False, seed: int = 0) -> Qwen3_5ForCausalLM:
    """A random model, whose gains and biases differ from their usual values."""
    torch.manual_seed(seed)
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**CONFIG, tie_word_embeddings=tied))
    model.train(mode=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "conv1d" not in name:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return model


def make_ternary(model: nn.Module, *, gates: bool = False, zeros: bool = True) -> dict[str, Codes]:
    """Have the matrices of a model hold ternary numbers; gives their codes and scales, by name."""
    found: dict[str, Codes] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_gate = "in_proj_a" in name or "in_proj_b" in name
            if parameter.ndim != 2 or (is_gate and not gates):
                continue
            found[name] = ternary_part(parameter.numpy(), zeros=zeros)
            parameter.copy_(torch.from_numpy(numbers(*found[name])))
    return found


def hadamard(block: int) -> NDArray[np.float64]:
    """The normalised matrix, entry by entry."""
    index = np.arange(block)
    return np.asarray((-1.0) ** np.bitwise_count(index[:, None] & index) / np.sqrt(block))


def rotated(weight: Floats, signs: Floats, block: int) -> Floats:
    """The matrix that does to a rotated input what this one does to the input itself."""
    parts = (weight * signs).reshape(len(weight), -1, block) @ hadamard(block)
    return parts.reshape(weight.shape).astype(np.float32)


def qwen35_keys(*, tied: bool = False) -> dict[str, Any]:
    """Hyperparameters as llama.cpp's converter writes them."""
    del tied
    keys = {
        "context_length": CONFIG["max_position_embeddings"],
        "embedding_length": CONFIG["hidden_size"],
        "block_count": CONFIG["num_hidden_layers"],
        "feed_forward_length": CONFIG["intermediate_size"],
        "attention.head_count": CONFIG["num_attention_heads"],
        "attention.head_count_kv": CONFIG["num_key_value_heads"],
        "attention.key_length": CONFIG["head_dim"],
        "attention.value_length": CONFIG["head_dim"],
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e5,
        "rope.dimension_count": CONFIG["head_dim"] // 4,
        "rope.dimension_sections": [3, 3, 2, 0],
        "ssm.conv_kernel": 4,
        "ssm.state_size": CONFIG["linear_key_head_dim"],
        "ssm.group_count": CONFIG["linear_num_key_heads"],
        "ssm.time_step_rank": CONFIG["linear_num_value_heads"],
        "ssm.inner_size": CONFIG["linear_num_value_heads"] * CONFIG["linear_value_head_dim"],
        "full_attention_interval": CONFIG["full_attention_interval"],
    }
    return {f"qwen35.{key}": value for key, value in keys.items()}


def qwen35_tensors(
    state: dict[str, Floats],
    matrix: Callable[[str, Floats], Tensor],
    *,
    grouped: bool = False,
) -> dict[str, Tensor]:
    """Tensors under llama.cpp's names and in its order of heads; `matrix` packs those of two dimensions.

    With `grouped`, the columns of ``ssm_out`` keep the order of transformers.
    """
    names = {
        "input_layernorm.weight": "attn_norm.weight",
        "post_attention_layernorm.weight": "post_attention_norm.weight",
        "self_attn.q_proj.weight": "attn_q.weight",
        "self_attn.k_proj.weight": "attn_k.weight",
        "self_attn.v_proj.weight": "attn_v.weight",
        "self_attn.o_proj.weight": "attn_output.weight",
        "self_attn.q_norm.weight": "attn_q_norm.weight",
        "self_attn.k_norm.weight": "attn_k_norm.weight",
        "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
        "linear_attn.in_proj_z.weight": "attn_gate.weight",
        "linear_attn.in_proj_b.weight": "ssm_beta.weight",
        "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
        "linear_attn.conv1d.weight": "ssm_conv1d.weight",
        "linear_attn.A_log": "ssm_a",
        "linear_attn.dt_bias": "ssm_dt.bias",
        "linear_attn.norm.weight": "ssm_norm.weight",
        "linear_attn.out_proj.weight": "ssm_out.weight",
        "mlp.gate_proj.weight": "ffn_gate.weight",
        "mlp.up_proj.weight": "ffn_up.weight",
        "mlp.down_proj.weight": "ffn_down.weight",
    }
    found: dict[str, Tensor] = {}
    for name, values in state.items():
        path = name.removeprefix("model.").split(".", 2)
        if path[0] == "layers":
            target = f"blk.{path[1]}.{names[path[2]]}"
        else:
            target = {
                "embed_tokens": "token_embd.weight",
                "norm": "output_norm.weight",
                "lm_head": "output.weight",
            }[path[0]]
        moved = _tiled(target, values, grouped=grouped)
        if target.endswith("norm.weight") and "ssm_norm" not in target:
            moved = moved + 1
        if target.endswith("ssm_a"):
            moved = -np.exp(moved)
        moved = np.ascontiguousarray(moved, np.float32)
        if moved.ndim == 2 and "conv1d" not in target:
            found[target] = matrix(target, moved)
        else:
            found[target] = (moved.shape, NUMBERS["F32"], moved.reshape(-1).view(np.uint8))
    return found


def _tiled(target: str, values: Floats, *, grouped: bool) -> Floats:
    """Value head j goes to place ``(j % r) * M + j // r``."""
    heads, key_heads = CONFIG["linear_num_value_heads"], CONFIG["linear_num_key_heads"]
    share = heads // key_heads
    place = [(j % share) * key_heads + j // share for j in range(heads)]
    source = np.argsort(place)
    keys = 2 * key_heads * CONFIG["linear_key_head_dim"]
    last = target.split(".", 2)[-1]
    if last in ("ssm_alpha.weight", "ssm_beta.weight", "ssm_a", "ssm_dt.bias"):
        return values[source]
    if last == "attn_gate.weight":
        return _by_head(values, source)
    if last == "ssm_conv1d.weight":
        values = values[:, 0]
    if last in ("attn_qkv.weight", "ssm_conv1d.weight"):
        return np.concatenate([values[:keys], _by_head(values[keys:], source)])
    if last == "ssm_out.weight" and not grouped:
        return np.ascontiguousarray(_by_head(values.T, source).T)
    return values


def _by_head(rows: Floats, source: NDArray[np.intp]) -> Floats:
    return rows.reshape(len(source), -1, *rows.shape[1:])[source].reshape(rows.shape)


def state_of(model: nn.Module) -> dict[str, Floats]:
    """A model's numbers by name, a tied head left out."""
    return {name: value.detach().numpy() for name, value in model.named_parameters()}


def write_qwen35(
    path: Path,
    model: Qwen3_5ForCausalLM,
    kind: str = "F32",
    *,
    changes: dict[str, Any] | None = None,
    more: dict[str, Tensor] | None = None,
    grouped: bool = False,
    gates: str = "F32",
) -> Path:
    """The model in a file, its ternary matrices of a type, and the gates of its delta layers of another."""

    def matrix(target: str, values: Floats) -> Tensor:
        own = gates if "ssm_alpha" in target or "ssm_beta" in target else kind
        if own in ("F32", "F16", "BF16"):
            return values.shape, NUMBERS[own], _floats(values, own)
        return values.shape, NUMBERS[own], pack(*ternary_part_exact(values), own)

    keys = {**qwen35_keys(), **vocabulary(), "tokenizer.ggml.pre": "qwen35", **(changes or {})}
    tensors = qwen35_tensors(state_of(model), matrix, grouped=grouped)
    return write_file(path, "qwen35", keys, {**tensors, **(more or {})})


def _floats(values: Floats, kind: str) -> NDArray[np.uint8]:
    if kind == "BF16":
        bits = values.reshape(-1).view(np.uint32) >> 16
        assert np.array_equal(bits << 16, values.reshape(-1).view(np.uint32)), "not of bfloat16"
        return bits.astype(np.uint16).view(np.uint8)
    return values.astype({"F32": np.float32, "F16": np.float16}[kind]).reshape(-1).view(np.uint8)


def ternary_part_exact(values: Floats) -> Codes:
    """The codes and scales of numbers that are ternary in groups."""
    groups = values.reshape(len(values), -1, GROUP)
    scales = np.abs(groups).max(axis=2).astype(np.float16)
    codes = np.sign(groups).astype(np.int8).reshape(values.shape)
    assert np.array_equal(numbers(codes, scales), values)
    return codes, scales
