"""Initial weights are the same for the same seed, of the right size, and break the symmetry of the streams."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat.config import ModelConfig
from nanochat.errors import NumericError
from nanochat.init import freeze, init, latent_values
from nanochat.lm import Model
from nanochat.proof.golden import tensor_digests
from nanochat.shapes import shapes
from nanochat.ternary import dequantize, quantize, unpack
from nanochat.weights import (
    Dense,
    Int8,
    Latent,
    Spec,
    Stored,
    Ternary,
    Weights,
    leaf_of,
    map_leaves,
    named_leaves,
)
from tests.parity.cases import CASES
from tests.parity.random_models import random_weights

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "width": 256,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn_width": 512,
}
EVERYTHING: dict[str, Any] = SMALL | {
    "layer_pattern": ("delta", "attention"),
    "num_experts": 2,
    "expert_width": 256,
    "coefficients": "dynamic",
    "sub_norm": True,
    "attention_gate": True,
    "loop_count": 2,
    "num_ahead": 1,
    "tie_embeddings": False,
}


def drawn(seed: int = 0, **options: object) -> Weights[Stored]:
    return init(ModelConfig(**SMALL | options), np.random.default_rng(seed))


def values(weights: Weights[Stored], name: str) -> NDArray[Any]:
    leaf = dict(named_leaves(weights))[name]
    assert isinstance(leaf, (Dense, Latent))
    return leaf.values


def content(weights: Weights[Stored]) -> dict[str, list[bytes]]:
    """Return the bytes of every array by name."""
    return {
        name: [part.tobytes() for part in vars(leaf).values() if isinstance(part, np.ndarray)]
        for name, leaf in named_leaves(weights)
    }


def test_the_same_seed_gives_the_same_bits() -> None:
    assert content(drawn(5, **EVERYTHING)) == content(drawn(5, **EVERYTHING))


def test_another_seed_gives_other_weights() -> None:
    assert content(drawn(5)) != content(drawn(6))


def test_every_leaf_has_the_shape_and_kind_of_its_description() -> None:
    described = dict(named_leaves(shapes(ModelConfig(**EVERYTHING))))

    weights = drawn(**EVERYTHING)

    found = {
        name: (getattr(leaf, "kind", "dense"), values(weights, name).shape)
        for name, leaf in named_leaves(weights)
    }
    assert found == {name: (spec.kind, spec.shape) for name, spec in described.items()}


def test_every_leaf_has_the_type_of_its_description() -> None:
    described = dict(named_leaves(shapes(ModelConfig(**EVERYTHING))))

    weights = drawn(**EVERYTHING)

    found = {name: values(weights, name).dtype.name for name, _ in named_leaves(weights)}
    assert found == {
        name: spec.dtype if spec.kind == "dense" else "float32" for name, spec in described.items()
    }


def test_a_linear_keeps_the_variance_of_its_input() -> None:
    q = values(drawn(), "layers.0.mixer.q")

    assert q.std() == pytest.approx(1 / 16, rel=0.02)
    assert abs(q.mean()) < 1e-3


@pytest.mark.parametrize(
    ("options", "num_writes"),
    [({}, 8), ({"loop_count": 3}, 24), ({"loop_count": 3, "loop_prelude": 2, "loop_coda": 1}, 12)],
    ids=["layers", "loop", "loop with prelude and coda"],
)
def test_what_writes_to_the_streams_is_smaller_by_the_root_of_the_number_of_writes(
    options: dict[str, int], num_writes: int
) -> None:
    down = values(drawn(**options), "layers.0.network.down")

    assert down.std() == pytest.approx((512 * num_writes) ** -0.5, rel=0.02)


@pytest.mark.parametrize(("tied", "deviation"), [(True, 1 / 16), (False, 1.0)])
def test_an_embedding_that_is_also_the_head_is_as_small_as_a_linear(
    tied: bool, deviation: float
) -> None:
    embedding = values(drawn(tie_embeddings=tied), "embedding")

    assert embedding.std() == pytest.approx(deviation, rel=0.02)


def test_a_delta_layer_s_steps_lie_between_a_thousandth_and_a_tenth() -> None:
    weights = drawn(layer_pattern=("delta",), delta_heads=64)

    steps = np.log1p(np.exp(values(weights, "layers.0.mixer.time_bias").astype(np.float64)))
    rates = np.exp(values(weights, "layers.0.mixer.log_rate"))

    assert 0.000999 < steps.min() < 0.01 < steps.max() < 0.1001
    assert 1 <= rates.min() < 8 < rates.max() <= 16.001


# mHC.


@pytest.mark.parametrize(
    ("num_streams", "streams"), [(2, [0, 1] * 4), (4, [0, 1, 2, 3] * 2)], ids=["two", "four"]
)
@pytest.mark.parametrize("end", ["read", "write"])
def test_site_s_prefers_stream_s_mod_n(num_streams: int, streams: list[int], end: str) -> None:
    weights = drawn(num_streams=num_streams)

    sites = [
        values(weights, f"layers.{layer}.{site}_site.mhc.{end}")
        for layer in range(4)
        for site in ("mixer", "network")
    ]

    assert [int(biases.argmax()) for biases in sites] == streams
    assert {tuple(np.sort(biases)) for biases in sites} == {(-1.0,) * (num_streams - 1) + (1.0,)}


def test_lite_mixing_starts_near_the_identity() -> None:
    mix = values(drawn(mixer_bias=-8.0), "layers.0.mixer_site.mhc.mix")

    assert mix.tolist() == [0.0] + [-8.0] * 23


def test_sinkhorn_mixing_starts_near_the_identity() -> None:
    weights = drawn(mixer="sinkhorn", mixer_bias=-8.0, num_streams=2)

    mix = values(weights, "layers.0.mixer_site.mhc.mix")

    assert mix.tolist() == [0.0, -8.0, -8.0, 0.0]


def test_dynamic_coefficients_start_at_zero_with_gates_of_a_hundredth() -> None:
    weights = drawn(coefficients="dynamic")

    assert not values(weights, "layers.0.mixer_site.mhc.projection").any()
    assert values(weights, "layers.0.mixer_site.mhc.gates") == pytest.approx([0.01] * 3)


def test_an_exit_gate_starts_undecided() -> None:
    weights = drawn(loop_count=2)

    assert not values(weights, "exit.weight").any()
    assert not values(weights, "exit.bias").any()


# Freezing.


def test_freezing_rounds_every_latent_leaf_to_what_it_stands_for() -> None:
    weights = drawn(**EVERYTHING)

    frozen = dict(named_leaves(freeze(weights)))

    q, head = frozen["layers.1.mixer.q"], frozen["head"]
    codes, scales = quantize(values(weights, "layers.1.mixer.q"), block=256)
    assert isinstance(q, Ternary)
    assert isinstance(head, Int8)
    assert np.array_equal(unpack(q.packed, columns=256), codes)
    assert np.array_equal(q.scales, scales)
    assert np.abs(head.codes).max() == 127


def test_freezing_twice_changes_nothing() -> None:
    once = freeze(drawn(**EVERYTHING))

    assert content(freeze(once)) == content(once)


def test_a_frozen_tree_holds_no_latent_leaf() -> None:
    frozen = freeze(drawn(**EVERYTHING))

    assert not [name for name, leaf in named_leaves(frozen) if isinstance(leaf, Latent)]


def test_freezing_leaves_the_latent_weights_as_they_were() -> None:
    weights = drawn()
    before = content(weights)

    freeze(weights)

    assert content(weights) == before


def test_a_frozen_linear_is_close_to_its_latent_one() -> None:
    weights = drawn()

    q = dict(named_leaves(freeze(weights)))["layers.0.mixer.q"]

    assert isinstance(q, Ternary)
    rounded = dequantize(unpack(q.packed, columns=256), q.scales)
    # Rounding a normal variable to three values at its mean magnitude keeps nine tenths of the correlation.
    latent = values(weights, "layers.0.mixer.q")
    assert np.corrcoef(rounded.ravel(), latent.ravel())[0, 1] == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("name", ["layers.2.mixer.q", "embedding", "layers.1.network_site.norm"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_freezing_names_the_leaf_that_is_not_finite(name: str, bad: float) -> None:
    weights = drawn()
    values(weights, name).flat[3] = bad

    with pytest.raises(NumericError, match=f"^{name} holds {bad} at"):
        freeze(weights)


def rounded_again(weights: Weights[Stored], config: ModelConfig) -> Weights[Stored]:
    """What training's first pass makes of the numbers that a model is trained on from."""
    kept = dict(named_leaves(weights))

    def leaf(name: str, spec: Spec) -> Stored:
        return leaf_of(spec, latent_values(name, kept[name]))

    return freeze(map_leaves(leaf, shapes(config)))


@pytest.mark.parametrize("name", CASES)
def test_training_goes_on_from_a_model_with_just_its_codes_and_scales(name: str) -> None:
    weights = freeze(random_weights(CASES[name]))

    assert tensor_digests(rounded_again(weights, CASES[name])) == tensor_digests(weights)


def test_training_goes_on_from_the_model_that_ships() -> None:
    model = Model.from_pretrained("nanochat-tiny", backend="reference")

    again = rounded_again(model.weights, model.config)

    assert tensor_digests(again) == tensor_digests(model.weights)
