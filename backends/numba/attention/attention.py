"""This file holds causal grouped-query attention: rotary positions, the memory of keys and values, and the look at it.

Buffers, the fractions rounded up: keys (B, G, P / L, K, L), values (B, G, K / L, P, L), and for int8 one scale a
vector, (B, G, P / L * L) of the keys and (B, G, P) of the values. Positions of the keys and features of the values lie
in lanes, so that neither scores nor weighted sums of values add across lanes. float16 is kept as its bits, uint16.

Positions are taken in blocks: scores of one block, their exponentials, and the sum of its values, added to those of the
blocks before. So what a task needs besides the buffers stays in the first-level cache, however long the sequence.

Legend: B sequences, T tokens, H query heads, G key heads, K head features, P positions, L lanes, R rows, which are the
queries that share a key head: all heads of one token, then of the next.

References
----------
.. [1] T. Dao et al., "FlashAttention", 2022, section 3.1: the running maximum and sum. arXiv:2205.14135
"""

import numpy as np
from numba import types
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from nanochat.backends.numba.attention.lane_product import MOST_ROWS, multiply, to_half
from nanochat.backends.numba.runtime.compilation import inlined, kernel, sum_kernel
from nanochat.backends.numba.runtime.vectors import LANES, exp, scratch

__all__ = ["ROWS", "append_float16", "append_float32", "append_int8", "attention_float16"]
__all__ += ["attention_float32", "attention_int8", "rotate"]

_Array = NDArray[np.float32]
_Starts = NDArray[np.int64]

# Rows of a task, which share what they read of the buffers.
ROWS = 32
# Positions of a block, a multiple of `LANES`. Their scores, for as many rows as a product takes, fill the first-level
# cache, and keys and values of 128 features the second. Blocks of 256 and 512 were up to a tenth slower.
_BLOCK = 1024

_MAGNITUDE = 0x7FFFFFFF
_INFINITY = 0x7F800000
# Bits of 2**-119, below which `ternary.quantize_activations` counts a vector as zeros.
_LEAST = (127 - 119) << 23

_scores = scratch(types.float32, MOST_ROWS * _BLOCK)
_blends = scratch(types.float32, 2 * MOST_ROWS * LANES)
_offsets = scratch(types.int64, 2 * MOST_ROWS)
_of_rows = scratch(types.float32, 3 * ROWS)


@kernel
def rotate(
    x: _Array, cosines: _Array, sines: _Array, starts: _Starts, y: _Array, first: int, last: int
) -> None:
    """Rotate the halves of each head of x (B, T, H, K); the tables are (positions, K / 2); a task is one token."""
    length, half = x.shape[1], x.shape[3] // 2
    for task in range(first, last):
        b, t = task // length, task % length
        cosine, sine = cosines[starts[b] + t], sines[starts[b] + t]
        for h in range(x.shape[2]):
            left, right = x[b, t, h, :half], x[b, t, h, half:]
            y_left, y_right = y[b, t, h, :half], y[b, t, h, half:]
            for i in range(half):
                y_left[i] = left[i] * cosine[i] - right[i] * sine[i]
                y_right[i] = right[i] * cosine[i] + left[i] * sine[i]


