"""A configuration that cannot work is refused with the value, the rule and the fix."""

import dataclasses
import json
import re
from typing import Any

import pytest

from nanochat.config import ModelConfig, config_from_dict, config_to_dict, hybrid_pattern
from nanochat.errors import ConfigError

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "width": 256,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn_width": 512,
}
MOE = SMALL | {"num_experts": 4, "expert_width": 256}
LOOP = SMALL | {"loop_count": 2}

# No field has its default value.
OTHER: dict[str, Any] = SMALL | {
    "head_dim": 128,
    "context_length": 99,
    "activation": "relu2_glu",
    "qk_norm": False,
    "sub_norm": True,
    "attention_gate": True,
    "layer_pattern": ("delta", "attention", "attention", "delta"),
    "rope_theta": 5e5,
    "rope_scale": 2.5,
    "rope_type": "factors",
    "rope_dims": 4,
    "rope_original_context": 50,
    "rope_low": 2.0,
    "rope_high": 16.0,
    "rope_factors": (1.0, 2.5),
    "rope_magnitude": 1.1,
    "delta_heads": 2,
    "delta_key_dim": 32,
    "delta_value_dim": 128,
    "delta_conv_width": 3,
    "num_experts": 3,
    "experts_per_token": 1,
    "expert_width": 256,
    "shared_expert_width": 512,
    "loop_count": 3,
    "loop_prelude": 1,
    "loop_coda": 1,
    "exit_threshold": 0.5,
    "num_ahead": 2,
    "ahead_kind": "sequential",
    "tie_embeddings": False,
    "num_streams": 2,
    "coefficients": "dynamic",
    "mixer": "sinkhorn",
    "sinkhorn_iterations": 5,
    "mixer_bias": -4.5,
    "table_format": "dense",
    "head_format": "ternary",
    "delta_key_heads": 1,
    "delta_gates": "ternary",
    "embedding_scale": 12.0,
    "residual_scale": 0.5,
    "logit_scale": 9.0,
    "weight_block": "row",
    "activation_block": "token",
    "norm_eps": 1e-5,
}


