"""This file holds models that stock runtimes can run, and what a reference computes for them."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.backends.reference.ops import ReferenceOps
from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.generation.engine import Engine
from nanochat.init import freeze
from nanochat.model import forward
from nanochat.ops import Ops
from nanochat.proof.parity import UnroundedOps, greedy
from nanochat.text.chat import Message
from nanochat.weights import Stored, Ternary, Weights, named_leaves
from tests.parity.random_models import random_tokenizer, random_weights, with_a_block_of_zeros

VOCABULARY = 304
BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "width": 256,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 64,
    "ffn_width": 512,
    "context_length": 64,
    "num_streams": 1,
}
ROW: dict[str, Any] = {"weight_block": "row", "activation_block": "token"}
EXPERTS: dict[str, Any] = {
    "ffn_width": 0,
    "num_experts": 4,
    "experts_per_token": 2,
    "expert_width": 256,
}
CONFIGS = {
    "qk-norm": ModelConfig(**BASE),
    "plain": ModelConfig(**BASE, qk_norm=False),
    "one key head": ModelConfig(**BASE | {"num_kv_heads": 1}),
    "all key heads": ModelConfig(**BASE | {"num_kv_heads": 4}, qk_norm=False),
    "narrow heads": ModelConfig(**BASE | {"head_dim": 32}, weight_block=128),
    "untied": ModelConfig(**BASE, tie_embeddings=False),
    "long context": ModelConfig(**BASE, rope_scale=4.0, rope_theta=5e5),
    "large eps": ModelConfig(**BASE, norm_eps=1e-2),
    "rows": ModelConfig(**BASE | ROW | {"width": 320, "ffn_width": 352}, tie_embeddings=False),
    "blocks of 128": ModelConfig(**BASE | {"ffn_width": 384}, weight_block=128),
    "blocks of 64": ModelConfig(
        **BASE | {"ffn_width": 320},
        weight_block=64,
        activation_block=64,
        table_format="ternary",
    ),
    "ternary table": ModelConfig(**BASE, table_format="ternary"),
    "ternary tables": ModelConfig(**BASE, table_format="ternary", tie_embeddings=False),
    "dense tables": ModelConfig(**BASE, table_format="dense", tie_embeddings=False),
    "experts": ModelConfig(**BASE | EXPERTS),
    "experts, rows": ModelConfig(**BASE | EXPERTS | ROW, tie_embeddings=False),
    "ahead": ModelConfig(**BASE, num_ahead=1),
}
HYBRID: dict[str, Any] = {
    "num_layers": 4,
    "layer_pattern": ("delta", "attention"),
    "attention_gate": True,
    "delta_heads": 4,
    "delta_key_heads": 2,
    "rope_dims": 16,
    "weight_block": 128,
}
# What mlx-lm alone runs.
HYBRIDS = {
    "hybrid": ModelConfig(**BASE | HYBRID),
    "hybrid, ternary tables": ModelConfig(
        **BASE | HYBRID,
        table_format="ternary",
        tie_embeddings=False,
        delta_gates="bfloat16",
        rope_scale=2.0,
    ),
    "hybrid, all ternary": ModelConfig(
        **BASE | HYBRID | {"delta_key_heads": 0}, table_format="ternary", delta_gates="ternary"
    ),
    "hybrid, wide values": ModelConfig(
        **BASE | HYBRID | {"num_layers": 5, "layer_pattern": ("delta", "delta", "attention")},
        delta_value_dim=128,
        delta_conv_width=2,
        delta_gates="float16",
        tie_embeddings=False,
        table_format="dense",
        norm_eps=1e-3,
    ),
    "hybrid, rows": ModelConfig(
        **BASE | HYBRID | ROW | {"num_layers": 2, "width": 320, "head_dim": 48, "rope_dims": 14}
    ),
}
# Widths are multiples of the smallest block that mlx-lm rotates.
ROTATED: dict[str, Any] = HYBRID | {
    "width": 512,
    "num_heads": 8,
    "ffn_width": 1024,
    "delta_heads": 8,
    "delta_key_heads": 4,
    "rotation_block": 512,
}
ROTATIONS = {
    "rotated": ModelConfig(**BASE | ROTATED, table_format="ternary", delta_gates="bfloat16"),
    "rotated, untied": ModelConfig(
        **BASE | ROTATED, table_format="ternary", tie_embeddings=False, delta_gates="ternary"
    ),
    "rotated, rows": ModelConfig(
        **BASE | ROTATED | ROW | {"num_layers": 2, "ffn_width": 512}, table_format="ternary"
    ),
    "rotated, blocks of 1024": ModelConfig(
        **BASE
        | ROTATED
        | {"width": 1024, "num_layers": 2, "num_heads": 16, "delta_heads": 16}
        | {"weight_block": 256, "rotation_block": 1024},
        table_format="ternary",
        delta_gates="float16",
    ),
    "rotated, dense tables": ModelConfig(
        **BASE | ROTATED, table_format="dense", tie_embeddings=False
    ),
}
# What no stock runtime has, by the words of the refusal.
REFUSED = {
    "num_streams=2": ModelConfig(**BASE | {"num_streams": 2}),
    "layer_pattern": ModelConfig(**BASE, layer_pattern=("attention", "delta"), attention_gate=True),
    "loop_count=2": ModelConfig(**BASE, loop_count=2),
    "attention_gate": ModelConfig(**BASE, attention_gate=True),
    "activation": ModelConfig(**BASE, activation="relu2"),
    "sub_norm": ModelConfig(**BASE, sub_norm=True),
    "shared_expert_width": ModelConfig(**BASE | EXPERTS, shared_expert_width=256),
    "with experts: its mixtures have no Gated DeltaNet": ModelConfig(
        **BASE | EXPERTS, layer_pattern=("delta", "attention")
    ),
    "qk_norm=false with experts": ModelConfig(**BASE | EXPERTS, qk_norm=False),
}
CHAT: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  Hi,\n\nwörld "},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "'s 🦀"},
]
IDS = [0, *np.random.default_rng(1).integers(7, 300, 39).tolist()]


@cache
def make_bundle(case: str) -> Bundle:
    """The model of one of `CONFIGS`, `HYBRIDS`, `ROTATIONS` or `REFUSED`."""
    config = {**CONFIGS, **HYBRIDS, **ROTATIONS, **REFUSED}[case]
    return Bundle(
        name=case,
        config=config,
        weights=freeze(with_a_block_of_zeros(random_weights(config))),
        tokenizer=random_tokenizer(),
        generation={},
        card=b"# A model\n",
    )


@cache
def reference_logits(case: str, *, rounded: bool) -> NDArray[np.float32]:
    """Logits after each of `IDS`."""
    source = make_bundle(case)
    ops: Ops[Any, Any, Any] = ReferenceOps() if rounded else UnroundedOps()
    tokens = ops.tokens(np.array([IDS], np.int64))
    logits: NDArray[np.float32] = ops.numpy(
        forward(tokens, ops.prepare(source.weights), source.config, ops)
    )[0]
    return logits


def rms_ratio(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean((found - expected) ** 2.0) / np.mean(expected**2.0)))


def arrays(weights: Weights[Stored]) -> dict[str, Any]:
    """All numbers; the scale of a ternary block of zeros counts as the smallest, which is what dense formats keep."""
    found: dict[str, Any] = {}
    for name, leaf in named_leaves(weights):
        if isinstance(leaf, Ternary):
            codes = ternary.unpack(leaf.packed, columns=leaf.columns)
            zero = ~codes.reshape(*leaf.scales.shape, -1).any(axis=2)
            found[f"{name}.scales"] = np.where(zero, 2.0**-14, leaf.scales).tolist()
            found[f"{name}.packed"] = leaf.packed.tolist()
            found[f"{name}.columns"] = (leaf.columns, leaf.activation_block)
        else:
            found |= {
                f"{name}.{key}": np.asarray(value).tolist() for key, value in vars(leaf).items()
            }
    return found


@cache
def reference_greedy(case: str, *, num_tokens: int) -> list[int]:
    """What follows the first eight of `IDS`, without rounded activations."""
    source = make_bundle(case)
    ops: Ops[Any, Any, Any] = UnroundedOps()
    return greedy(
        Engine(source.config, ops.prepare(source.weights), ops), IDS[:8], num_tokens=num_tokens
    )


def leave_out(numbers: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name: value for name, value in numbers.items() if not name.startswith(prefix)}
