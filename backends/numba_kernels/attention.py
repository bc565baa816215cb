"""This file holds rotary positions and causal grouped-query attention over the key-value buffers.

Buffers: keys (B, G, P / L, K', L) and values (B, G, K / L, P, L), the fractions rounded up, K' a multiple of 4.
Positions of the keys and features of the values lie in lanes, so that neither scores nor weighted sums of values add
across lanes.

Legend: B sequences, T tokens, H query heads, G key heads, K head features, P positions, L lanes.
"""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from nanochat.backends.numba_kernels.compile import (
    fused_kernel,
    inlined,
    kernel,
    parallel_kernel,
    sum_kernel,
)
from nanochat.backends.numba_kernels.elementary import exp
from nanochat.backends.numba_kernels.lanes import LANES, float32_lanes

__all__ = ["append", "attend", "attend_parallel", "rotate", "rotate_parallel"]

_Array = NDArray[np.float32]
_Starts = NDArray[np.int64]

_MAGNITUDE = 0x7FFFFFFF


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


@parallel_kernel
def rotate_parallel(
    x: _Array, cosines: _Array, sines: _Array, starts: _Starts, y: _Array, tasks: int, parts: int
) -> None:
    """All tasks of `rotate`."""
    for part in prange(parts):
        first, last = part * tasks // parts, (part + 1) * tasks // parts
        rotate(x, cosines, sines, starts, y, first, last)


