"""This file holds the race of tokens: which one arrives first, by the random numbers of `nanochat.draws.uniform`.

A token's time takes two logarithms in float64, and nearly no token can win. So tokens are looked at in blocks: 32 bits
of each one's number, in vector registers, give a bound that its time is not below. Times are computed for the few whose
bound is below the best time so far, about as many as the logarithm of the number of tokens.

Legend: n tokens.
"""

import math

import numpy as np
from numba import types
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from nanochat.backends.numba.runtime.compilation import kernel
from nanochat.backends.numba.runtime.vectors import scratch
from nanochat.draws import SEED_OF_ZERO

__all__ = ["inverse_of", "keys", "race"]

_SEED_OF_ZERO = np.uint64(SEED_OF_ZERO)

_Array = NDArray[np.float32]
_Ids = NDArray[np.int32]

# Tokens whose bounds are computed together. With 512, scanning the blocks that hold a candidate took longer.
_BLOCK = 128
# Logarithm of 2**(1 / 2**23), by which the bits of a float32 count; and what the bits of 2**31 stand for.
_STEP = np.float32(math.log(2.0) / 2**23)
_OFFSET = math.log(2.0) * (127 + 31)
# Bounds are rounded to float32 a few times; for a token that may win they are smaller than 200.
_ERROR = 1e-3
_LARGEST = np.float32(np.finfo(np.float32).max)

_bounds = scratch(types.float32, _BLOCK)


@kernel
def race(
    scores: _Array,
    ids: _Ids,
    largest: np.float32,
    temperature: float,
    first: np.uint32,
    second: np.uint32,
) -> int:
    """The place of the token that arrives first, as `nanochat.draws` defines, of scores (n,).

    Parameters
    ----------
    ids : int32 array, shape (n,) or (0,)
        The tokens, or nothing if they are all, from 0.
    largest : float32
        The score that all others are compared with.
    first, second : uint32
        From `keys`.
    """
    bounds = carray(_bounds(), _BLOCK, np.float32)
    inverse = inverse_of(temperature)
    best, place = np.inf, 0
    for start in range(0, scores.shape[0], _BLOCK):
        count = min(_BLOCK, scores.shape[0] - start)
        limit = np.float32(best + _OFFSET + _ERROR)
        part = scores[start : start + count]
        if ids.shape[0] == 0:
            hits = _bound_all(part, start, largest, inverse, first, second, limit, bounds)
        else:
            listed = ids[start : start + count]
            hits = _bound_listed(part, listed, largest, inverse, first, second, limit, bounds)
        if hits == 0:
            continue
        for i in range(count):
            if bounds[i] <= limit:
                token = start + i if ids.shape[0] == 0 else ids[start + i]
                exponent = (np.float64(part[i]) - np.float64(largest)) / temperature
                number = _uniform(np.uint32(token), first, second)
                time = math.log(-math.log1p(-number)) - exponent
                if time < best:
                    best, place = time, start + i
                    limit = np.float32(best + _OFFSET + _ERROR)
    return place


@kernel
def inverse_of(temperature: float) -> np.float32:
    """Its reciprocal, kept finite: that times a difference of zero is zero."""
    return np.float32(min(1.0 / temperature, np.float64(_LARGEST)))


@kernel
def keys(seed: int, position: int) -> tuple[np.uint32, np.uint32]:
    """What a row's numbers are keyed by."""
    mixed = _mix(_SEED_OF_ZERO if seed == 0 else np.uint64(seed))
    key = _mix(np.uint64(mixed + np.uint64(position) * np.uint64(0x9E3779B97F4A7C15)))
    return np.uint32(key & np.uint64(0xFFFFFFFF)), np.uint32(key >> np.uint64(32))


@kernel
def _mix(x: np.uint64) -> np.uint64:
    x = np.uint64((x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9))
    x = np.uint64((x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB))
    return np.uint64(x ^ (x >> np.uint64(31)))


@kernel
def _hash(x: np.uint32) -> np.uint32:
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(16))) * np.uint32(0x21F0AAAD))
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(15))) * np.uint32(0xD35A2D97))
    return np.uint32(x ^ (x >> np.uint32(15)))


@kernel
def _high(token: np.uint32, first: np.uint32, second: np.uint32) -> np.uint32:
    return _hash(np.uint32(_hash(np.uint32(token + first)) ^ second))


@kernel
def _uniform(token: np.uint32, first: np.uint32, second: np.uint32) -> float:
    high = _high(token, first, second)
    low = _hash(np.uint32(high + first)) >> np.uint32(12)
    return (np.float64(high) * 2.0**20 + np.float64(low) + 0.5) / 2.0**52


@kernel
def _bound(
    token: np.uint32, exponent: np.float32, first: np.uint32, second: np.uint32
) -> np.float32:
    """`_OFFSET` more than a number that the logarithm of the token's time is not below."""
    # The time -log1p(-u) is not below u, and u not below its upper bits. The bits of a float are its logarithm, with a
    # straight line from each power of two to the next, which lies below the curve.
    number = np.float32(np.int32(_high(token, first, second) >> np.uint32(1)))
    return np.float32(number.view(np.int32)) * _STEP - exponent


@kernel
def _bound_all(
    scores: _Array,
    start: int,
    largest: np.float32,
    inverse: np.float32,
    first: np.uint32,
    second: np.uint32,
    limit: np.float32,
    bounds: _Array,
) -> int:
    """Compute the bounds of tokens from `start` on; how many are not above the limit."""
    hits = np.int32(0)
    for i in range(scores.shape[0]):
        exponent = (scores[i] - largest) * inverse
        bounds[i] = _bound(np.uint32(start + i), exponent, first, second)
        hits = np.int32(hits + np.int32(bounds[i] <= limit))
    return int(hits)


@kernel
def _bound_listed(
    scores: _Array,
    ids: _Ids,
    largest: np.float32,
    inverse: np.float32,
    first: np.uint32,
    second: np.uint32,
    limit: np.float32,
    bounds: _Array,
) -> int:
    """As `_bound_all`."""
    hits = np.int32(0)
    for i in range(scores.shape[0]):
        exponent = (scores[i] - largest) * inverse
        bounds[i] = _bound(np.uint32(ids[i]), exponent, first, second)
        hits = np.int32(hits + np.int32(bounds[i] <= limit))
    return int(hits)
