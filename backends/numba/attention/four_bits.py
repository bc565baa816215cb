"""This file holds keys and values in 4 bits as the kernels of attention keep them: how they are rounded and packed.

With the fractions rounded up, and blocks of `KV_BLOCK` numbers, keys are (pages, G, PAGE / L, K, L / 2), values
(pages, G, K / L, PAGE, L / 2), and scales of both (pages, G, K / block, PAGE), as the bits of bfloat16. A byte holds
the codes of two lanes, l in its lower half and l + L / 2 in its upper, so that a vector of bytes becomes one of each
with a shift.

Legend: see `attention`.
"""

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba.attention.lane_product import PACKED_LANES
from nanochat.backends.numba.runtime.bits import INFINITY, LEAST, largest_magnitude
from nanochat.backends.numba.runtime.compilation import inlined, kernel
from nanochat.backends.numba.runtime.vectors import LANES
from nanochat.rows import PAGE
from nanochat.ternary import KV_BLOCK, KV_LARGEST

__all__ = ["append", "scale"]

_Array = NDArray[np.float32]
_Ints = NDArray[np.int64]
_Bytes = NDArray[np.uint8]
_Scales = NDArray[np.uint16]

_NAN = 0x7FC0


@kernel
def append(
    k: _Array,
    v: _Array,
    table: _Ints,
    rows: _Ints,
    starts: _Ints,
    counts: _Ints,
    offsets: _Ints,
    keys: _Bytes,
    values: _Bytes,
    key_scales: _Scales,
    value_scales: _Scales,
    first: int,
    last: int,
) -> None:
    """Keep k and v (N, G, K) at their positions; a task is a key head of a span.

    Two positions share each byte of keys, so that no other task may write to the page.
    """
    groups, features = k.shape[1:]
    for task in range(first, last):
        span, g = task // groups, task % groups
        for t in range(counts[span]):
            n, position = offsets[span] + t, starts[span] + t
            page, place = table[rows[span], position // PAGE], position % PAGE
            tile, lane = place // LANES, place % LANES
            for block in range(key_scales.shape[2]):
                begin, end = block * KV_BLOCK, min((block + 1) * KV_BLOCK, features)
                bits, inverse = _rounded(k[n, g, begin:end])
                key_scales[page, g, block, place] = bits
                for i in range(begin, end):
                    _put(keys[page, g, tile, i], lane, _code(k[n, g, i], inverse))
                bits, inverse = _rounded(v[n, g, begin:end])
                value_scales[page, g, block, place] = bits
                for i in range(begin, end):
                    code = _code(v[n, g, i], inverse)
                    _put(values[page, g, i // LANES, place], i % LANES, code)


@inlined
def _rounded(x: _Array) -> tuple[np.uint16, np.float32]:
    """The bits of a block's scale, and what the block is multiplied by to give its codes: 0 if those are zeros."""
    most = largest_magnitude(x)
    found, inverse = np.uint16(0), np.float32(0)
    if most >= INFINITY:
        found = np.uint16(_NAN)
    elif most >= LEAST:
        exact = np.float32(np.int32(most).view(np.float32) / np.float32(KV_LARGEST)).view(np.int32)
        # Half to even.
        found = np.uint16((exact + 0x7FFF + (exact >> 16 & 1)) >> 16)
        inverse = np.float32(1) / _number(found)
    return found, inverse


@inlined
def _number(bits: np.uint16) -> np.float32:
    """A number of bfloat16, given by its bits."""
    return np.int32(np.int32(bits) << 16).view(np.float32)


@inlined
def _code(x: np.float32, inverse: np.float32) -> np.uint8:
    """Four bits, in two's complement."""
    code = np.int32(0)
    # In a block that is not finite, the product is NaN.
    if inverse > 0:
        code = np.int32(np.rint(x * inverse))
    return np.uint8(code & 15)


@inlined
def _put(packed: _Bytes, lane: int, code: np.uint8) -> None:
    """Set the code of one lane of a vector."""
    byte = packed[lane % PACKED_LANES]
    packed[lane % PACKED_LANES] = (
        byte & 0xF0 | code if lane < PACKED_LANES else byte & 0x0F | code << 4
    )


@kernel
def scale(y: _Array, x: _Array, scales: _Scales) -> None:
    """Each number of x times its scale, to the beginning of y."""
    for i in range(x.shape[0]):
        y[i] = x[i] * _number(scales[i])
