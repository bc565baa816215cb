"""The shapes of the weights are those that the options ask for, and no others."""

import math
from typing import Any

import pytest

from nanochat.config import ModelConfig, hybrid_pattern
from nanochat.shapes import layer_kinds, mix_size, num_parameters, shapes
from nanochat.weights import Spec, named_leaves

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "width": 256,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn_width": 512,
    "num_streams": 1,
}


def leaves(**options: object) -> dict[str, Spec]:
    return dict(named_leaves(shapes(ModelConfig(**SMALL | options))))


def shapes_under(prefix: str, found: dict[str, Spec]) -> dict[str, tuple[int, ...]]:
    return {
        name.removeprefix(prefix): spec.shape
        for name, spec in found.items()
        if name.startswith(prefix)
    }


def test_a_dense_model_has_these_weights_and_no_others() -> None:
    found = leaves(num_layers=1)

    assert {name: spec.shape for name, spec in found.items()} == {
        "embedding": (50, 256),
        "layers.0.mixer_site.norm": (256,),
        "layers.0.mixer.q": (256, 256),
        "layers.0.mixer.k": (128, 256),
        "layers.0.mixer.v": (128, 256),
        "layers.0.mixer.o": (256, 256),
        "layers.0.mixer.q_norm": (64,),
        "layers.0.mixer.k_norm": (64,),
        "layers.0.network_site.norm": (256,),
        "layers.0.network.gate": (512, 256),
        "layers.0.network.up": (512, 256),
        "layers.0.network.down": (256, 512),
        "norm": (256,),
    }


def test_only_the_large_linears_are_ternary() -> None:
    found = leaves(
        layer_pattern=("delta", "attention"),
        num_experts=2,
        expert_width=256,
        shared_expert_width=256,
        attention_gate=True,
        num_streams=4,
        coefficients="dynamic",
        sub_norm=True,
        loop_count=2,
        tie_embeddings=False,
    )

    ternary = {name.rsplit(".", 1)[-1] for name, spec in found.items() if spec.kind == "ternary"}
    tables = {name for name, spec in found.items() if spec.kind == "int8"}
    assert ternary == {"q", "k", "v", "o", "gate", "up", "down"}
    assert tables == {"embedding", "head"}


def test_tables_are_dense_if_the_configuration_says_so() -> None:
    assert leaves(table_format="dense")["embedding"].kind == "dense"


def test_delta_layers_have_these_weights() -> None:
    found = leaves(
        layer_pattern=("delta",),
        delta_heads=2,
        delta_key_dim=32,
        delta_value_dim=128,
        delta_conv_width=3,
        sub_norm=True,
    )

    assert shapes_under("layers.1.mixer.", found) == {
        "q": (64, 256),
        "k": (64, 256),
        "v": (256, 256),
        "gate": (256, 256),
        "o": (256, 256),
        "q_conv": (64, 3),
        "k_conv": (64, 3),
        "v_conv": (256, 3),
        "beta": (2, 256),
        "decay": (2, 256),
        "log_rate": (2,),
        "time_bias": (2,),
        "norm": (128,),
        "sub_norm": (256,),
    }


def test_squared_relu_has_no_gate() -> None:
    found = leaves(activation="relu2")

    assert set(shapes_under("layers.0.network.", found)) == {"up", "down"}


@pytest.mark.parametrize(
    ("mixer", "num_streams", "size"),
    [("lite", 2, 2), ("lite", 4, 24), ("sinkhorn", 2, 4), ("sinkhorn", 4, 16), ("identity", 4, 0)],
)
def test_a_static_site_has_biases_only(mixer: str, num_streams: int, size: int) -> None:
    options = {"mixer": mixer, "num_streams": num_streams}

    found = shapes_under("layers.0.mixer_site.mhc.", leaves(**options))

    assert mix_size(ModelConfig(**SMALL | options)) == size
    assert found.get("mix", (0,)) == (size,)
    assert found["read"] == found["write"] == (num_streams,)
    assert not {"projection", "gates"} & set(found)


@pytest.mark.parametrize(("mixer", "rows"), [("lite", 32), ("sinkhorn", 24), ("identity", 8)])
def test_a_dynamic_site_projects_all_streams_to_all_logits(mixer: str, rows: int) -> None:
    found = leaves(mixer=mixer, num_streams=4, coefficients="dynamic")

    assert found["layers.1.network_site.mhc.projection"].shape == (rows, 1024)
    assert found["layers.1.network_site.mhc.gates"].shape == (3,)


def test_projections_alone_are_float16() -> None:
    found = leaves(num_streams=4, coefficients="dynamic", layer_pattern=("delta", "attention"))

    halves = {n for n, spec in found.items() if (spec.kind, spec.dtype) == ("dense", "float16")}

    assert halves == {name for name in found if name.endswith(".mhc.projection")}


def test_one_stream_has_no_coefficients() -> None:
    assert not [name for name in leaves(num_streams=1) if "mhc" in name]


def test_a_pattern_repeats_until_every_layer_has_a_kind() -> None:
    config = ModelConfig(**SMALL | {"num_layers": 7, "layer_pattern": hybrid_pattern(delta=2)})

    kinds = layer_kinds(config)

    assert kinds == ("delta", "delta", "attention", "delta", "delta", "attention", "delta")


def test_extra_heads_are_attention_layers_of_one_stream() -> None:
    found = leaves(num_ahead=1, num_streams=4, layer_pattern=("delta",))

    ahead = shapes_under("ahead.0.", found)
    assert ahead["mixer.q"] == (256, 256)
    assert not [name for name in ahead if "mhc" in name]


def test_a_looped_layer_is_held_once_and_an_exit_gate_is_added() -> None:
    single, looped = leaves(), leaves(loop_count=4)

    assert set(looped) - set(single) == {"exit.norm", "exit.weight", "exit.bias"}


def test_an_untied_head_is_a_second_table() -> None:
    tied, untied = ModelConfig(**SMALL), ModelConfig(**SMALL, tie_embeddings=False)

    assert num_parameters(untied) - num_parameters(tied) == 50 * 256


def test_parameters_are_counted_by_hand() -> None:
    config = ModelConfig(**SMALL | {"num_streams": 4})

    attention = 256 * (256 + 128 + 128 + 256) + 2 * 64
    sites = 2 * (256 + 4 + 4 + 24)
    network = 3 * 256 * 512
    assert num_parameters(config) == 50 * 256 + 2 * (attention + sites + network) + 256


@pytest.mark.parametrize(
    ("weight_block", "activation_block", "blocks"),
    [
        (256, 128, (256, 128)),
        (128, 128, (128, 128)),
        ("row", 128, (512, 128)),
        ("row", "token", (512, 512)),
    ],
    ids=str,
)
def test_a_linear_knows_its_blocks(
    weight_block: int | str, activation_block: int | str, blocks: tuple[int, int]
) -> None:
    found = leaves(weight_block=weight_block, activation_block=activation_block)

    down = found["layers.0.network.down"]
    assert (down.weight_block, down.activation_block) == blocks


def test_a_hostile_configuration_is_described_in_little_time_and_memory() -> None:
    config = ModelConfig(
        **SMALL | {"num_layers": 1024, "num_heads": 1024, "head_dim": 1024, "width": 1 << 16}
    )

    assert num_parameters(config) > 1e14
    assert math.prod(shapes(config).layers[0].mixer.q.shape) == 1 << 36
