"""This file holds the kernel that draws tokens, as `nanochat.draws` defines, without sorting and mostly in float32.

The race comes before the filters. A filter keeps the tokens that are ahead of some bound, so whether it keeps the one
that arrives first among all is a count or a sum of those ahead of it; and if it does, that one is also the first among
those it keeps. If not, the race is among those ahead of the loser, who take less and less time. Only `top_k` comes
first, since `top_p` asks for shares of what that keeps.

Sums in float32 decide unless they are too close to the bound, and then float64 does.

Legend: M rows, V vocabulary, W columns of the logits, n tokens that are left.
"""

import math

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba.runtime.compilation import kernel, sum_kernel
from nanochat.backends.numba.runtime.vectors import precise_exp
from nanochat.backends.numba.sampling.race import inverse_of, keys, race
from nanochat.backends.numba.sampling.selection import (
    exact_weight_above,
    extent,
    first_of,
    gather,
    kept_by,
    num_equal,
    weight_above,
    weights,
)

__all__ = ["draw"]

_Array = NDArray[np.float32]
_Ids = NDArray[np.int32]
_Reals = NDArray[np.float64]
_Wholes = NDArray[np.int64]

_LARGEST = np.float32(np.finfo(np.float32).max)
# Of the sum of all weights: what two float32 sums may be wrong by, together. Once in 50,000 draws it decides nothing.
_ERROR = 2e-5


@kernel
def draw(
    logits: _Array,
    vocab_size: int,
    num_adjusted: _Wholes,
    adjusted: _Ids,
    factors: _Array,
    addends: _Array,
    masked: NDArray[np.bool_],
    allowed: NDArray[np.uint32],
    temperature: _Reals,
    top_k: _Wholes,
    top_p: _Reals,
    min_p: _Reals,
    seed: _Wholes,
    position: _Wholes,
    with_logprob: NDArray[np.bool_],
    scores: _Array,
    ids: _Ids,
    tokens: _Wholes,
    logprobs: _Reals,
    normalizers: _Reals,
    first: int,
    last: int,
) -> None:
    """Draw from logits (M, W); a task is a row.

    Parameters
    ----------
    num_adjusted ... with_logprob
        The fields of `nanochat.draws.Draws`.
    scores, ids : float32 and int32 arrays, shape (M, V)
        Memory for those that are adjusted or left.
    tokens, logprobs, normalizers : int64 and float64 arrays, shape (M,)
        The fields of `nanochat.draws.Drawn`.
    """
    for row in range(first, last):
        raw = logits[row, :vocab_size]
        most, finite = extent(raw)
        tokens[row], logprobs[row], normalizers[row] = -1, np.nan, np.nan
        if not finite:
            continue
        largest, known = most, raw
        count = num_adjusted[row]
        if count > 0 or masked[row]:
            known = scores[row]
            _adjust(raw, adjusted[row, :count], factors[row], addends[row], known)
            if masked[row]:
                _mask(known, allowed[row])
            largest, _ = extent(known)
        if temperature[row] == 0.0:
            tokens[row] = first_of(known, largest)
        else:
            tokens[row] = _choose(
                known,
                largest,
                temperature[row],
                top_k[row],
                top_p[row],
                min_p[row],
                seed[row],
                position[row],
                scores[row],
                ids[row],
            )
        if with_logprob[row]:
            normalizers[row] = np.float64(most) + math.log(_sum_of_exponentials(raw, most))
            logprobs[row] = np.float64(raw[tokens[row]]) - normalizers[row]


@kernel
def _adjust(raw: _Array, ids: _Ids, factors: _Array, addends: _Array, scores: _Array) -> None:
    for token in range(raw.shape[0]):
        scores[token] = raw[token]
    for i in range(ids.shape[0]):
        logit, factor = raw[ids[i]], factors[i]
        score = (logit / factor if logit > 0 else logit * factor) + addends[i]
        scores[ids[i]] = max(min(score, _LARGEST), -_LARGEST)


@kernel
def _mask(scores: _Array, allowed: NDArray[np.uint32]) -> None:
    for token in range(scores.shape[0]):
        if not (allowed[token >> 5] >> np.uint32(token & 31)) & np.uint32(1):
            scores[token] = -_LARGEST


@sum_kernel
def _sum_of_exponentials(logits: _Array, largest: np.float32) -> float:
    total = 0.0
    for i in range(logits.shape[0]):
        total += precise_exp(np.float64(logits[i]) - np.float64(largest))
    return total


@kernel
def _choose(
    scores: _Array,
    largest: np.float32,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    position: int,
    kept_scores: _Array,
    kept_ids: _Ids,
) -> int:
    first, second = keys(seed, position)
    inverse = inverse_of(temperature)
    ids = kept_ids[:0]
    if 0 < top_k < scores.shape[0]:
        count = kept_by(top_k, scores, largest, kept_scores, kept_ids)
        scores, ids = kept_scores[:count], kept_ids[:count]
    everything = np.float32(-np.inf)
    total, exact_total = 0.0, 0.0
    while True:
        place = race(scores, ids, largest, temperature, first, second)
        score = scores[place]
        weight = math.exp((np.float64(score) - np.float64(largest)) / temperature)
        kept = weight >= min_p
        if kept and top_p < 1.0:
            if total == 0.0:
                total, ahead = weights(scores, score, largest, inverse)
            else:
                ahead = weight_above(scores, score, largest, inverse)
            equal = num_equal(scores[:place], score) * weight
            ahead += equal
            kept = ahead < top_p * total
            if abs(ahead - top_p * total) <= _ERROR * total:
                if exact_total == 0.0:
                    exact_total = exact_weight_above(scores, everything, largest, temperature)
                ahead = equal + exact_weight_above(scores, score, largest, temperature)
                kept = ahead < top_p * exact_total
        token = place if ids.shape[0] == 0 else ids[place]
        if kept:
            return token
        if top_p < 1.0 and exact_total == 0.0:
            # Not later, when some tokens have left.
            exact_total = exact_weight_above(scores, everything, largest, temperature)
            total = exact_total
        count = gather(scores, ids, score, place, kept_scores, kept_ids)
        if count == 0:
            # Every filter keeps the most probable token; what else was asked for was no number.
            return token
        scores, ids = kept_scores[:count], kept_ids[:count]
