"""This file holds numbers in eight bits: codes of -127 to 127, and a scale for each block of up to 2,048 of a matrix.

References
----------
.. [1] A. Gupta et al., "Effective Quantization of Muon Optimizer States", 2025, section 3. arXiv:2509.23106
"""

import math
from collections.abc import Sequence

from nanochat.training.rules.arrays import Array, Kept, library

__all__ = ["dequantized", "kept_as_codes", "quantized"]

_MOST = 2048
_LARGEST = 127


def quantized(matrices: Array) -> tuple[Array, Array]:
    """Codes of the matrices' shape (..., R, C), and scales (..., blocks): the largest number of a block is exact."""
    of = library(matrices)
    *others, rows, columns = matrices.shape
    blocks = matrices.reshape((*others, -1, _block(rows * columns)))
    scales = of.linalg.norm(blocks, math.inf, -1, True) / _LARGEST
    # A block of zeros has no scale.
    codes = of.round(blocks / of.where(scales > 0, scales, 1.0))
    return of.asarray(codes.reshape(matrices.shape), dtype=of.int8), scales[..., 0]


def dequantized(codes: Array, scales: Array) -> Array:
    """The matrices that `quantized` gave these for, up to half a scale."""
    of = library(codes)
    *others, rows, columns = codes.shape
    blocks = of.asarray(codes, dtype=of.float32).reshape((*others, -1, _block(rows * columns)))
    return (blocks * scales[..., None]).reshape(codes.shape)


def kept_as_codes(shape: Sequence[int]) -> tuple[Kept, Kept]:
    """Shapes and types of what `quantized` gives for matrices of that shape."""
    *others, rows, columns = shape
    size = rows * columns
    return Kept(shape, "int8"), Kept((*others, size // _block(size)))


def _block(size: int) -> int:
    """The most numbers, up to 2,048, of which a matrix has a whole number: 2,048 for all but tiny or odd shapes."""
    return next(count for count in range(min(_MOST, size), 0, -1) if not size % count)
