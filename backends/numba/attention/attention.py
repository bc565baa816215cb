"""This file holds causal grouped-query attention: rotary positions, the pages of keys and values, and the look at them.

Keys and values lie in pages of `PAGE` positions, which a table (rows, pages of a row) names. The fractions rounded up,
keys are (pages, G, PAGE / L, K, L) and values (pages, G, K / L, PAGE, L), and for int8 there is one scale a vector,
(pages, G, 1, PAGE) of the keys and of the values. Positions of the keys and features of the values lie in lanes, so
that neither scores nor weighted sums of values add across lanes. float16 is kept as its bits, uint16, and int4 as
`four_bits` says.

Positions are taken in blocks: scores of one block, their exponentials, and the sum of its values, added to those of the
blocks before. So what a task needs besides the pages stays in the first-level cache, however long the sequence, and the
order of every sum depends on the query's position alone: not on the queries beside it, nor on where its step began.

Legend: N flat tokens in spans, each of one row (`nanochat.rows.Step`), H query heads, G key heads, K head features,
L lanes, S queries of a token that share a key head, all of one token, then of the next.

References
----------
.. [1] T. Dao et al., "FlashAttention", 2022, section 3.1: the running maximum and sum. arXiv:2205.14135
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from nanochat.backends.numba.attention.four_bits import scale
from nanochat.backends.numba.attention.lane_product import (
    MOST_ROWS,
    multiply,
    to_half,
)
from nanochat.backends.numba.runtime.bits import INFINITY, LEAST, MAGNITUDE, largest_magnitude
from nanochat.backends.numba.runtime.compilation import inlined, kernel, sum_kernel
from nanochat.backends.numba.runtime.vectors import LANES, ask, exp, scratch
from nanochat.ops import Storage
from nanochat.rows import PAGE
from nanochat.ternary import KV_BLOCK

__all__ = ["QUERIES", "append_kernel", "attention_kernel", "rotate"]

_Array = NDArray[np.float32]
_Ints = NDArray[np.int64]

# Queries of a task, which share what they read of the pages.
QUERIES = 32

# Positions of a block, whole pages. Their scores, for as many queries as a product takes, fill the first-level cache,
# and keys and values of 128 features the second. Blocks of 256 and 512 were up to a tenth slower.
_BLOCK = 1024
# While a page is read, the next is asked for, at the same place. Processors look ahead by themselves, but not beyond
# 4096 bytes: over 32,768 positions kept as int8, with 4 queries a key head, one token's attention took 1.3 times as
# long without, and 1.1 times with what lies 2048 bytes ahead. That is what is asked for in the last page of a block.
_AHEAD = 2048
# Tiles of a page of keys.
_TILES = PAGE // LANES


_scores = scratch(types.float32, MOST_ROWS * _BLOCK)
_blends = scratch(types.float32, MOST_ROWS * LANES)
_scaled = scratch(types.float32, MOST_ROWS * PAGE)
_numbers = scratch(types.int64, 4 * MOST_ROWS)
_of_queries = scratch(types.float32, 3 * QUERIES)


@kernel
def rotate(
    x: _Array, cosines: _Array, sines: _Array, positions: _Ints, y: _Array, first: int, last: int
) -> None:
    """Rotate the first features of each head of x (N, H, K), twice as many as there are columns of the tables.

    Those are (positions, pairs); a task is one token.
    """
    half = cosines.shape[1]
    for n in range(first, last):
        cosine, sine = cosines[positions[n]], sines[positions[n]]
        for h in range(x.shape[1]):
            left, right = x[n, h, :half], x[n, h, half : 2 * half]
            y_left, y_right = y[n, h, :half], y[n, h, half : 2 * half]
            for i in range(half):
                y_left[i] = left[i] * cosine[i] - right[i] * sine[i]
                y_right[i] = right[i] * cosine[i] + left[i] * sine[i]
            y[n, h, 2 * half :] = x[n, h, 2 * half :]


@functools.cache
def append_kernel(storage: Storage) -> Callable[..., None]:
    """The kernel that keeps keys and values as `storage` says; that of int4 is `four_bits.append`."""
    # Numba's cache tells the kernels apart by these values; a function it would find in no later process.
    halves, codes = storage == "float16", storage == "int8"

    @kernel
    def append(
        k: _Array,
        v: _Array,
        table: _Ints,
        rows: _Ints,
        spans: _Ints,
        positions: _Ints,
        keys: NDArray[np.generic],
        values: NDArray[np.generic],
        key_scales: _Array,
        value_scales: _Array,
        first: int,
        last: int,
    ) -> None:
        """Keep k and v (N, G, K) at their positions; a task is one vector of each."""
        groups, features = k.shape[1:]
        for task in range(first, last):
            n, g = task // groups, task % groups
            page, place = table[rows[spans[n]], positions[n] // PAGE], positions[n] % PAGE
            tile, lane = place // LANES, place % LANES
            key, value = k[n, g], v[n, g]
            key_factor = value_factor = np.float32(1)
            if key_scales.shape[2] > 0:
                key_scales[page, g, 0, place], key_factor = _scale(key)
                value_scales[page, g, 0, place], value_factor = _scale(value)
            # A line of memory for each number, of which the processor fetches several at a time if they are asked for.
            column = keys[page, g, tile, :, lane]
            for i in range(features):
                ask(column, i * column.strides[0])
            for i in range(features):
                number = key[i] * key_factor
                if halves:
                    column[i] = to_half(number)
                elif codes:
                    column[i] = np.int8(np.rint(number))
                else:
                    column[i] = number
            for group in range(values.shape[2]):
                part = value[group * LANES : (group + 1) * LANES]
                row = values[page, g, group, place]
                for i in range(part.shape[0]):
                    number = part[i] * value_factor
                    if halves:
                        row[i] = to_half(number)
                    elif codes:
                        row[i] = np.int8(np.rint(number))
                    else:
                        row[i] = number

    return append


@inlined
def _scale(x: _Array) -> tuple[np.float32, np.float32]:
    """The scale of a vector's codes, and what the vector is multiplied by to give them."""
    most = largest_magnitude(x)
    largest = np.int32(most).view(np.float32)
    scale, inverse = np.float32(0), np.float32(0)
    if most >= INFINITY:
        scale = np.float32(np.nan)
    elif most >= LEAST:
        scale, inverse = largest / np.float32(127), np.float32(127) / largest
    return scale, inverse