@kernel
def append(k: _Array, v: _Array, starts: _Starts, keys: _Array, values: _Array) -> None:
    """Copy k and v (B, T, G, K) into the buffers from position ``starts[b]`` on."""
    features = k.shape[3]
    for b in range(k.shape[0]):
        for g in range(k.shape[2]):
            for t in range(k.shape[1]):
                position = starts[b] + t
                tile, lane = position // LANES, position % LANES
                for i in range(features):
                    keys[b, g, tile, i, lane] = k[b, t, g, i]
                    values[b, g, i // LANES, position, i % LANES] = v[b, t, g, i]
                for i in range(features, keys.shape[3]):
                    keys[b, g, tile, i, lane] = 0


@fused_kernel
def attend(
    q: _Array, keys: _Array, values: _Array, starts: _Starts, y: _Array, first: int, last: int
) -> None:
    """``softmax(q k / sqrt(K)) v`` for q and y (B, T, H, K).

    The query at offset t sees the positions up to ``starts[b] + t``. A task is four queries, of one or more heads that
    share a key head.
    """
    length, heads, features = q.shape[1:]
    groups = keys.shape[1]
    share = heads // groups
    rows = length * share
    fours = -(-rows // 4)
    root = np.sqrt(np.float32(features))
    queries = np.zeros((4, keys.shape[3]), np.float32)
    scores = np.empty((4, keys.shape[2] * LANES), np.float32)
    blends = np.empty((4, values.shape[2] * LANES), np.float32)
    sums = np.empty(4, np.float32)
    for task in range(first, last):
        b, g = task // fours // groups, task // fours % groups
        # From both ends in turn: later queries see more, and every thread should have its share of them.
        four = task % fours
        row = 4 * (four // 2 if four % 2 == 0 else fours - 1 - four // 2)
        count = min(4, rows - row)
        for j in range(count):
            t, h = (row + j) // share, g * share + (row + j) % share
            for i in range(features):
                queries[j, i] = q[b, t, h, i] / root
        end = starts[b] + (row + count - 1) // share + 1
        tiles = -(-end // LANES)
        _score(queries, keys[b, g], tiles, count, scores)
        for j in range(count):
            visible = starts[b] + (row + j) // share + 1
            sums[j] = _exponentials(scores[j, : tiles * LANES], visible)
        _blend(scores, values[b, g], end, count, blends)
        for j in range(count):
            t, h = (row + j) // share, g * share + (row + j) % share
            for i in range(features):
                y[b, t, h, i] = blends[j, i] / sums[j]


@parallel_kernel
def attend_parallel(
    q: _Array, keys: _Array, values: _Array, starts: _Starts, y: _Array, tasks: int, parts: int
) -> None:
    """All tasks of `attend`."""
    for part in prange(parts):
        first, last = part * tasks // parts, (part + 1) * tasks // parts
        attend(q, keys, values, starts, y, first, last)


@inlined
def _score(queries: _Array, keys: _Array, tiles: int, count: int, scores: _Array) -> None:
    sum_0, sum_1 = float32_lanes(), float32_lanes()
    sum_2, sum_3 = float32_lanes(), float32_lanes()
    for tile in range(tiles):
        low, keys_t = tile * LANES, keys[tile]
        if count == 4:
            for lane in range(LANES):
                sum_0[lane] = sum_1[lane] = sum_2[lane] = sum_3[lane] = 0
            for i in range(keys_t.shape[0] // 4):
                _add_features(sum_0, queries[0], keys_t, 4 * i)
                _add_features(sum_1, queries[1], keys_t, 4 * i)
                _add_features(sum_2, queries[2], keys_t, 4 * i)
                _add_features(sum_3, queries[3], keys_t, 4 * i)
            for lane in range(LANES):
                scores[0, low + lane] = sum_0[lane]
                scores[1, low + lane] = sum_1[lane]
                scores[2, low + lane] = sum_2[lane]
                scores[3, low + lane] = sum_3[lane]
        else:
            for j in range(count):
                for lane in range(LANES):
                    sum_0[lane] = 0
                for i in range(keys_t.shape[0] // 4):
                    _add_features(sum_0, queries[j], keys_t, 4 * i)
                for lane in range(LANES):
                    scores[j, low + lane] = sum_0[lane]


@kernel
def _exponentials(scores: _Array, visible: int) -> np.float32:
    """Replace scores by their exponentials, zero from `visible` on, and return the sum."""
    bits = scores.view(np.int32)
    # Floats order like these integers; a float maximum cannot be vectorised, since it must respect NaN.
    most = np.int32(-(2**31))
    for i in range(visible):
        most = max(most, np.int32(bits[i] ^ (bits[i] >> 31 & _MAGNITUDE)))
    largest = np.int32(most ^ (most >> 31 & _MAGNITUDE)).view(np.float32)
    for i in range(visible):
        scores[i] = exp(scores[i] - largest)
    scores[visible:] = 0
    return _sum(scores)


@sum_kernel
def _sum(x: _Array) -> np.float32:
    total = np.float32(0)
    for i in range(x.shape[0]):
        total += x[i]
    return total


@inlined
def _blend(scores: _Array, values: _Array, end: int, count: int, blends: _Array) -> None:
    sum_0, sum_1 = float32_lanes(), float32_lanes()
    sum_2, sum_3 = float32_lanes(), float32_lanes()
    for group in range(values.shape[0]):
        low, values_g = group * LANES, values[group]
        if count == 4:
            for lane in range(LANES):
                sum_0[lane] = sum_1[lane] = sum_2[lane] = sum_3[lane] = 0
            for i in range(-(-end // 4)):
                _add_positions(sum_0, scores[0], values_g, 4 * i, end - 1)
                _add_positions(sum_1, scores[1], values_g, 4 * i, end - 1)
                _add_positions(sum_2, scores[2], values_g, 4 * i, end - 1)
                _add_positions(sum_3, scores[3], values_g, 4 * i, end - 1)
            for lane in range(LANES):
                blends[0, low + lane] = sum_0[lane]
                blends[1, low + lane] = sum_1[lane]
                blends[2, low + lane] = sum_2[lane]
                blends[3, low + lane] = sum_3[lane]
        else:
            for j in range(count):
                for lane in range(LANES):
                    sum_0[lane] = 0
                for i in range(-(-end // 4)):
                    _add_positions(sum_0, scores[j], values_g, 4 * i, end - 1)
                for lane in range(LANES):
                    blends[j, low + lane] = sum_0[lane]


@inlined
def _add_features(total: _Array, query: _Array, keys: _Array, i: int) -> None:
    q_0, q_1, q_2, q_3 = query[i], query[i + 1], query[i + 2], query[i + 3]
    for lane in range(LANES):
        part = total[lane] + q_0 * keys[i, lane] + q_1 * keys[i + 1, lane]
        total[lane] = part + q_2 * keys[i + 2, lane] + q_3 * keys[i + 3, lane]


@inlined
def _add_positions(total: _Array, scores: _Array, values: _Array, i: int, last: int) -> None:
    # Scores are zero beyond the last position; its value stands in for memory that was never written.
    i_1, i_2, i_3 = min(i + 1, last), min(i + 2, last), min(i + 3, last)
    p_0, p_1, p_2, p_3 = scores[i], scores[i + 1], scores[i + 2], scores[i + 3]
    for lane in range(LANES):
        part = total[lane] + p_0 * values[i, lane] + p_1 * values[i_1, lane]
        total[lane] = part + p_2 * values[i_2, lane] + p_3 * values[i_3, lane]
