"""Rotary embeddings by kind, against transformers' frequencies."""

from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from nanochat.config import ModelConfig
from nanochat.errors import ConfigError
from nanochat.rotary import rotation

BASE: dict[str, Any] = {
    "vocab_size": 67,
    "width": 512,
    "num_layers": 1,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn_width": 256,
    "head_dim": 128,
    "context_length": 32_768,
    "rope_theta": 1e6,
}
LONG = [1 + 0.07 * i for i in range(64)]

# What transformers is told, and what we are.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": (
        {"rope_type": "linear", "factor": 8.0},
        {"rope_type": "linear", "rope_scale": 8.0},
    ),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        {
            "rope_type": "llama3",
            "rope_scale": 8.0,
            "rope_high": 4.0,
            "rope_original_context": 8192,
        },
    ),
    "yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192},
        {
            "rope_type": "yarn",
            "rope_scale": 4.0,
            "rope_original_context": 8192,
            "rope_magnitude": 0.1 * np.log(4.0) + 1,
        },
    ),
    "yarn between other turns": (
        {
            "rope_type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 20.0,
            "beta_slow": 2.0,
            "attention_factor": 0.8,
        },
        {
            "rope_type": "yarn",
            "rope_scale": 16.0,
            "rope_original_context": 4096,
            "rope_low": 2.0,
            "rope_high": 20.0,
            "rope_magnitude": 0.8,
        },
    ),
    "longrope": (
        {
            "rope_type": "longrope",
            "factor": 4.0,
            "short_factor": [1.0] * 64,
            "long_factor": LONG,
            "original_max_position_embeddings": 8192,
        },
        {
            "rope_type": "factors",
            "rope_factors": tuple(LONG),
            "rope_magnitude": float(np.sqrt(1 + np.log(4) / np.log(8192))),
        },
    ),
    "some features": (
        {"rope_type": "linear", "factor": 1.0, "partial_rotary_factor": 0.25},
        {"rope_type": "linear", "rope_dims": 32},
    ),
}


@pytest.mark.parametrize(("theirs", "ours"), KINDS.values(), ids=KINDS.keys())
def test_frequencies_and_magnitude_are_those_of_transformers(
    theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    told = LlamaConfig(
        hidden_size=512,
        num_attention_heads=4,
        head_dim=128,
        max_position_embeddings=32_768,
        rope_parameters={"rope_theta": 1e6, **theirs},
    )
    frequencies, magnitude = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](told, "cpu", seq_len=32_768)

    found = rotation(ModelConfig(**BASE | ours))

    assert found.dims == 2 * len(frequencies)
    np.testing.assert_allclose(found.frequencies, frequencies.numpy(), rtol=0, atol=1e-7)
    assert found.magnitude == pytest.approx(magnitude, rel=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rope_dims": 7}, "rope_dims=7 is odd"),
        ({"rope_dims": 130}, "rope_dims=130 is more than head_dim=128"),
        ({"rope_type": "yarn"}, "yarn.* without rope_original_context"),
        (
            {"rope_type": "llama3", "rope_original_context": 8192, "rope_high": 1.0},
            "rope_low=1.0 is not below rope_high=1.0",
        ),
        ({"rope_factors": (1.0,)}, "rope_factors has 1 numbers .*: write 0"),
        ({"rope_type": "factors"}, "rope_factors has 0 numbers .*: write 64"),
        ({"rope_factors": (0.0,)}, "rope_factors=0.0: must lie between"),
        ({"rope_factors": [1.0]}, "write a tuple of numbers"),
        ({"rope_type": "dynamic"}, "rope_type='dynamic': choose one of"),
        (
            {"rope_type": "yarn", "rope_original_context": 8192, "rope_theta": 1.0},
            "all pairs turn alike",
        ),
    ],
)
def test_what_is_no_rotation_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**BASE | options)