@functools.cache
def attention_kernel(storage: Storage) -> Callable[..., None]:
    """The kernel that attends to keys and values which are kept as `storage` says."""
    # Vectors with a scale, and blocks of them with one.
    of_vectors, of_blocks = storage == "int8", storage == "int4"

    @kernel
    def attention(
        q: _Array,
        keys: NDArray[np.generic],
        values: NDArray[np.generic],
        key_scales: NDArray[Any],
        value_scales: NDArray[Any],
        table: _Ints,
        rows: _Ints,
        starts: _Ints,
        counts: _Ints,
        offsets: _Ints,
        parts: _Ints,
        y: _Array,
        first: int,
        last: int,
    ) -> None:
        """``softmax(q k / sqrt(K)) v`` for q and y (N, H, K); a task is up to `QUERIES` queries that share a key head.

        A token sees its row's positions up to its own, and nothing else is read. A part (P, 3), which is a task, is a
        span, which of its queries comes first, and the key head.
        """
        heads, features = q.shape[1:]
        groups = keys.shape[1]
        lane_groups = values.shape[2]
        share = heads // groups
        factor = np.float32(1) / np.sqrt(np.float32(features))
        scores = carray(_scores(), (MOST_ROWS, _BLOCK), np.float32)
        blends = carray(_blends(), (MOST_ROWS, LANES), np.float32)
        # Weights of the values of a page, times the scales of those.
        scaled = carray(_scaled(), (MOST_ROWS, PAGE), np.float32)
        factors = scaled if of_blocks else scores
        # Where each query of a product lies, where its scores do, and one place for a part of those; and what it sees.
        places, weights, rests, seens = carray(_numbers(), (4, MOST_ROWS), np.int64)
        largest, sums, shrinks = carray(_of_queries(), (3, QUERIES), np.float32)
        results = y.reshape(-1)
        for task in range(first, last):
            span, query_0, g = parts[task, 0], parts[task, 1], parts[task, 2]
            # From its last page, a row of one token comes to its next key head, whose keys and values follow there.
            beyond = keys.strides[1] if counts[span] == 1 else _AHEAD
            start, token_0 = starts[span], offsets[span]
            count = min(QUERIES, counts[span] * share - query_0)
            largest[:] = -np.inf
            sums[:] = 0
            end = start + (query_0 + count - 1) // share + 1
            for low in range(0, end, _BLOCK):
                pages = table[rows[span], low // PAGE :]
                done = 0
                while done < count:
                    number = -(-(count - done) // -(-(count - done) // MOST_ROWS))
                    for j in range(number):
                        t, h = (query_0 + done + j) // share, (query_0 + done + j) % share
                        places[j] = ((token_0 + t) * heads + g * share + h) * features
                        seens[j] = max(0, min(start + t + 1 - low, _BLOCK))
                    # Positions of this block that the first of these queries sees, and the last.
                    common, most = seens[0], seens[number - 1]
                    for begin in range(0, most, PAGE):
                        head = (pages[begin // PAGE] * groups + g) * _TILES
                        ahead = _to_next(pages, begin, most, keys.strides[0], beyond)
                        for tile in range(-(-min(most - begin, PAGE) // LANES)):
                            place = (head + tile) * features * keys.shape[4]
                            at = begin + tile * LANES
                            multiply(
                                number,
                                q,
                                places,
                                keys,
                                place,
                                features,
                                scores[0, at:],
                                _BLOCK,
                                0,
                                ahead,
                                key_scales[pages[begin // PAGE], g, 0, tile * LANES :]
                                if of_blocks
                                else None,
                            )
                    for j in range(number):
                        if seens[j] > 0:
                            of_query = scores[j, : seens[j]]
                            if of_vectors:
                                _scale_pages(of_query, key_scales, pages, g)
                            shrinks[j] = _weigh(
                                of_query, factor, largest[done + j :], sums[done + j :]
                            )
                            if of_vectors:
                                _scale_pages(of_query, value_scales, pages, g)
                    for group in range(lane_groups):
                        for begin in range(0, most, PAGE):
                            head = pages[begin // PAGE] * groups + g
                            place = (head * lane_groups + group) * PAGE * values.shape[4]
                            ahead = _to_next(pages, begin, most, values.strides[0], beyond)
                            shared = max(0, min(common - begin, PAGE))
                            for j in range(number):
                                weights[j] = j * PAGE if of_blocks else j * _BLOCK + begin
                                if of_blocks and seens[j] > begin:
                                    of_page = scores[j, begin : min(begin + PAGE, seens[j])]
                                    block = group * LANES // KV_BLOCK
                                    scales = value_scales[pages[begin // PAGE], g, block]
                                    scale(scaled[j], of_page, scales)
                            begun = 1 if begin > 0 else 0
                            multiply(
                                number,
                                factors,
                                weights,
                                values,
                                place,
                                shared,
                                blends[0],
                                LANES,
                                begun,
                                ahead,
                                None,
                            )
                            if shared == min(most - begin, PAGE):
                                continue
                            for j in range(number):
                                rest = min(seens[j] - begin, PAGE) - shared
                                if rest > 0:
                                    # Not with a weight of zero for the others: a value that is not finite must not
                                    # reach them.
                                    rests[0] = weights[j] + shared
                                    more = place + shared * values.shape[4]
                                    multiply(
                                        1,
                                        factors,
                                        rests,
                                        values,
                                        more,
                                        rest,
                                        blends[j],
                                        LANES,
                                        1,
                                        ahead,
                                        None,
                                    )
                        width = min(LANES, features - group * LANES)
                        for j in range(number):
                            if seens[j] > 0:
                                place = places[j] + group * LANES
                                _add(results[place : place + width], blends[j], shrinks[j], low > 0)
                    done += number
            for j in range(count):
                n, h = token_0 + (query_0 + j) // share, g * share + (query_0 + j) % share
                # Scores that are all minus infinity have no softmax.
                total = np.float32(np.nan) if largest[j] == -np.inf else sums[j]
                _divide(y[n, h], total)

    return attention


@inlined
def _to_next(pages: _Ints, begin: int, most: int, size: int, beyond: int) -> int:
    """Bytes from a page of so many to the next of this block, or `beyond` if it is the last."""
    page = begin // PAGE
    return (pages[page + 1] - pages[page]) * size if begin + PAGE < most else beyond


@kernel
def _scale_pages(scores: _Array, scales: _Array, pages: _Ints, group: int) -> None:
    """Multiply each score of a block by the scale of its position."""
    for begin in range(0, scores.shape[0], PAGE):
        part, of_page = scores[begin : begin + PAGE], scales[pages[begin // PAGE], group, 0]
        for i in range(part.shape[0]):
            part[i] *= of_page[i]


@kernel
def _weigh(scores: _Array, factor: np.float32, largest: _Array, sums: _Array) -> np.float32:
    """Turn a query's products with keys into weights of the values, and give what all before them shrinks by.

    The first of `largest` and of `sums` are the query's largest score and sum of exponentials until now.
    """
    before, most = largest[0], _largest(scores)
    most = before if most <= before else most
    largest[0] = most
    # Minus infinity from itself would be NaN, and later scores may be finite.
    base = np.float32(0) if most == -np.inf else most
    shrink = exp((before - base) * factor)
    sums[0] = sums[0] * shrink + _exponentials(scores, factor, base)
    return shrink


@kernel
def _largest(numbers: _Array) -> np.float32:
    bits = numbers.view(np.int32)
    # Floats order like these integers; a float maximum cannot be vectorised, since it must respect NaN.
    most = np.int32(-(2**31))
    for i in range(numbers.shape[0]):
        most = max(most, np.int32(bits[i] ^ (bits[i] >> 31 & MAGNITUDE)))
    return np.int32(most ^ (most >> 31 & MAGNITUDE)).view(np.float32)


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
