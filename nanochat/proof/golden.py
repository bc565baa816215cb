"""This file holds the making of golden records: what the reference backend computes, and digests of a model's parts.

A copy of a model that runs anywhere else must agree with its record, which holds samples of what every layer gives, so
that a copy that does not agree can be told where it departs.
"""

import hashlib
import json
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.reference.ops import ReferenceOps
from nanochat.blocks.plain import plain
from nanochat.bundle import NUM_LOGITS, NUM_PAIRS, NUM_SAMPLES, NUM_TOKENS, Bundle, Golden
from nanochat.config import ModelConfig, config_to_dict
from nanochat.model import forward
from nanochat.ops import Ops
from nanochat.shapes import layer_kinds
from nanochat.ternary import SMALLEST_SCALE
from nanochat.text.codec import TextCodec
from nanochat.weights import Dense, Int8, Latent, Stored, Ternary, Weights, named_leaves

__all__ = [
    "config_digest",
    "first_layer",
    "layer_samples",
    "pair_samples",
    "record",
    "spread",
    "tensor_digest",
    "tensor_digests",
    "tokenizer_digest",
    "with_golden",
]

Leaf = TypeVar("Leaf")

# Of SHA-256, in hexadecimal.
_DIGITS = 16


def with_golden(bundle: Bundle) -> Bundle:
    """The same model with its record."""
    return replace(bundle, golden=record(bundle))


def record(bundle: Bundle) -> Golden:
    """The record of a model, which takes the reference a second or two for 100 million parameters."""
    config, weights, ops = bundle.config, bundle.weights, ReferenceOps()
    prepared = ops.prepare(weights)
    tokens = spread(config.vocab_size, NUM_TOKENS)
    layers: list[tuple[float, ...]] = []
    (logits,) = forward(
        ops.tokens(tokens[None]),
        prepared,
        config,
        ops,
        observe=lambda x: layers.append(layer_samples(x)),
    )
    return Golden(
        tokens=tuple(tokens.tolist()),
        greedy=tuple(logits.argmax(axis=1).tolist()),
        rms=_short(np.sqrt(np.square(logits, dtype=np.float64).mean(axis=1))),
        logits=tuple(map(_short, logits[:, spread(config.vocab_size, NUM_LOGITS)])),
        layers=tuple(layers),
        pairs=pair_samples(config, prepared, ops),
        tensors=tensor_digests(weights),
        config=config_digest(config),
        tokenizer=tokenizer_digest(bundle.tokenizer),
    )


def spread(size: int, count: int) -> NDArray[np.int64]:
    """At most `count` indices, the first 0 and the last ``size - 1``, evenly spread.

    Examples
    --------
    >>> spread(100, 4).tolist(), spread(3, 8).tolist()
    ([0, 33, 66, 99], [0, 0, 0, 0, 1, 1, 1, 2])
    """
    return np.arange(count) * (size - 1) // (count - 1)


def layer_samples(x: NDArray[np.float32]) -> tuple[float, ...]:
    """Eight numbers of what one layer gives for each token of one sequence, (1, T, ..., C)."""
    rows = x.reshape(x.shape[1], -1)
    return _short(rows[:, spread(rows.shape[1], NUM_SAMPLES)].reshape(-1))


def pair_samples(
    config: ModelConfig, weights: Weights[Leaf], ops: Ops[Any, Leaf, Any]
) -> tuple[float, ...]:
    """Eight numbers of what the first layer gives for the second token of each of 32 sequences of two.

    `weights` are prepared for `ops`.
    """
    config, weights = first_layer(config, weights)
    tokens = spread(config.vocab_size, NUM_PAIRS + 1)
    pairs = np.stack([tokens[:-1], tokens[1:]], axis=1)
    seen: list[NDArray[np.float32]] = []
    forward(
        ops.tokens(pairs),
        weights,
        config,
        ops,
        only_last=True,
        observe=lambda x: seen.append(ops.numpy(x)),
    )
    # Where a token stands matters from the second one on.
    return layer_samples(seen[0][None, :, 1])


def first_layer(config: ModelConfig, weights: Weights[Leaf]) -> tuple[ModelConfig, Weights[Leaf]]:
    """A model of the first layer alone."""
    alone = replace(
        config,
        num_layers=1,
        layer_pattern=layer_kinds(config)[:1],
        loop_count=1,
        loop_prelude=0,
        loop_coda=0,
        exit_threshold=1.0,
        num_ahead=0,
        ahead_kind="independent",
    )
    return alone, replace(weights, layers=weights.layers[:1], exit=None, ahead=(), joins=())


def tensor_digest(leaf: Stored) -> str:
    """A digest of what a leaf computes with.

    Codes and scales count, and the type of dense numbers; the scale of a block of zeros does not, because some formats
    cannot hold it.
    """
    leaf = plain(leaf)
    match leaf:
        case Ternary():
            rows, blocks = leaf.scales.shape
            packed = np.ascontiguousarray(leaf.packed)
            # Four codes of 0 to a byte; the last byte of a row may hold fewer, which are 0 as well.
            zero = (packed.reshape(rows, blocks, -1) == 0x55).all(axis=2)
            arrays = [packed, np.where(zero, np.float16(SMALLEST_SCALE), leaf.scales)]
        case Int8():
            arrays = [leaf.codes, leaf.scales]
        case Dense():
            arrays = [leaf.values]
        case Latent():
            raise AssertionError
    sha = hashlib.sha256()
    for array in arrays:
        # As bytes: a buffer has no element type for bfloat16.
        sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()[:_DIGITS]


def tensor_digests(weights: Weights[Stored]) -> dict[str, str]:
    """The digest of every leaf, by name."""
    return {name: tensor_digest(leaf) for name, leaf in named_leaves(weights)}


def config_digest(config: ModelConfig) -> str:
    """A digest of all fields that differ from their defaults, so that a field that is added later changes none."""
    defaults = {field.name: field.default for field in fields(config)}
    values = {
        name: value
        for name, value in config_to_dict(config).items()
        if getattr(config, name) != defaults[name]
    }
    return _digest_of(values)


def tokenizer_digest(tokenizer: TextCodec) -> str:
    """A digest of how a tokenizer encodes, of its special tokens and what they are for, and of its chat template."""
    return _digest_of(
        [
            tokenizer.fingerprint,
            dict(tokenizer.specials),
            [tokenizer.bos, tokenizer.eos, tokenizer.pad],
            list(tokenizer.opening),
            sorted(tokenizer.stop_ids),
            tokenizer.chat_template,
        ]
    )


def _digest_of(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _short(values: NDArray[np.floating]) -> tuple[float, ...]:
    """Numbers with the six digits that a comparison to 1e-5 needs."""
    return tuple(float(f"{value:.6g}") for value in values.tolist())