REFUSED: list[tuple[dict[str, Any], str, object, str]] = [
    # Kinds of value.
    (SMALL, "width", 256.0, "write a whole number"),
    (SMALL, "width", True, "write a whole number"),
    (SMALL, "width", "256", "write a whole number"),
    (SMALL, "width", None, "write a whole number"),
    (SMALL, "loop_prelude", 1.0, "write a whole number"),
    (SMALL, "rope_theta", "1e4", "write a number"),
    (SMALL, "rope_theta", True, "write a number"),
    (SMALL, "norm_eps", None, "write a number"),
    (SMALL, "qk_norm", 1, "write true or false"),
    (SMALL, "tie_embeddings", "yes", "write true or false"),
    # Choices.
    (SMALL, "activation", "gelu", "choose one of ['swiglu', 'relu2', 'relu2_glu']"),
    (SMALL, "coefficients", "learned", "choose one of ['static', 'dynamic']"),
    (SMALL, "mixer", "full", "choose one of ['lite', 'sinkhorn', 'identity']"),
    (SMALL, "table_format", "int4", "choose one of ['int8', 'int8_32', 'int8_16', 'ternary'"),
    (SMALL, "num_streams", 3, "choose one of [1, 2, 4]"),
    (SMALL, "num_streams", 4.0, "choose one of [1, 2, 4]"),
    (SMALL, "num_streams", True, "choose one of [1, 2, 4]"),
    (SMALL, "weight_block", 32, "choose one of ['row', 64, 128, 256]"),
    (SMALL, "weight_block", 256.0, "choose one of ['row', 64, 128, 256]"),
    (SMALL, "weight_block", [256], "choose one of ['row', 64, 128, 256]"),
    (SMALL, "activation_block", "row", "choose one of ['token', 64, 128, 256]"),
    (SMALL, "activation_block", 128.0, "choose one of ['token', 64, 128, 256]"),
    # Layers.
    (SMALL, "layer_pattern", (), "write a non-empty tuple of ['attention', 'delta']"),
    (SMALL, "layer_pattern", ("mamba",), "write a non-empty tuple of ['attention', 'delta']"),
    (SMALL, "layer_pattern", "delta", "write a non-empty tuple of ['attention', 'delta']"),
    (SMALL, "layer_pattern", (["delta"],), "write a non-empty tuple of ['attention', 'delta']"),
    # Ranges.
    (SMALL, "vocab_size", 0, "must lie between 1 and"),
    (SMALL, "width", -256, "must lie between 1 and"),
    (SMALL, "num_layers", 0, "must lie between 1 and"),
    (SMALL, "num_heads", 0, "must lie between 1 and"),
    (SMALL, "num_kv_heads", 0, "must lie between 1 and"),
    (SMALL, "head_dim", 0, "must lie between 1 and"),
    (SMALL, "ffn_width", 0, "must lie between 1 and"),
    (SMALL, "context_length", 0, "must lie between 1 and"),
    (SMALL, "loop_count", 0, "must lie between 1 and"),
    (SMALL, "num_ahead", -1, "must lie between 0 and"),
    (SMALL, "num_experts", -1, "must lie between 0 and"),
    (SMALL, "experts_per_token", 0, "must lie between 1 and"),
    (MOE, "expert_width", 0, "must lie between 1 and"),
    (MOE, "shared_expert_width", -256, "must lie between 0 and"),
    (SMALL, "delta_heads", 0, "must lie between 1 and"),
    (SMALL, "delta_key_dim", 0, "must lie between 1 and"),
    (SMALL, "delta_value_dim", 0, "must lie between 1 and"),
    (SMALL, "delta_conv_width", 0, "must lie between 1 and"),
    (SMALL, "sinkhorn_iterations", 0, "must lie between 1 and"),
    (SMALL, "rope_theta", 0.5, "must lie between 1.0 and"),
    (SMALL, "rope_scale", 0.0, "must lie between 1.0 and"),
    (SMALL, "norm_eps", 0.0, "must lie between 1e-20 and"),
    (SMALL, "mixer_bias", -31.0, "must lie between -30.0 and"),
    (LOOP, "exit_threshold", 0.0, "must lie between 1e-06 and 1.0"),
    (LOOP, "exit_threshold", 1.5, "must lie between 1e-06 and 1.0"),
    # Not numbers, and numbers that no machine holds.
    (SMALL, "rope_theta", float("nan"), "must lie between"),
    (SMALL, "mixer_bias", float("-inf"), "must lie between"),
    (SMALL, "rope_theta", float("inf"), "must lie between"),
    (SMALL, "rope_theta", 10**400, "must lie between"),
    (SMALL, "vocab_size", 2**31, "must lie between"),
    (SMALL, "width", 256 * 10**300, "must lie between"),
    (SMALL, "num_layers", 10**9, "must lie between"),
    (SMALL, "num_heads", 2**20, "must lie between"),
    (SMALL, "loop_count", 10**6, "must lie between"),
    (SMALL, "num_ahead", 10**6, "must lie between"),
    (SMALL, "context_length", 2**62, "must lie between"),
    (MOE, "num_experts", 10**6, "must lie between"),
    (MOE, "experts_per_token", 10**30, "must lie between"),
    (SMALL | {"layer_pattern": ("delta",)}, "delta_heads", 10**6, "must lie between"),
    (SMALL, "loop_prelude", 10**30, "leave at least one"),
    # Values that do not fit each other.
    (SMALL, "num_kv_heads", 3, "must serve the same number of query heads"),
    (SMALL | {"num_heads": 256}, "head_dim", 7, "the rotation needs pairs of features"),
    (MOE, "experts_per_token", 5, "must lie between 1 and num_experts=4"),
    (SMALL, "loop_prelude", -1, "leave at least one, and no negative counts"),
    (SMALL, "loop_prelude", 4, "leave at least one, and no negative counts"),
    (SMALL, "loop_coda", -1, "leave at least one, and no negative counts"),
    (SMALL | {"loop_prelude": 2}, "loop_coda", 2, "leave at least one"),
    (SMALL, "exit_threshold", 0.5, "set loop_count above 1 or exit_threshold=1"),
    (
        LOOP | {"layer_pattern": ("delta",)},
        "exit_threshold",
        0.5,
        "keep delta layers in the prelude and coda",
    ),
    (SMALL, "width", 384, "its block of 256: use 512"),
    (SMALL, "ffn_width", 1000, "use 1024"),
    (SMALL | {"weight_block": 128}, "width", 320, "block of 128: use 384"),
    (SMALL | {"weight_block": "row"}, "width", 320, "block of 128: use 384"),
    (MOE, "expert_width", 300, "use 512"),
    (MOE, "shared_expert_width", 300, "use 512"),
    (SMALL, "activation_block", "token", 'pass weight_block="row" or activation_block=128'),
    (SMALL | {"weight_block": 128}, "activation_block", 256, "pass activation_block=128"),
]


