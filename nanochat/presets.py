"""This file holds the presets: functions that return a model's configuration, by name.

A number in a name is the count of trained numbers, embedding and all, within 3 percent (`shapes.num_parameters`).

All but `tiny_plain` have four residual streams, which this package runs and llama.cpp, mlx-lm and transformers cannot:
for a model that shall run there, too, set `num_streams` to 1.
"""

from dataclasses import replace

from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, did_you_mean

__all__ = ["PRESETS", "preset"]


def preset(name: str) -> ModelConfig:
    """The configuration of that name.

    Examples
    --------
    >>> preset("nano-125m").width
    768
    """
    if name not in PRESETS:
        raise ConfigError(
            f"unknown preset {name!r}{did_you_mean(name, PRESETS)}: choose one of {', '.join(PRESETS)}"
        )
    return PRESETS[name]()


def tiny() -> ModelConfig:
    """The model that ships: about 6M parameters, small enough to train on two cores."""
    return ModelConfig(
        vocab_size=4096,
        width=256,
        num_layers=6,
        num_heads=4,
        num_kv_heads=2,
        ffn_width=768,
        context_length=1024,
        mixer_bias=-6.0,
    )


def tiny_plain() -> ModelConfig:
    """`tiny` with one residual stream: llama.cpp, mlx-lm and transformers run it as it is."""
    return replace(tiny(), num_streams=1)


def nano_125m() -> ModelConfig:
    """The size of GPT-2 small, with grouped queries and SwiGLU."""
    return ModelConfig(
        vocab_size=32_768,
        width=768,
        num_layers=12,
        num_heads=12,
        num_kv_heads=6,
        ffn_width=2816,
    )


def small_560m() -> ModelConfig:
    """As many parameters as `d20`, with grouped queries, SwiGLU and a tied head, so more of them in the layers."""
    return ModelConfig(
        vocab_size=32_768,
        width=1280,
        num_layers=24,
        num_heads=10,
        num_kv_heads=2,
        head_dim=128,
        ffn_width=4608,
        context_length=4096,
    )


def d20() -> ModelConfig:
    """Depth 20: the shape of the `d20` of karpathy/nanochat, width 1280, with ternary linears."""
    return ModelConfig(
        vocab_size=65_536,
        width=1280,
        num_layers=20,
        num_heads=10,
        num_kv_heads=10,
        head_dim=128,
        ffn_width=5120,
        activation="relu2",
        tie_embeddings=False,
    )


def nano_1b() -> ModelConfig:
    """A dense model for phones and laptops: about 0.36 GB when stored."""
    return ModelConfig(
        vocab_size=65_536,
        width=2048,
        num_layers=18,
        num_heads=16,
        num_kv_heads=4,
        head_dim=128,
        ffn_width=6144,
        context_length=4096,
    )


def medium_3b_moe() -> ModelConfig:
    """A mixture of 8 experts, 2 for each token, and a shared one; about half of the parameters are active."""
    return ModelConfig(
        vocab_size=65_536,
        width=2048,
        num_layers=20,
        num_heads=16,
        num_kv_heads=4,
        head_dim=128,
        ffn_width=0,
        num_experts=8,
        experts_per_token=2,
        expert_width=2048,
        shared_expert_width=4096,
        context_length=8192,
        rope_theta=500_000.0,
        tie_embeddings=False,
    )


def large_7b() -> ModelConfig:
    """A dense model of the usual large shape: about 2.2 GB when stored."""
    return ModelConfig(
        vocab_size=65_536,
        width=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        ffn_width=13_312,
        context_length=8192,
        rope_theta=500_000.0,
        tie_embeddings=False,
    )


PRESETS = {
    "tiny": tiny,
    "tiny-plain": tiny_plain,
    "nano-125m": nano_125m,
    "small-560m": small_560m,
    "d20": d20,
    "nano-1b": nano_1b,
    "medium-3b-moe": medium_3b_moe,
    "large-7b": large_7b,
}