@kernel
def append_float32(
    k: _Array,
    v: _Array,
    starts: _Starts,
    keys: _Array,
    values: _Array,
    _key_scales: _Array,
    _value_scales: _Array,
    first: int,
    last: int,
) -> None:
    """Keep k and v (B, T, G, K) from position ``starts[b]`` on; a task is one vector of each. There are no scales."""
    length, groups, features = k.shape[1:]
    for task in range(first, last):
        b, g, t = task // length // groups, task // length % groups, task % length
        position = starts[b] + t
        tile, lane = position // LANES, position % LANES
        for i in range(features):
            keys[b, g, tile, i, lane] = k[b, t, g, i]
            values[b, g, i // LANES, position, i % LANES] = v[b, t, g, i]


@kernel
def append_float16(
    k: _Array,
    v: _Array,
    starts: _Starts,
    keys: NDArray[np.uint16],
    values: NDArray[np.uint16],
    _key_scales: _Array,
    _value_scales: _Array,
    first: int,
    last: int,
) -> None:
    """As `append_float32`, rounded to float16."""
    length, groups, features = k.shape[1:]
    for task in range(first, last):
        b, g, t = task // length // groups, task // length % groups, task % length
        position = starts[b] + t
        tile, lane = position // LANES, position % LANES
        for i in range(features):
            keys[b, g, tile, i, lane] = to_half(k[b, t, g, i])
            values[b, g, i // LANES, position, i % LANES] = to_half(v[b, t, g, i])


@kernel
def append_int8(
    k: _Array,
    v: _Array,
    starts: _Starts,
    keys: NDArray[np.int8],
    values: NDArray[np.int8],
    key_scales: _Array,
    value_scales: _Array,
    first: int,
    last: int,
) -> None:
    """As `append_float32`, rounded to codes and a scale; a vector that is not finite has a scale of NaN."""
    length, groups, features = k.shape[1:]
    for task in range(first, last):
        b, g, t = task // length // groups, task // length % groups, task % length
        position = starts[b] + t
        tile, lane = position // LANES, position % LANES
        key_scale, key_inverse = _scale(k[b, t, g])
        value_scale, value_inverse = _scale(v[b, t, g])
        key_scales[b, g, position] = key_scale
        value_scales[b, g, position] = value_scale
        for i in range(features):
            # |x * inverse| < 127.5: nothing is to be clipped.
            keys[b, g, tile, i, lane] = np.int8(np.rint(k[b, t, g, i] * key_inverse))
            values[b, g, i // LANES, position, i % LANES] = np.int8(
                np.rint(v[b, t, g, i] * value_inverse)
            )


@inlined
def _scale(x: _Array) -> tuple[np.float32, np.float32]:
    """The scale of a vector's codes, and what the vector is multiplied by to give them."""
    bits = x.view(np.int32)
    # Magnitudes order like their bits, with infinity and NaN above all numbers.
    most = np.int32(0)
    for i in range(x.shape[0]):
        most = max(most, np.int32(bits[i] & _MAGNITUDE))
    largest = np.int32(most).view(np.float32)
    scale, inverse = np.float32(0), np.float32(0)
    if most >= _INFINITY:
        scale = np.float32(np.nan)
    elif most >= _LEAST:
        scale, inverse = largest / np.float32(127), np.float32(127) / largest
    return scale, inverse


@kernel
def attention_float32(
    q: _Array,
    keys: _Array,
    values: _Array,
    key_scales: _Array,
    value_scales: _Array,
    starts: _Starts,
    y: _Array,
    first: int,
    last: int,
) -> None:
    """``softmax(q k / sqrt(K)) v`` for q and y (B, T, H, K); a task is `ROWS` queries that share a key head.

    The query at offset t sees the positions up to ``starts[b] + t``, and nothing else is read.
    """
    _attention(q, keys, values, key_scales, value_scales, starts, y, first, last)


@kernel
def attention_float16(
    q: _Array,
    keys: NDArray[np.uint16],
    values: NDArray[np.uint16],
    key_scales: _Array,
    value_scales: _Array,
    starts: _Starts,
    y: _Array,
    first: int,
    last: int,
) -> None:
    """As `attention_float32`."""
    _attention(q, keys, values, key_scales, value_scales, starts, y, first, last)


@kernel
def attention_int8(
    q: _Array,
    keys: NDArray[np.int8],
    values: NDArray[np.int8],
    key_scales: _Array,
    value_scales: _Array,
    starts: _Starts,
    y: _Array,
    first: int,
    last: int,
) -> None:
    """As `attention_float32`."""
    _attention(q, keys, values, key_scales, value_scales, starts, y, first, last)


@inlined
def _attention(
    q: _Array,
    keys: NDArray[np.generic],
    values: NDArray[np.generic],
    key_scales: _Array,
    value_scales: _Array,
    starts: _Starts,
    y: _Array,
    first: int,
    last: int,
) -> None:
    length, heads, features = q.shape[1:]
    groups, tiles = keys.shape[1:3]
    lane_groups, capacity = values.shape[2:4]
    share = heads // groups
    parts = -(-length * share // ROWS)
    factor = np.float32(1) / np.sqrt(np.float32(features))
    scores = carray(_scores(), (MOST_ROWS, _BLOCK), np.float32)
    blends = carray(_blends(), (2, MOST_ROWS, LANES), np.float32)
    offsets = carray(_offsets(), (2, MOST_ROWS), np.int64)
    largest, sums, shrinks = carray(_of_rows(), (3, ROWS), np.float32)
    for j in range(MOST_ROWS):
        offsets[1, j] = j * _BLOCK
    for task in range(first, last):
        head, part = task // parts, task % parts
        b, g = head // groups, head % groups
        # From both ends in turn: later queries see more, and every thread should have its share of them.
        row_0 = ROWS * (part // 2 if part % 2 == 0 else parts - 1 - part // 2)
        count = min(ROWS, length * share - row_0)
        largest[:] = -np.inf
        sums[:] = 0
        end = starts[b] + (row_0 + count - 1) // share + 1
        for low in range(0, end, _BLOCK):
            done = 0
            while done < count:
                rows = -(-(count - done) // -(-(count - done) // MOST_ROWS))
                row = row_0 + done
                # Positions of this block that the first of these rows sees, and the last.
                common = max(0, min(starts[b] + row // share + 1 - low, _BLOCK))
                most = min(starts[b] + (row + rows - 1) // share + 1 - low, _BLOCK)
                if most <= 0:
                    done += rows
                    continue
                for j in range(rows):
                    t, h = (row + j) // share, g * share + (row + j) % share
                    offsets[0, j] = ((b * length + t) * heads + h) * features
                for tile in range(-(-most // LANES)):
                    place = (head * tiles + low // LANES + tile) * features * LANES
                    sums_of_tile = scores[0, tile * LANES :]
                    multiply(rows, q, offsets[0], keys, place, features, sums_of_tile, _BLOCK)
                for j in range(rows):
                    seen = min(starts[b] + (row + j) // share + 1 - low, _BLOCK)
                    if seen > 0:
                        shrinks[j] = _weigh(
                            scores[j, :seen],
                            factor,
                            key_scales[b, g, low:],
                            value_scales[b, g, low:],
                            largest[done + j :],
                            sums[done + j :],
                        )
                for group in range(lane_groups):
                    place = ((head * lane_groups + group) * capacity + low) * LANES
                    multiply(rows, scores, offsets[1], values, place, common, blends[0], LANES)
                    for j in range(rows):
                        seen = min(starts[b] + (row + j) // share + 1 - low, _BLOCK)
                        if seen > common:
                            # Not with a weight of zero for the others: a value that is not finite must not reach them.
                            offsets[0, 0] = j * _BLOCK + common
                            multiply(
                                1,
                                scores,
                                offsets[0],
                                values,
                                place + common * LANES,
                                seen - common,
                                blends[1],
                                LANES,
                            )
                            for lane in range(LANES):
                                blends[0, j, lane] += blends[1, 0, lane]
                        if seen > 0:
                            t, h = (row + j) // share, g * share + (row + j) % share
                            y_part = y[b, t, h, group * LANES : (group + 1) * LANES]
                            _add(y_part, blends[0, j], shrinks[j], low > 0)
                done += rows
        for r in range(count):
            t, h = (row_0 + r) // share, g * share + (row_0 + r) % share
            # Scores that are all minus infinity have no softmax.
            total = np.float32(np.nan) if largest[r] == -np.inf else sums[r]
            _divide(y[b, t, h], total)


@kernel
def _weigh(
    scores: _Array,
    factor: np.float32,
    key_scales: _Array,
    value_scales: _Array,
    largest: _Array,
    sums: _Array,
) -> np.float32:
    """Turn a row's products with keys into weights of the values, and give what all before them shrinks by.

    The first of `largest` and of `sums` are the row's largest score and sum of exponentials until now.
    """
    count = scores.shape[0]
    if key_scales.shape[0] > 0:
        for i in range(count):
            scores[i] *= key_scales[i]
    before, most = largest[0], _largest(scores)
    most = before if most <= before else most
    largest[0] = most
    # Minus infinity from itself would be NaN, and later scores may be finite.
    base = np.float32(0) if most == -np.inf else most
    shrink = exp((before - base) * factor)
    sums[0] = sums[0] * shrink + _exponentials(scores, factor, base)
    if value_scales.shape[0] > 0:
        for i in range(count):
            scores[i] *= value_scales[i]
    return shrink


@kernel
def _largest(numbers: _Array) -> np.float32:
    bits = numbers.view(np.int32)
    # Floats order like these integers; a float maximum cannot be vectorised, since it must respect NaN.
    most = np.int32(-(2**31))
    for i in range(numbers.shape[0]):
        most = max(most, np.int32(bits[i] ^ (bits[i] >> 31 & _MAGNITUDE)))
    return np.int32(most ^ (most >> 31 & _MAGNITUDE)).view(np.float32)


@sum_kernel
def _exponentials(scores: _Array, factor: np.float32, base: np.float32) -> np.float32:
    """Replace each score by ``e**((score - base) * factor)``, and give the sum.

    The largest score minus itself is 0, however large: a product with `factor` that is rounded before would not be.
    """
    total = np.float32(0)
    for i in range(scores.shape[0]):
        scores[i] = exp((scores[i] - base) * factor)
        total += scores[i]
    return total


@kernel
def _add(y: _Array, blend: _Array, shrink: np.float32, begun: bool) -> None:
    for lane in range(y.shape[0]):
        y[lane] = y[lane] * shrink + blend[lane] if begun else blend[lane]


@kernel
def _divide(y: _Array, total: np.float32) -> None:
    for i in range(y.shape[0]):
        y[i] /= total