@pytest.mark.parametrize(
    ("base", "field", "value", "rule"),
    REFUSED,
    ids=[f"{field}={value!r:.30}" for _, field, value, _ in REFUSED],
)
def test_a_value_is_refused_with_the_rule_that_it_breaks(
    base: dict[str, Any], field: str, value: object, rule: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig(**base | {field: value})

    message = str(caught.value)
    assert f"{field}=" in message
    assert str(value) in message
    assert rule in message


def test_heads_must_fill_whole_blocks() -> None:
    with pytest.raises(ConfigError, match=r"num_heads \* head_dim=192 .* use 256"):
        ModelConfig(**SMALL | {"num_heads": 3, "num_kv_heads": 3})


def test_delta_heads_must_fill_whole_blocks() -> None:
    with pytest.raises(ConfigError, match=r"delta_heads \* delta_value_dim=192 .* use 256"):
        ModelConfig(**SMALL, layer_pattern=("delta",), delta_heads=3)


def test_a_configuration_cannot_ask_for_millions_of_experts_in_all() -> None:
    with pytest.raises(ConfigError, match=r"num_layers=1024 .* num_experts=1024: .* at most"):
        ModelConfig(**MOE | {"num_layers": 1024, "num_experts": 1024})


def test_a_dense_network_is_not_asked_for_experts_nor_experts_for_a_dense_network() -> None:
    dense = ModelConfig(**SMALL)
    sparse = ModelConfig(**MOE | {"ffn_width": 0})

    assert dense.expert_width == 0
    assert sparse.ffn_width == 0


def test_an_unused_delta_width_may_be_anything() -> None:
    config = ModelConfig(**SMALL, delta_heads=3)

    assert config.delta_heads == 3


def test_blocks_may_be_a_whole_row_and_a_whole_token() -> None:
    fields = SMALL | {"width": 260, "ffn_width": 500, "weight_block": "row"}

    config = ModelConfig(**fields, activation_block="token")

    assert config.width == 260


def test_adaptive_exit_allows_delta_layers_outside_the_loop() -> None:
    config = ModelConfig(
        **LOOP,
        layer_pattern=hybrid_pattern(delta=1, attention=3),
        loop_prelude=1,
        exit_threshold=0.5,
    )

    assert config.layer_pattern[0] == "delta"


def test_a_configuration_cannot_be_changed() -> None:
    config = ModelConfig(**SMALL)

    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 512  # type: ignore[misc]  # the point of the test


# As a dictionary.


@pytest.mark.parametrize(
    "fields",
    [SMALL, MOE, OTHER, SMALL | {"rotation_block": 256}],
    ids=["defaults", "experts", "no defaults", "rotated"],
)
def test_a_configuration_survives_json(fields: dict[str, Any]) -> None:
    config = ModelConfig(**fields)

    text = json.dumps(config_to_dict(config), allow_nan=False)

    assert config_from_dict(json.loads(text)) == config


def test_the_test_above_covers_every_field() -> None:
    config = ModelConfig(**OTHER)

    optional = {f.name for f in dataclasses.fields(config) if f.default is not dataclasses.MISSING}
    same = {
        name for name in optional if getattr(config, name) == getattr(ModelConfig(**SMALL), name)
    }
    # Which experts cannot be.
    assert same == {"rotation_block"}


def test_absent_optional_fields_take_their_defaults() -> None:
    assert config_from_dict(SMALL) == ModelConfig(**SMALL)


def test_a_float_may_be_written_without_its_point() -> None:
    config = config_from_dict(SMALL | {"rope_theta": 500_000})

    assert isinstance(config.rope_theta, float)
    assert config.rope_theta == 5e5


@pytest.mark.parametrize(
    ("name", "hint"),
    [("num_streamz", " (did you mean num_streams?)"), ("colour", "")],
)
def test_an_unknown_field_is_refused_by_name(name: str, hint: str) -> None:
    message = f"unknown configuration field '{name}'{hint}: remove it, or upgrade nanochat-ternary"

    with pytest.raises(ConfigError, match=re.escape(message)):
        config_from_dict(SMALL | {name: 4})


@pytest.mark.parametrize("field", sorted(SMALL))
def test_a_missing_field_is_refused_by_name(field: str) -> None:
    fields = {name: value for name, value in SMALL.items() if name != field}

    with pytest.raises(ConfigError, match=f"configuration field '{field}' is missing: .* write it"):
        config_from_dict(fields)


@pytest.mark.parametrize(
    "text",
    [
        '{"width": 1e999}',
        '{"rope_theta": 1e999}',
        '{"rope_theta": NaN}',
        '{"rope_theta": 1' + "0" * 400 + "}",
        '{"width": -1' + "0" * 400 + "}",
        '{"num_streams": 4.0}',
        '{"weight_block": 256.0}',
        '{"layer_pattern": [["attention"]]}',
        '{"layer_pattern": {"attention": 1}}',
        '{"layer_pattern": null}',
        '{"qk_norm": []}',
        '{"mixer": {}}',
    ],
    ids=lambda text: text[:24],
)
def test_a_hostile_file_meets_a_configuration_error(text: str) -> None:
    fields = SMALL | json.loads(text)

    with pytest.raises(ConfigError):
        config_from_dict(fields)


def test_a_hybrid_pattern_puts_attention_last() -> None:
    pattern = hybrid_pattern(delta=2, attention=2)

    assert pattern == ("delta", "delta", "attention", "attention")
