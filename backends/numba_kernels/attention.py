"""This file holds causal grouped-query attention over the buffers of `remember`, in each storage.

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

from nanochat.backends.numba_kernels.compile import inlined, kernel, sum_kernel
from nanochat.backends.numba_kernels.elementary import exp
from nanochat.backends.numba_kernels.lanes import LANES
from nanochat.backends.numba_kernels.outer import MOST_ROWS, multiply, scratch

__all__ = ["ROWS", "attend_float16", "attend_float32", "attend_int8"]

_Array = NDArray[np.float32]
_Starts = NDArray[np.int64]

# Rows of a task, which share what they read of the buffers.
ROWS = 32
# Positions of a block, a multiple of `LANES`. Their scores, for as many rows as a product takes, fill the first-level
# cache, and keys and values of 128 features the second. Blocks of 256 and 512 were up to a tenth slower.
_BLOCK = 1024

_MAGNITUDE = 0x7FFFFFFF

_scores = scratch(types.float32, MOST_ROWS * _BLOCK)
_blends = scratch(types.float32, 2 * MOST_ROWS * LANES)
_offsets = scratch(types.int64, 2 * MOST_ROWS)
_of_rows = scratch(types.float32, 3 * ROWS)


@kernel
def attend_float32(
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
    _attend(q, keys, values, key_scales, value_scales, starts, y, first, last)


@kernel
def attend_float16(
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
    """As `attend_float32`."""
    _attend(q, keys, values, key_scales, value_scales, starts, y, first, last)


@kernel
def attend_int8(
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
    """As `attend_float32`."""
    _attend(q, keys, values, key_scales, value_scales, starts, y, first, last)


@inlined
def _attend(
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
