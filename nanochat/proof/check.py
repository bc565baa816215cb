"""This file holds the comparison of a copy of a model with its golden record: what it is, and what it computes.

Where the numbers that a backend computes depart from the record, the first layer is named.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanochat.bundle import NUM_PAIRS, NUM_TOKENS, Golden
from nanochat.config import ModelConfig
from nanochat.errors import FormatError
from nanochat.generation.engine import Engine, Runner
from nanochat.proof.choices import NEAR, chooses, logits_and_margins
from nanochat.proof.golden import (
    config_digest,
    first_layer,
    layer_samples,
    pair_samples,
    spread,
    tokenizer_digest,
)
from nanochat.proof.manifest import NAME
from nanochat.proof.parity import least_equal, reference_backend
from nanochat.proof.tolerances import TOLERANCES
from nanochat.shapes import run_order
from nanochat.text.codec import TextCodec
from nanochat.weights import Stored, Weights

__all__ = ["compare_golden", "require_digests"]

_TOLERANCE = TOLERANCES["layer"].limit
_EQUAL = TOLERANCES["unflipped"].limit
# Standard deviations of an error, of which a vocabulary of 32,768 has 4 in one logit, and two logits may part by both.
_SIGMAS = 10
# From this share of pairs without a flipped rounding on, at least one of 32 is equal. Where all gains are 1, as before
# training, roundings are often at a tie, and flip ten times as often.
_FAIR_SHARE = 0.4


def require_digests(
    golden: Golden,
    tensors: Mapping[str, str],
    config: ModelConfig,
    tokenizer: TextCodec,
    *,
    where: str,
) -> None:
    """Refuse a model of which a part is not the one that a record was made of.

    `tensors` are digests by name, of which an export may have fewer; `where` is what the model was read from.
    """
    changed = [name for name, digest in tensors.items() if golden.tensors.get(name) != digest]
    if golden.config not in ("", config_digest(config)):
        changed.append("its configuration")
    if golden.tokenizer not in ("", tokenizer_digest(tokenizer)):
        changed.append("its tokenizer or chat template")
    if changed:
        raise FormatError(
            f"{where}: {changed[0]} is not as it was when the golden record was made: the file was changed; fetch it "
            "again, or export the model again"
        )


def compare_golden(
    golden: Golden, engine: Runner[Any], weights: Weights[Stored], *, where: str
) -> float:
    """Run the record's tokens on a model at work, and return the largest error of a layer or of the logits.

    Of an `Engine` every layer is compared; of a graph, whose layers cannot be seen, the logits. Tokens that have
    another expert, or another step to leave a loop at, because they are so near it, are left out; `weights` are the
    model's, by which that is told of a graph.
    """
    config = engine.config
    known = range(config.vocab_size)
    if not all(token in known for token in (*golden.tokens, *golden.greedy)):
        raise FormatError(
            f"{where}: the golden record has tokens beyond the vocabulary of {config.vocab_size}: it is another "
            "model's; export the model again"
        )
    worst = 0.0
    if isinstance(engine, Engine):
        logits, near, worst = _compare_layers(golden, engine, where=where)
    else:
        logits = engine.logits(golden.tokens)
        near = _near(golden, weights, config)
    entries = spread(config.vocab_size, len(golden.logits[0]))
    rms = np.sqrt(np.square(logits, dtype=np.float64).mean(axis=1))
    for ours, theirs in ((logits[:, entries], golden.logits), (rms, golden.rms)):
        worst = max(worst, _compare(ours, theirs, near, name="the head", where=where))
    _compare_greedy(golden, logits, _errors(logits[:, entries], golden.logits, NUM_TOKENS), where)
    return worst


def _near(golden: Golden, weights: Weights[Stored], config: ModelConfig) -> NDArray[np.bool_]:
    """Which of the record's tokens may choose otherwise."""
    if not chooses(config):
        return np.zeros(NUM_TOKENS, bool)
    _, ops = reference_backend(config)
    tokens = np.array([golden.tokens], np.int64)
    return _is_near(logits_and_margins(tokens, ops.prepare(weights), config, ops)[1][0])


def _is_near(margins: NDArray[np.float64]) -> NDArray[np.bool_]:
    return margins <= NEAR * TOLERANCES["logits"].limit


