"""This file holds the rounding of activations to int8 codes, widened to int16 and laid out for `linear`.

Legend: N tokens, C chunks of a row, W columns of a chunk. A chunk is an activation block, or an even part of a block
that is longer than 256; W is a multiple of 4.
"""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from nanochat.backends.numba_kernels.compile import kernel, parallel_kernel

__all__ = ["chunk_width", "quantize", "quantize_parallel"]

# |sum code * x| <= 127 * 256 < 2**15 for ternary codes: the true sum of a chunk fits int16 and may wrap on the way.
_LONGEST_CHUNK = 256

_MAGNITUDE = 0x7FFFFFFF
_INFINITY = 0x7F800000
# Bits of 2**-119, below which `ternary.quantize_activations` counts a block as zeros.
_LEAST = (127 - 119) << 23


def chunk_width(block: int) -> int:
    """W, for activation blocks of that many columns.

    Examples
    --------
    >>> [chunk_width(block) for block in (128, 256, 768, 130)]
    [128, 256, 256, 132]
    """
    chunks = -(-block // _LONGEST_CHUNK)
    return -(-block // (4 * chunks)) * 4


@kernel
def quantize(
    x: NDArray[np.float32],
    block: int,
    codes: NDArray[np.int16],
    sums: NDArray[np.int16],
    scales: NDArray[np.float32],
    first: int,
    last: int,
) -> None:
    """Round rows of x as `ternary.quantize_activations` does, one task a row.

    Writes codes (N, C, W), with zeros where W exceeds what is left of a block, their sums (N, C), and scales
    (N, blocks). A block that is not finite gets zeros and a scale that is not finite either, so that every product with
    it is NaN.
    """
    bits = x.view(np.int32)
    width = codes.shape[2]
    blocks = scales.shape[1]
    chunks = codes.shape[1] // blocks
    for n in range(first, last):
        for b in range(blocks):
            x_b = x[n, b * block : (b + 1) * block]
            bits_b = bits[n, b * block : (b + 1) * block]
            # Magnitudes order like their bits, with infinity and NaN above all numbers.
            most = np.int32(0)
            for c in range(block):
                most = max(most, np.int32(bits_b[c] & _MAGNITUDE))
            if most < _LEAST:
                most = np.int32(0)
            largest = np.int32(most).view(np.float32)
            scales[n, b] = largest / np.float32(127)
            inverse = np.float32(0)
            if 0 < most < _INFINITY:
                inverse = np.float32(127) / largest
            for j in range(chunks):
                x_c = x_b[j * width : (j + 1) * width]
                codes_c = codes[n, b * chunks + j]
                count = x_c.shape[0]
                total = np.int32(0)
                if inverse > 0:
                    for c in range(count):
                        # |x * inverse| < 127.5: nothing is to be clipped.
                        code = np.int16(np.rint(x_c[c] * inverse))
                        codes_c[c] = code
                        total = np.int32(total + code)
                else:
                    codes_c[:count] = 0
                codes_c[count:] = 0
                sums[n, b * chunks + j] = total


@parallel_kernel
def quantize_parallel(
    x: NDArray[np.float32],
    block: int,
    codes: NDArray[np.int16],
    sums: NDArray[np.int16],
    scales: NDArray[np.float32],
    tasks: int,
    parts: int,
) -> None:
    """All tasks of `quantize`."""
    for part in prange(parts):
        first, last = part * tasks // parts, (part + 1) * tasks // parts
        quantize(x, block, codes, sums, scales, first, last)
