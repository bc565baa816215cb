"""A model that is changed for an export computes what is said of it, and its golden record is its own."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat import checkpoint
from nanochat.backends.reference.ops import ReferenceOps
from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.cost import cost
from nanochat.errors import ConfigError, NumericError
from nanochat.export.transform import (
    unroll,
    unrolled_config,
    with_exit_threshold,
    with_float16_tables,
    without_ahead,
)
from nanochat.init import freeze, init
from nanochat.model import forward
from nanochat.proof.golden import record
from nanochat.shapes import layer_kinds
from nanochat.text.tokenizer import Tokenizer
from nanochat.weights import Dense, Int8

TOKENIZER = Tokenizer.train(["to be or not to be"], vocab_size=270)
BASE: dict[str, Any] = {
    "vocab_size": 270,
    "width": 256,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn_width": 256,
    "num_streams": 1,
}
LOOPS: dict[str, dict[str, Any]] = {
    "all layers": {"loop_count": 2},
    "prelude and coda": {"loop_count": 3, "loop_prelude": 1, "loop_coda": 1},
    "streams": {"loop_count": 2, "num_streams": 2, "loop_coda": 1},
    "kinds": {"loop_count": 2, "loop_prelude": 1, "layer_pattern": ("delta", "attention")},
}


def make(**options: Any) -> Bundle:
    config = ModelConfig(**BASE | options)
    weights = freeze(init(config, np.random.default_rng(0)))
    return Bundle(name="x", config=config, weights=weights, tokenizer=TOKENIZER, generation={})


def logits(source: Bundle) -> NDArray[np.float32]:
    ops = ReferenceOps()
    ids = ops.tokens(np.array([[0, 9, 200, 8, 7, 100]]))
    return forward(ids, ops.prepare(source.weights), source.config, ops)


@pytest.mark.parametrize("options", LOOPS.values(), ids=LOOPS)
def test_an_unrolled_model_computes_the_same_to_the_last_bit(options: dict[str, Any]) -> None:
    source = make(**options)

    unrolled = unroll(source)

    assert unrolled.config.loop_count == 1
    assert np.array_equal(logits(unrolled), logits(source))
    checkpoint.require_complete(unrolled.config, unrolled.weights)


@pytest.mark.parametrize("options", LOOPS.values(), ids=LOOPS)
def test_the_golden_layers_of_an_unrolled_model_are_those_of_the_loop(
    options: dict[str, Any],
) -> None:
    source = make(**options)

    unrolled = unroll(source)

    assert record(unrolled).layers == record(source).layers
    assert record(unrolled).tensors != record(source).tensors


def test_unrolled_layers_stand_in_the_order_in_which_they_run() -> None:
    source = make(**LOOPS["prelude and coda"])

    layers = unroll(source).weights.layers

    order = [source.weights.layers.index(layer) for layer in layers]
    assert order == [0, 1, 1, 1, 2]
    assert layer_kinds(unrolled_config(source.config)) == ("attention",) * 5


def _stored_bytes(config: ModelConfig) -> int:
    return cost(config, context=1).stored_bytes


def test_unrolling_costs_the_looped_layers_once_more_for_each_step() -> None:
    one, two, three = (make(loop_count=count).config for count in (1, 2, 3))

    unrolled = [_stored_bytes(unrolled_config(config)) for config in (two, three)]

    # An ordinary model has no exit gate: what is left beside the table is layers.
    layers = _stored_bytes(one) - _stored_bytes(make(num_layers=1).config)
    assert unrolled[0] - _stored_bytes(one) == layers * 3 // 2
    assert unrolled[1] - unrolled[0] == layers * 3 // 2


def test_an_early_exit_cannot_be_unrolled_and_the_error_says_what_to_do() -> None:
    source = make(loop_count=2, exit_threshold=0.5)

    with pytest.raises(ConfigError, match=r"exit_threshold=0\.5: .* set exit_threshold=1 first"):
        unroll(source)

    assert unroll(with_exit_threshold(source, 1.0)).config.num_layers == 6


def test_a_model_without_a_loop_cannot_be_unrolled() -> None:
    with pytest.raises(ConfigError, match="no loop to unroll"):
        unroll(make())


def test_more_layers_than_a_model_can_have_are_refused() -> None:
    config = ModelConfig(**BASE | {"num_layers": 600, "loop_count": 2})

    with pytest.raises(ConfigError, match="num_layers=1200"):
        unrolled_config(config)


def test_an_exit_threshold_needs_a_loop() -> None:
    with pytest.raises(ConfigError, match="without a loop"):
        with_exit_threshold(make(), 0.5)


@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("table_format", ["int8", "dense"])
def test_float16_tables_are_those_of_the_model_rounded(
    table_format: str, tie_embeddings: bool
) -> None:
    source = make(table_format=table_format, tie_embeddings=tie_embeddings)

    changed = with_float16_tables(source)

    table = changed.weights.embedding
    assert isinstance(table, Dense)
    assert table.values.dtype == np.float32
    assert np.array_equal(table.values, table.values.astype(np.float16))
    checkpoint.require_complete(changed.config, changed.weights)
    difference = logits(changed) - logits(source)
    assert 0 < np.sqrt(np.mean(difference**2) / np.mean(logits(source) ** 2)) < 2e-2


def test_float16_tables_cannot_hold_numbers_beyond_float16() -> None:
    source = make()
    table = source.weights.embedding
    assert isinstance(table, Int8)
    table.scales[5] = 60_000

    with pytest.raises(NumericError, match="embedding in float16 holds"):
        with_float16_tables(source)


@pytest.mark.parametrize("kind", ["independent", "sequential"])
def test_without_the_heads_ahead_the_logits_are_the_same(kind: str) -> None:
    source = make(num_ahead=2, ahead_kind=kind)

    changed = without_ahead(source)

    assert np.array_equal(logits(changed), logits(source))
    checkpoint.require_complete(changed.config, changed.weights)
