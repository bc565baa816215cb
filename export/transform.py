"""This file holds the changes that a user may ask for before a model is exported: another model that a runtime can run.

Each gives a new `Source`, with a golden record of its own, and says what it changes. Nothing here is done unasked.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError
from nanochat.export.source import Source
from nanochat.shapes import layer_kinds
from nanochat.weights import Dense, Int8, Stored

__all__ = [
    "unroll",
    "unrolled_config",
    "with_exit_threshold",
    "with_float16_tables",
    "without_ahead",
]


def unroll(source: Source) -> Source:
    """A looped model as an ordinary one: each looped layer stands there as often as it runs.

    It computes the same to the last bit, and its file holds the looped layers `loop_count` times; see
    `nanochat.cost.cost` of its configuration. The exit gate, which decides nothing at a threshold of 1, is dropped.

    Raises
    ------
    ConfigError
        As for `unrolled_config`.
    """
    config = source.config
    first, last = config.loop_prelude, config.num_layers - config.loop_coda
    layers = source.weights.layers
    weights = replace(
        source.weights,
        layers=(*layers[:first], *layers[first:last] * config.loop_count, *layers[last:]),
        exit=None,
    )
    return replace(source, config=unrolled_config(config), weights=weights)


def unrolled_config(config: ModelConfig) -> ModelConfig:
    """The configuration of `unroll`'s model.

    Raises
    ------
    ConfigError
        If there is no loop, tokens may leave it early, or there would be more layers than a model can have.
    """
    if config.loop_count == 1:
        raise ConfigError("loop_count=1: there is no loop to unroll; export the model as it is")
    if config.exit_threshold < 1:
        raise ConfigError(
            f"exit_threshold={config.exit_threshold}: each token leaves the loop at a step of its own, and unrolled "
            "layers are the same for all; set exit_threshold=1 first, which runs all steps for every token"
        )
    kinds = layer_kinds(config)
    first, last = config.loop_prelude, config.num_layers - config.loop_coda
    order = kinds[:first] + kinds[first:last] * config.loop_count + kinds[last:]
    return replace(
        config,
        num_layers=len(order),
        # Kept short where it says the same.
        layer_pattern=order if len(set(order)) > 1 else order[:1],
        loop_count=1,
        loop_prelude=0,
        loop_coda=0,
    )


def with_exit_threshold(source: Source, threshold: float) -> Source:
    """The same weights with another `exit_threshold`: at 1, every token runs all loop steps.

    Raises
    ------
    ConfigError
        If the threshold is below 1 and there is no loop, or it is out of range.
    """
    return replace(source, config=replace(source.config, exit_threshold=threshold))


def with_float16_tables(source: Source) -> Source:
    """Embedding and head as dense numbers, rounded to float16: the head's input is no longer rounded to 8 bits.

    Raises
    ------
    NumericError
        If a number is beyond float16.
    """

    def rounded(name: str, leaf: Stored) -> Stored:
        values = _numbers(leaf)
        with np.errstate(over="ignore"):
            values = values.astype(np.float16).astype(np.float32)
        ternary.require_finite(values, f"{name} in float16")
        return Dense(values=values)

    weights = source.weights
    return replace(
        source,
        config=replace(source.config, table_format="dense"),
        weights=replace(
            weights,
            embedding=rounded("embedding", weights.embedding),
            head=None if weights.head is None else rounded("head", weights.head),
        ),
    )


def without_ahead(source: Source) -> Source:
    """The model without the heads that predict further tokens, which only training uses."""
    config = replace(source.config, num_ahead=0)
    return replace(source, config=config, weights=replace(source.weights, ahead=()))


def _numbers(leaf: Stored) -> NDArray[np.floating]:
    if isinstance(leaf, Int8):
        return ternary.dequantize(leaf.codes, leaf.scales[:, None])
    assert isinstance(leaf, Dense)
    return leaf.values
