"""This file holds small models that together use every option of a configuration."""

from typing import Any

from nanochat.config import ModelConfig, hybrid_pattern

__all__ = ["CASES", "KEPT"]


def _config(**options: Any) -> ModelConfig:
    """Two layers with all options at their simplest, but for `options`."""
    simplest: dict[str, Any] = {
        "vocab_size": 67,
        "width": 128,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 32,
        "ffn_width": 256,
        "context_length": 64,
        "num_streams": 1,
        # Near 0, so that the streams are mixed.
        "mixer_bias": -1.0,
        "weight_block": 128,
    }
    return ModelConfig(**simplest | options)


def _delta(**options: Any) -> ModelConfig:
    shape = {"delta_heads": 2, "delta_key_dim": 24, "delta_value_dim": 64}
    return _config(**shape | options)


def _loop(**options: Any) -> ModelConfig:
    shape = {"num_layers": 3, "loop_prelude": 1, "loop_coda": 1, "loop_count": 3}
    return _config(**shape | options)


_EXPERTS = {"ffn_width": 0, "num_experts": 8, "expert_width": 128}

# Some pairs of 32 features turn often in so many tokens, some hardly.
_TRAINED = {"rope_original_context": 4096}

# Each format as a table and as a head.
_TABLES_AND_HEADS = {
    "int8": "int8_32",
    "int8_32": "int8_16",
    "int8_16": "int8",
    "ternary": "bfloat16",
    "bfloat16": "ternary",
    "dense": "float16",
    "float16": "dense",
}

CASES = (
    {
        "grouped_query_attention": _config(),
        "multi_head_attention": _config(num_kv_heads=4),
        "multi_query_attention": _config(num_kv_heads=1),
        "rope_scale": _config(rope_theta=500_000.0, rope_scale=4.0),
        "rope_linear": _config(rope_scale=8.0, rope_type="linear", rope_dims=16),
        "rope_llama3": _config(
            rope_scale=8.0, rope_type="llama3", **_TRAINED, rope_low=2.0, rope_high=8.0
        ),
        "rope_yarn": _config(
            rope_scale=4.0, rope_type="yarn", **_TRAINED, rope_magnitude=1.1386, rope_dims=24
        ),
        "rope_factors": _config(
            rope_type="factors",
            rope_factors=tuple(1 + 0.3 * i for i in range(16)),
            rope_magnitude=0.9,
        ),
        "no_qk_norm": _config(qk_norm=False),
        "relu2": _config(activation="relu2"),
        "relu2_glu": _config(activation="relu2_glu"),
        "sub_norm": _config(sub_norm=True),
        "attention_gate": _config(attention_gate=True),
        "delta_by_ratio": _delta(num_layers=4, layer_pattern=hybrid_pattern(delta=3)),
        "delta_by_pattern": _delta(
            num_layers=3,
            layer_pattern=("attention", "delta", "delta"),
            sub_norm=True,
            num_streams=2,
        ),
        "delta_without_taps": _delta(
            layer_pattern=("delta",), delta_conv_width=1, delta_heads=4, delta_value_dim=32
        ),
        "delta_of_few_key_heads": _delta(
            num_layers=4,
            layer_pattern=hybrid_pattern(delta=3),
            delta_heads=6,
            delta_key_heads=2,
            delta_gates="bfloat16",
            attention_gate=True,
            rope_dims=8,
        ),
        "delta_with_ternary_gates": _delta(layer_pattern=("delta",), delta_gates="ternary"),
        "rotated": _config(rotation_block=128, table_format="ternary", tie_embeddings=False),
        "rotated_tied": _config(rotation_block=64, table_format="ternary", sub_norm=True),
        "rotated_streams": _config(rotation_block=128, num_streams=2),
        "rotated_delta": _delta(
            layer_pattern=("delta", "attention"),
            delta_heads=4,
            delta_key_heads=2,
            delta_gates="float16",
            rotation_block=128,
            table_format="ternary",
        ),
        "rotated_more_than_rounded": _config(
            width=512, ffn_width=1024, num_heads=16, rotation_block=512, activation="relu2_glu"
        ),
        "scaled": _config(
            embedding_scale=12.0,
            residual_scale=0.25,
            logit_scale=9.0,
            tie_embeddings=False,
            norm_eps=1e-3,
        ),
        "scaled_streams": _config(residual_scale=0.3, num_streams=2),
        "experts": _config(**_EXPERTS),
        "shared_expert": _config(**_EXPERTS, shared_expert_width=128, num_streams=2, sub_norm=True),
        "one_expert_per_token": _config(**_EXPERTS, experts_per_token=1, activation="relu2"),
        "loop": _loop(),
        "loop_with_streams": _loop(num_layers=2, loop_prelude=0, num_streams=4),
        "loop_with_delta": _delta(
            num_layers=2, layer_pattern=("delta", "attention"), loop_count=2, tie_embeddings=False
        ),
        "adaptive_exit": _loop(exit_threshold=0.6, num_streams=2),
        "adaptive_exit_of_all": _loop(exit_threshold=0.01),
        "ahead": _config(num_ahead=2, num_streams=2),
        "sequential_heads": _config(num_ahead=2, ahead_kind="sequential", num_streams=2),
        "untied": _config(tie_embeddings=False),
        "dense_table": _config(table_format="dense"),
        "dense_tables": _config(table_format="dense", tie_embeddings=False),
        "ternary_table": _config(table_format="ternary"),
        "ternary_tables": _config(table_format="ternary", tie_embeddings=False, num_streams=2),
        "table_of_blocks_of_32": _config(table_format="int8_32"),
        "table_of_blocks_of_16": _config(table_format="int8_16"),
        "float16_table": _config(table_format="float16"),
        "blocks_of_64": _config(weight_block=64, activation_block=64, table_format="ternary"),
        "weight_block_256": _config(width=256, num_heads=8, num_kv_heads=4, weight_block=256),
        "both_blocks_256": _config(
            width=256, head_dim=64, weight_block=256, activation_block=256, tie_embeddings=False
        ),
        "row_scales": _config(weight_block="row"),
        # No multiple of 8, let alone of a block.
        "row_and_token_scales": _config(
            width=132,
            num_heads=6,
            head_dim=22,
            ffn_width=100,
            weight_block="row",
            activation_block="token",
        ),
        "few_sinkhorn_iterations": _config(num_streams=2, mixer="sinkhorn", sinkhorn_iterations=2),
    }
    | {
        f"{table}_table_and_{head}_head": _config(
            table_format=table, head_format=head, tie_embeddings=False
        )
        for table, head in _TABLES_AND_HEADS.items()
    }
    | {
        f"{n}_streams_{coefficients}_{mixer}": _config(
            num_streams=n, coefficients=coefficients, mixer=mixer
        )
        for n in (2, 4)
        for coefficients in ("static", "dynamic")
        for mixer in ("lite", "sinkhorn", "identity")
    }
)

# Models that continue rows with keys and values in every form: each has something else that meets what is kept, and
# heads of 22 and 32 features fill the last block of 32 in part and whole.
KEPT = (
    "grouped_query_attention",
    "row_and_token_scales",
    "attention_gate",
    "rope_yarn",
    "rotated_tied",
    "rotated_delta",
    "delta_of_few_key_heads",
    "loop_with_delta",
    "loop_with_streams",
)
