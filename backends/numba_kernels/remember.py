"""This file holds the memory of attention: how keys and values are appended to it, in each storage of `nanochat.ops`.

Buffers, the fractions rounded up: keys (B, G, P / L, K, L), values (B, G, K / L, P, L), and for int8 one scale a
vector, (B, G, P / L * L) of the keys and (B, G, P) of the values. Positions of the keys and features of the values lie
in lanes, so that neither scores nor weighted sums of values add across lanes. float16 is kept as its bits, uint16.

Legend: B sequences, T tokens, G key heads, K features, P positions, L lanes.
"""

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba_kernels.compile import inlined, kernel
from nanochat.backends.numba_kernels.lanes import LANES
from nanochat.backends.numba_kernels.outer import to_half

__all__ = ["append_float16", "append_float32", "append_int8"]

_Array = NDArray[np.float32]
_Starts = NDArray[np.int64]

_MAGNITUDE = 0x7FFFFFFF
_INFINITY = 0x7F800000
# Bits of 2**-119, below which `ternary.quantize_activations` counts a vector as zeros.
_LEAST = (127 - 119) << 23


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
