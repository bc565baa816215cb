"""This file holds the rounding of activations to int8 codes, in the order in which `linear` multiplies them.

Legend: N tokens, B activation blocks of a row, W columns of a block, filled up to a multiple of 16.
"""

from collections.abc import Callable
from typing import cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from nanochat.backends.numba_kernels.compile import kernel
from nanochat.backends.numba_kernels.vectors import INT8, INT32, load, moved, pointer, store, vector

__all__ = ["padded_width", "quantize"]

_MAGNITUDE = 0x7FFFFFFF
_INFINITY = 0x7F800000
# Bits of 2**-119, below which `ternary.quantize_activations` counts a block as zeros.
_LEAST = (127 - 119) << 23


def padded_width(block: int) -> int:
    """W, for activation blocks of that many columns.

    Examples
    --------
    >>> [padded_width(block) for block in (4, 128, 130)]
    [16, 128, 144]
    """
    return -(-block // 16) * 16


@kernel
def quantize(
    x: NDArray[np.float32],
    block: int,
    codes: NDArray[np.int8],
    sums: NDArray[np.int32],
    scales: NDArray[np.float32],
    first: int,
    last: int,
) -> None:
    """Round rows of x (N, columns) as `ternary.quantize_activations` does, one task a row.

    Writes codes (N, B, W), permuted within 16 columns as `linear` says, their sums (N, B), and scales (N, B). A block
    that is not finite gets zeros and a scale that is not finite either, so that every product with it is NaN.
    """
    bits = x.view(np.int32)
    for n in range(first, last):
        for b in range(scales.shape[1]):
            x_b = x[n, b * block : (b + 1) * block]
            bits_b = bits[n, b * block : (b + 1) * block]
            codes_b = codes[n, b]
            # Magnitudes order like their bits, with infinity and NaN above all numbers.
            most = np.int32(0)
            for c in range(block):
                most = max(most, np.int32(bits_b[c] & _MAGNITUDE))
            if most < _LEAST:
                most = np.int32(0)
            largest = np.int32(most).view(np.float32)
            scales[n, b] = largest / np.float32(127)
            total = np.int32(0)
            if 0 < most < _INFINITY:
                inverse = np.float32(127) / largest
                for c in range(block):
                    # |x * inverse| < 127.5: nothing is to be clipped.
                    code = np.int32(np.rint(x_b[c] * inverse))
                    codes_b[c] = np.int8(code)
                    total = np.int32(total + code)
                codes_b[block:] = 0
                for start in range(0, codes_b.shape[0], 16):
                    _permute(codes_b, start)
            else:
                codes_b[:] = 0
            sums[n, b] = total


# Numba's code generation has no types.
def _typed(_context, codes, start):  # type: ignore[no-untyped-def]
    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        array = context.make_array(codes)(context, builder, arguments[0])
        place = moved(builder, pointer(builder, array.data), arguments[1])
        group = load(builder, place, vector(INT8, 16))
        order = ir.Constant(vector(INT32, 16), [4 * j + f for f in range(4) for j in range(4)])
        permuted = builder.shuffle_vector(group, ir.Constant(group.type, ir.Undefined), order)
        store(builder, permuted, place)
        return context.get_dummy_value()

    return types.void(codes, start), generate


# Put columns 4 j + f of a group in the place of 4 f + j: one instruction, where loops over bytes would take sixteen.
_permute = cast(Callable[[NDArray[np.int8], int], None], intrinsic(_typed))
