"""New weights in a running engine are those of an engine that was built with them, on every backend."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat import backends
from nanochat.config import ModelConfig
from nanochat.errors import InputError, NumericError, ShapeError
from nanochat.generation.engine import Engine
from nanochat.init import freeze
from nanochat.weights import Dense, Latent, named_leaves, replace_leaf
from tests.backends.leaves import AnyOps
from tests.parity.cases import CASES
from tests.parity.random_models import random_weights

# Leaves of every kind and place.
UPDATED = [
    "untied",
    "dense_tables",
    "delta_by_pattern",
    "shared_expert",
    "loop_with_delta",
    "adaptive_exit",
    "row_and_token_scales",
    "4_streams_static_lite",
    "2_streams_dynamic_sinkhorn",
]
every_case = pytest.mark.parametrize("option", UPDATED)

AnyEngine = Engine[Any, Any, Any]


def engine(ops: AnyOps, config: ModelConfig, seed: int) -> AnyEngine:
    return Engine(config, ops.prepare(freeze(random_weights(config, seed))), ops)


def values(config: ModelConfig, seed: int) -> dict[str, NDArray[np.float32]]:
    """What a training run would send, by name."""
    found = {}
    for name, leaf in named_leaves(random_weights(config, seed)):
        assert isinstance(leaf, Latent | Dense)
        found[name] = leaf.values.astype(np.float32)
    return found


def update_all(model: AnyEngine, seed: int) -> None:
    for name, new in values(model.config, seed).items():
        model.update(name, new)


@every_case
def test_an_updated_engine_equals_a_new_one(ops: AnyOps, option: str) -> None:
    config = CASES[option]
    model = engine(ops, config, 0)
    before = model.logits([1, 2, 3])

    update_all(model, 1)

    expected = engine(ops, config, 1).logits([1, 2, 3])
    np.testing.assert_array_equal(model.logits([1, 2, 3]), expected)
    assert not np.array_equal(before, expected)


@every_case
def test_a_step_in_the_middle_of_a_text_uses_new_weights(ops: AnyOps, option: str) -> None:
    config = CASES[option]
    new, model = engine(ops, config, 1), engine(ops, config, 0)
    # It would repeat what was noted of the other one's step.
    new._repeats = None
    states = [model.prefill([1, 2, 3], capacity=12)[0] for _ in range(2)]
    for token in (4, 5, 6):
        for state in states:
            model.decode([token], state)

    update_all(model, 1)

    for token in (7, 8, 9):
        found, expected = model.decode([token], states[0]), new.decode([token], states[1])
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("option", ["4_streams_static_lite", "delta_by_pattern", "untied"])
def test_each_parameter_alone_is_used_by_the_next_step(ops: AnyOps, option: str) -> None:
    config = CASES[option]
    # Another one of the same backend, which has kept nothing.
    fresh = backends.get(ops.name)
    model, weights = engine(ops, config, 0), random_weights(config, 0)
    repeats = model._repeats
    repeated, plain = (model.prefill([1, 2, 3], capacity=500)[0] for _ in range(2))
    for state in (repeated, plain):
        model.decode([4], state)

    for name, leaf in named_leaves(random_weights(config, 1)):
        model.update(name, values(config, 1)[name])
        weights = replace_leaf(weights, name, leaf)

        expected = Engine(config, fresh.prepare(freeze(weights)), fresh)
        np.testing.assert_array_equal(model.logits([1, 2]), expected.logits([1, 2]), name)
        model._repeats = repeats
        found = model.decode([5], repeated)
        model._repeats = None
        np.testing.assert_array_equal(found, model.decode([5], plain), name)


def test_another_tree_of_the_same_leaves_stays_as_it_was(ops: AnyOps) -> None:
    config = CASES["4_streams_static_lite"]
    model = engine(ops, config, 0)
    other = Engine(config, model.weights, ops)
    before = other.logits([1, 2, 3])

    update_all(model, 1)

    np.testing.assert_array_equal(other.logits([1, 2, 3]), before)


@pytest.mark.parametrize(
    ("name", "shape", "error", "message"),
    [
        (
            "layers.0.mixer.p",
            (128, 128),
            InputError,
            r"'layers.0.mixer.p' \(did you mean layers.0.mixer.[qkvo]\?\)",
        ),
        ("weights", (1,), InputError, "there is no parameter 'weights': names are like layers.0"),
        (
            "layers.0.mixer.q",
            (128, 1),
            ShapeError,
            r"q has shape \(128, 128\), the new values \(128, 1\)",
        ),
        ("norm", (128,), NumericError, r"norm holds inf at \[0\]"),
    ],
    ids=["name", "no name", "shape", "infinite"],
)
def test_what_is_no_new_value_is_refused(
    ops: AnyOps, name: str, shape: tuple[int, ...], error: type[Exception], message: str
) -> None:
    model = engine(ops, CASES["untied"], 0)

    with pytest.raises(error, match=message):
        model.update(name, np.full(shape, np.inf, np.float32))
