"""This file holds how the most probable tokens are found without sorting: largest, k-th largest, those ahead of one.

Tokens lie in the order of their ids. One is *ahead* of another if its score is larger, or equal and its place earlier.

Legend: n tokens, V vocabulary.
"""

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba.runtime.bits import INFINITY, MAGNITUDE
from nanochat.backends.numba.runtime.compilation import kernel, sum_kernel
from nanochat.backends.numba.runtime.vectors import exp, precise_exp

__all__ = ["exact_weight_above", "extent", "first_of", "gather", "kept_by"]
__all__ += ["num_equal", "weight_above", "weights"]

_Array = NDArray[np.float32]
_Ids = NDArray[np.int32]

_BLOCK = 128
# Weights whose float32 sum is added to a float64 one.
_PART = 256


@kernel
def extent(numbers: _Array) -> tuple[np.float32, bool]:
    """The largest number, and whether all are finite."""
    bits = numbers.view(np.int32)
    # Floats order like these integers; a float maximum cannot be vectorised, since it must respect NaN.
    most, magnitude = np.int32(-(2**31)), np.int32(0)
    for i in range(numbers.shape[0]):
        most = max(most, _ordered(bits[i]))
        magnitude = max(magnitude, np.int32(bits[i] & MAGNITUDE))
    return _number(most), bool(magnitude < INFINITY)


@kernel
def _ordered(bits: np.int32) -> np.int32:
    """An integer that orders like the float of these bits."""
    return np.int32(bits ^ (bits >> 31 & MAGNITUDE))


@kernel
def _number(ordered: np.int32) -> np.float32:
    return np.int32(ordered ^ (ordered >> 31 & MAGNITUDE)).view(np.float32)


@kernel
def first_of(scores: _Array, score: np.float32) -> int:
    """The first place of a score, which is there."""
    start = 0
    while num_equal(scores[start : start + _BLOCK], score) == 0:
        start += _BLOCK
    while scores[start] != score:
        start += 1
    return start


@kernel
def num_equal(scores: _Array, score: np.float32) -> int:
    """How many scores are equal to that."""
    count = np.int32(0)
    for i in range(scores.shape[0]):
        count = np.int32(count + np.int32(scores[i] == score))
    return int(count)


@kernel
def _num_at_least(scores: _Array, score: np.float32) -> int:
    count = np.int32(0)
    for i in range(scores.shape[0]):
        count = np.int32(count + np.int32(scores[i] >= score))
    return int(count)


@kernel
def kept_by(
    top_k: int, scores: _Array, largest: np.float32, kept_scores: _Array, kept_ids: _Ids
) -> int:
    """Copy the `top_k` most probable of V tokens; how many they are, which is fewer only if V is."""
    vocabulary = scores.shape[0]
    # That many blocks, or more, have a largest score that is not below this one: as many tokens are not, at least. The
    # others are not looked at again, mostly all but a hundred.
    blocks = -(-vocabulary // _BLOCK)
    candidates, ids = scores, kept_ids[:0]
    if top_k <= blocks:
        # Not among the kept scores, in whose place the scores may be.
        maxima = kept_ids[:blocks].view(np.float32)
        for block in range(blocks):
            maxima[block], _ = extent(scores[block * _BLOCK : (block + 1) * _BLOCK])
        least, _ = _least_of(maxima, top_k, largest)
        count = gather(scores, ids, least, vocabulary, kept_scores, kept_ids)
        candidates, ids = kept_scores[:count], kept_ids[:count]
    least, more = _least_of(candidates, top_k, largest)
    # Of equal ones the first.
    end = 0
    while more > 0:
        more -= candidates[end] == least
        end += 1
    return gather(candidates, ids, least, end, kept_scores, kept_ids)


@kernel
def _least_of(scores: _Array, count: int, largest: np.float32) -> tuple[np.float32, int]:
    """A number which fewer than `count` scores are above, and how many equal ones make up that count."""
    # Of integers that order like floats: at least `count` scores are not below the one, and fewer not below the other.
    # Below minus infinity lie those that are no numbers.
    low = np.int64(-INFINITY - 1)
    high = np.int64(_ordered(np.float32(largest).view(np.int32))) + 1
    while high - low > 1:
        middle = (low + high) >> 1
        if _num_at_least(scores, _number(np.int32(middle))) >= count:
            low = middle
        else:
            high = middle
    least = _number(np.int32(low))
    return least, count - (_num_at_least(scores, least) - num_equal(scores, least))


@kernel
def gather(
    scores: _Array,
    ids: _Ids,
    score: np.float32,
    end: int,
    kept_scores: _Array,
    kept_ids: _Ids,
) -> int:
    """Copy the tokens whose score is above, or equal and before `end`; how many.

    The copies may take the place of what is copied. `ids` may be empty, for tokens from 0.
    """
    count = 0
    for start in range(0, scores.shape[0], _BLOCK):
        few = scores[start : start + _BLOCK]
        if _num_at_least(few, score) == 0:
            continue
        for i in range(few.shape[0]):
            found = few[i]
            if found > score or (found == score and start + i < end):
                kept_scores[count] = found
                kept_ids[count] = start + i if ids.shape[0] == 0 else ids[start + i]
                count += 1
    return count


@sum_kernel
def weights(
    scores: _Array, score: np.float32, largest: np.float32, inverse: np.float32
) -> tuple[float, float]:
    """As `weight_above`, of all scores and of those that are larger than `score`, in one pass."""
    total, above = 0.0, 0.0
    for start in range(0, scores.shape[0], _PART):
        part, larger, few = np.float32(0), np.float32(0), scores[start : start + _PART]
        for i in range(few.shape[0]):
            weight = exp((few[i] - largest) * inverse)
            part += weight
            larger += weight if few[i] > score else np.float32(0)
        total += float(part)
        above += float(larger)
    return total, above


@sum_kernel
def weight_above(
    scores: _Array, score: np.float32, largest: np.float32, inverse: np.float32
) -> float:
    """Sum of ``e**((s - largest) * inverse)`` over all scores s that are larger than `score`; within 1e-5 of all."""
    total = 0.0
    for start in range(0, scores.shape[0], _PART):
        part, few = np.float32(0), scores[start : start + _PART]
        # An exponential takes as long as ten comparisons.
        if _num_at_least(few, score) == 0:
            continue
        for i in range(few.shape[0]):
            weight = exp((few[i] - largest) * inverse)
            part += weight if few[i] > score else np.float32(0)
        total += float(part)
    return total


@sum_kernel
def exact_weight_above(
    scores: _Array, score: np.float32, largest: np.float32, temperature: float
) -> float:
    """As `weight_above`, in float64."""
    total = 0.0
    for i in range(scores.shape[0]):
        weight = precise_exp((np.float64(scores[i]) - np.float64(largest)) / temperature)
        total += weight if scores[i] > score else 0.0
    return total
