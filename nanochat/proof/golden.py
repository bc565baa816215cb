"""This file holds the golden record: what the reference backend computes for eight tokens, carried by every export.

A copy of a model that runs anywhere else must agree with it. The record holds a digest of every tensor and samples of
what every layer gives, so that a copy that does not agree can be told where it departs.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.reference import ReferenceOps
from nanochat.config import ModelConfig
from nanochat.errors import FormatError
from nanochat.files import parse_json
from nanochat.model import forward
from nanochat.ops import Ops
from nanochat.shapes import layer_kinds
from nanochat.ternary import SMALLEST_SCALE
from nanochat.weights import Dense, Int8, Latent, Stored, Ternary, Weights, named_leaves

__all__ = [
    "NUM_PAIRS",
    "NUM_TOKENS",
    "Golden",
    "digest",
    "first_layer",
    "from_json",
    "layer_samples",
    "pair_samples",
    "record",
    "spread",
]

Leaf = TypeVar("Leaf")

NUM_TOKENS = 8
NUM_PAIRS = 32
# Entries of the vocabulary whose logits are kept, and numbers of each layer's result for each token.
_NUM_LOGITS = 64
_NUM_SAMPLES = 8
_FORMAT = 1
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class Golden:
    """What the reference computes for eight tokens from the start of a sequence.

    Parameters
    ----------
    tokens : tuple of int
        The eight, spread over the vocabulary.
    greedy : tuple of int
        The most probable next token after each.
    rms : tuple of float
        RMS of all logits after each.
    logits : tuple of tuples of float
        Logits after each token of 64 entries of the vocabulary: those of `spread`.
    layers : tuple of tuples of float
        For each layer, in the order in which they run, `layer_samples` of its result.
    pairs : tuple of float
        `pair_samples`: in one sequence a rounding that flips changes every later token, too; here, no other pair.
    tensors : mapping
        `digest` of every tensor, by name.
    """

    tokens: tuple[int, ...]
    greedy: tuple[int, ...]
    rms: tuple[float, ...]
    logits: tuple[tuple[float, ...], ...]
    layers: tuple[tuple[float, ...], ...]
    pairs: tuple[float, ...]
    tensors: Mapping[str, str]

    def to_json(self) -> str:
        """One JSON object on one line."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, separators=(",", ":"))


def record(config: ModelConfig, weights: Weights[Stored]) -> Golden:
    """Compute the record of a model without latent leaves, on the reference backend."""
    ops = ReferenceOps()
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
        logits=tuple(map(_short, logits[:, spread(config.vocab_size, _NUM_LOGITS)])),
        layers=tuple(layers),
        pairs=pair_samples(config, prepared, ops),
        tensors={name: digest(leaf) for name, leaf in named_leaves(weights)},
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
    return _short(rows[:, spread(rows.shape[1], _NUM_SAMPLES)].reshape(-1))


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
    )
    return alone, replace(weights, layers=weights.layers[:1], exit=None, ahead=())


def digest(leaf: Stored) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of what a leaf computes with.

    Codes and scales count, and the type of dense numbers; the scale of a block of zeros does not, because some formats
    cannot hold it.
    """
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
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()[:16]


def from_json(text: str, name: str) -> Golden:
    """Undo `Golden.to_json`.

    Parameters
    ----------
    name : str
        Where the text comes from, for the error.

    Raises
    ------
    FormatError
        If it is no such record.
    """
    fields = parse_json(text.encode(errors="replace"), name)
    if fields.pop("format", None) != _FORMAT:
        raise FormatError(f"{name}: no golden record of format {_FORMAT}; export the model again")
    try:
        return Golden(
            tokens=_integers(fields["tokens"]),
            greedy=_integers(fields["greedy"]),
            rms=_floats(fields["rms"], NUM_TOKENS),
            logits=_rows(fields["logits"], NUM_TOKENS, _NUM_LOGITS),
            layers=_rows(fields["layers"], None, NUM_TOKENS * _NUM_SAMPLES),
            pairs=_floats(fields["pairs"], NUM_PAIRS * _NUM_SAMPLES),
            tensors=_digests(fields["tensors"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{name}: the golden record is damaged ({error!r:.80}); export the model again"
        ) from error


def _short(values: NDArray[np.floating]) -> tuple[float, ...]:
    """Numbers with the six digits that a comparison to 1e-5 needs."""
    return tuple(float(f"{value:.6g}") for value in values.tolist())


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.40} is no list")
    return value


def _integers(value: object) -> tuple[int, ...]:
    numbers = _list(value)
    if len(numbers) != NUM_TOKENS or any(type(number) is not int for number in numbers):
        raise TypeError(f"{value!r:.40} is not {NUM_TOKENS} whole numbers")
    return tuple(number for number in numbers if isinstance(number, int))


def _floats(value: object, count: int) -> tuple[float, ...]:
    numbers = _list(value)
    if len(numbers) != count:
        raise TypeError(f"{len(numbers)} numbers, must be {count}")
    values = tuple(float(str(number)) for number in numbers)
    # No backend computes others, and nothing can be compared with them.
    if not all(abs(value) <= _LARGEST for value in values):
        raise ValueError("a number that is no float32")
    return values


def _rows(value: object, count: int | None, length: int) -> tuple[tuple[float, ...], ...]:
    rows = _list(value)
    if not rows or len(rows) != (count or len(rows)):
        raise TypeError(f"{len(rows)} rows, must be {count or 'one or more'}")
    return tuple(_floats(row, length) for row in rows)


def _digests(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or any(type(digest) is not str for digest in value.values()):
        raise TypeError("tensors are no digests by name")
    return value
