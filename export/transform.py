"""This file holds the changes that a user may ask for before a model is exported: another model that a runtime can run.

Each gives another `Bundle`, without the golden record and the graph of the first, or the same where nothing changes.
Nothing here is done unasked.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from nanochat import ternary
from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError
from nanochat.init import widened
from nanochat.shapes import head_format, layer_kinds
from nanochat.weights import Dense, Stored

__all__ = [
    "unroll",
    "unrolled_config",
    "with_exit_threshold",
    "with_float16_tables",
    "without_ahead",
]


def unroll(bundle: Bundle) -> Bundle:
    """A looped model as an ordinary one: each looped layer stands there as often as it runs.

    It computes the same to the last bit, and its file holds the looped layers `loop_count` times; see
    `nanochat.cost.cost` of its configuration. The exit gate, which decides nothing at a threshold of 1, is dropped.
    """
    config = bundle.config
    first, last = config.loop_prelude, config.num_layers - config.loop_coda
    layers = bundle.weights.layers
    weights = replace(
        bundle.weights,
        layers=(*layers[:first], *layers[first:last] * config.loop_count, *layers[last:]),
        exit=None,
    )
    return _changed(bundle, config=unrolled_config(config), weights=weights)


def unrolled_config(config: ModelConfig) -> ModelConfig:
    """The configuration of `unroll`'s model."""
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


def with_exit_threshold(bundle: Bundle, threshold: float) -> Bundle:
    """The same weights with another `exit_threshold`: at 1, every token runs all loop steps."""
    return _changed(bundle, config=replace(bundle.config, exit_threshold=threshold))


def with_float16_tables(bundle: Bundle) -> Bundle:
    """Embedding and head as dense numbers, rounded to float16: the head's input is no longer rounded to 8 bits."""
    config = bundle.config
    if config.rotation_block and "ternary" in (config.table_format, head_format(config)):
        raise ConfigError(
            f"rotation_block={config.rotation_block}: the ternary tables of this model read rotated inputs, and dense "
            "ones do not; leave tables out"
        )

    def rounded(name: str, leaf: Stored) -> Dense:
        values = widened(name, leaf)
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float16).astype(np.float32)
        ternary.require_finite(narrow, f"{name} in float16")
        if isinstance(leaf, Dense) and leaf.values.dtype == np.float32:
            return leaf if np.array_equal(leaf.values, narrow) else Dense(values=narrow)
        return Dense(values=narrow)

    old = bundle.weights
    embedding = rounded("embedding", old.embedding)
    head = None if old.head is None else rounded("head", old.head)
    if embedding is old.embedding and head is old.head:
        return bundle
    return _changed(
        bundle,
        config=replace(config, table_format="dense", head_format="table"),
        weights=replace(old, embedding=embedding, head=head),
    )


def without_ahead(bundle: Bundle) -> Bundle:
    """The model without the heads that predict further tokens, which only training uses."""
    if not bundle.config.num_ahead:
        return bundle
    config = replace(bundle.config, num_ahead=0, ahead_kind="independent")
    weights = replace(bundle.weights, ahead=(), joins=())
    return _changed(bundle, config=config, weights=weights)


def _changed(bundle: Bundle, **changes: Any) -> Bundle:
    return replace(bundle, golden=None, graph=None, **changes)