def _compare_greedy(
    golden: Golden, logits: NDArray[np.float32], errors: NDArray[np.float64], where: str
) -> None:
    """Refuse a most probable token whose logit is further below the largest than `errors` explain."""
    scale = np.sqrt(np.mean(np.square(golden.logits)))
    for row, greedy, error in zip(logits, golden.greedy, errors, strict=True):
        gap = float(row.max() - row[greedy]) / scale
        if gap > _SIGMAS * max(error, _EQUAL):
            raise _departs(
                where, "the most probable token", f"by a logit {gap:.1e} below the largest"
            )


def _compare_layers(
    golden: Golden, engine: Engine[Any, Any, Any], *, where: str
) -> tuple[NDArray[np.float32], NDArray[np.bool_], float]:
    """The logits of the record's tokens, which of these may choose otherwise, and the largest error of a layer."""
    config, ops = engine.config, engine.ops
    layers: list[tuple[float, ...]] = []
    logits, margins = logits_and_margins(
        np.array([golden.tokens], np.int64),
        engine.weights,
        config,
        ops,
        observe=lambda x: layers.append(layer_samples(ops.numpy(x))),
    )
    near = _is_near(margins[0])
    numbers, ran, recorded = _run_by_both(layers, golden.layers, config)
    if len(ran) != len(recorded):
        raise FormatError(
            f"{where}: {len(layers)} layers ran, and the golden record has {len(golden.layers)}: it is another "
            "model's; export the model again"
        )
    _compare_pairs(golden, engine, where=where)
    errors = [
        _compare(ours, theirs, near, name=f"layer {number}", where=where)
        for number, ours, theirs in zip(numbers, ran, recorded, strict=True)
    ]
    return logits[0], near, max(errors)


_Layers = Sequence[tuple[float, ...]]


def _run_by_both(
    layers: _Layers, others: _Layers, config: ModelConfig
) -> tuple[list[int], _Layers, _Layers]:
    """The numbers of the layers, and what they gave, of a loop that tokens may leave as many steps as both have run."""
    numbers = run_order(config)
    if config.exit_threshold == 1.0:
        return numbers, layers, others
    first, last = config.loop_prelude, config.loop_coda
    looped = config.num_layers - first - last
    steps = [max(0, len(some) - first - last) // looped for some in (layers, others)]
    end = first + min(steps) * looped
    layers, others = (
        [*some[:end], *some[first + own * looped :]]
        for some, own in zip((layers, others), steps, strict=True)
    )
    return [*numbers[:end], *numbers[len(numbers) - last :]], layers, others


def _compare(
    ours: ArrayLike, theirs: ArrayLike, near: NDArray[np.bool_], *, name: str, where: str
) -> float:
    errors = _errors(ours, theirs, NUM_TOKENS)
    parted = near & (errors > _TOLERANCE)
    if parted.mean() <= TOLERANCES["parted"].limit:
        errors = errors[~parted]
    error = float(np.sqrt(np.square(errors).mean()))
    if error > _TOLERANCE:
        raise _departs(where, name, f"by an RMS error of {error:.1e} (at most {_TOLERANCE:.0e})")
    return error


def _compare_pairs(golden: Golden, engine: Engine[Any, Any, Any], *, where: str) -> None:
    """Refuse a first layer of which no pair of tokens is equal, unless a rounding flips in most pairs."""
    config = engine.config
    if 2 * least_equal(first_layer(config, engine.weights)[0]) < _FAIR_SHARE:
        return
    errors = _errors(pair_samples(config, engine.weights, engine.ops), golden.pairs, NUM_PAIRS)
    if errors.min() > _EQUAL:
        rule = f"by an RMS error of {errors.min():.1e} for every pair of tokens (at most {_EQUAL:.0e} for some)"
        raise _departs(where, f"layer {run_order(config)[0]}", rule)


def _departs(where: str, name: str, rule: str) -> FormatError:
    return FormatError(
        f"{where}: {name} is the first that differs from {NAME} or the golden record, {rule}: what runs here is not "
        "the model that was exported; fetch it again, or try another backend"
    )


def _errors(ours: ArrayLike, theirs: ArrayLike, count: int) -> NDArray[np.float64]:
    """RMS error of each of `count` tokens, relative to the RMS of all of them."""
    found, expected = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    scale = np.sqrt(np.mean(expected**2)) or 1.0
    error = np.sqrt(np.mean((found - expected).reshape(count, -1) ** 2, axis=1)) / scale
    # A number that is not finite is no small error.
    return np.where(np.isfinite(error), error, np.inf)
