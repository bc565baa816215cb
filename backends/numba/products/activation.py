"""This file holds what happens to activations between products: gates, norms, and their rounding to int8 codes.

Sums and products go element by element on flat arrays; a task is one element. Each kernel first cuts its range out,
because LLVM vectorises only loops that visibly start at 0. Norms and `quantize` have one task a row.

The kernels whose names end in ``round`` do both at once, while the numbers are in the cache: each computes what the
kernels that it calls would, one after the other, to the last bit. Rows of activations that are rounded in blocks may be
cut into those blocks, each a row of its own, to give more tasks.

Legend: N tokens, n streams, C columns, B activation blocks of a row, W columns of a block, filled up to a multiple of
16. Codes are in the order in which `linear` multiplies them.
"""

from collections.abc import Callable
from typing import cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from nanochat.backends.numba.runtime.bits import INFINITY, LEAST, largest_magnitude
from nanochat.backends.numba.runtime.compilation import kernel, sum_kernel
from nanochat.backends.numba.runtime.vectors import (
    INT8,
    INT32,
    load,
    moved,
    pointer,
    sigmoid,
    store,
    vector,
)
from nanochat.backends.numba.streams.mhc import blend

__all__ = ["add", "blend_norm_round", "gate", "norm_round", "padded_width", "quantize", "relu2"]
__all__ += ["relu2_glu", "relu2_glu_round", "relu2_round", "rms_norm", "scale", "swiglu"]
__all__ += ["swiglu_round"]

_Array = NDArray[np.float32]
_Codes = NDArray[np.int8]
_Sums = NDArray[np.int32]


@kernel
def add(x: _Array, other: _Array, y: _Array, first: int, last: int) -> None:
    """``x + other``."""
    x, other, y = x[first:last], other[first:last], y[first:last]
    for i in range(y.shape[0]):
        y[i] = x[i] + other[i]


@kernel
def scale(x: _Array, factor: float, y: _Array, first: int, last: int) -> None:
    """``x * float32(factor)``."""
    x, y = x[first:last], y[first:last]
    number = np.float32(factor)
    for i in range(y.shape[0]):
        y[i] = x[i] * number


@kernel
def swiglu(x: _Array, up: _Array, y: _Array, first: int, last: int) -> None:
    """``x * sigmoid(x) * up``."""
    x, up, y = x[first:last], up[first:last], y[first:last]
    for i in range(y.shape[0]):
        y[i] = x[i] * sigmoid(x[i]) * up[i]


@kernel
def gate(x: _Array, logits: _Array, y: _Array, first: int, last: int) -> None:
    """``x * sigmoid(logits)``."""
    x, logits, y = x[first:last], logits[first:last], y[first:last]
    for i in range(y.shape[0]):
        y[i] = x[i] * sigmoid(logits[i])


@kernel
def relu2(x: _Array, y: _Array, first: int, last: int) -> None:
    """``max(x, 0)**2``."""
    x, y = x[first:last], y[first:last]
    for i in range(y.shape[0]):
        positive = np.float32(0) if x[i] < 0 else x[i]
        y[i] = positive * positive


@kernel
def relu2_glu(x: _Array, up: _Array, y: _Array, first: int, last: int) -> None:
    """``max(x, 0)**2 * up``."""
    x, up, y = x[first:last], up[first:last], y[first:last]
    for i in range(y.shape[0]):
        positive = np.float32(0) if x[i] < 0 else x[i]
        y[i] = positive * positive * up[i]


@sum_kernel
def rms_norm(
    x: NDArray[np.float32],
    gain: NDArray[np.float32],
    eps: float,
    y: NDArray[np.float32],
    first: int,
    last: int,
) -> None:
    """``x / sqrt(mean(x**2) + eps) * gain`` for rows of x (N, C), one task a row."""
    for n in range(first, last):
        x_n, y_n = x[n], y[n]
        total = np.float32(0)
        for c in range(x_n.shape[0]):
            total += x_n[c] * x_n[c]
        root = np.sqrt(total / np.float32(x_n.shape[0]) + np.float32(eps))
        for c in range(x_n.shape[0]):
            y_n[c] = x_n[c] / root * gain[c]


def padded_width(block: int) -> int:
    """Columns that codes of an activation block take, padded to whole vectors: W of the kernels.

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
    for n in range(first, last):
        for b in range(scales.shape[1]):
            x_b = x[n, b * block : (b + 1) * block]
            codes_b = codes[n, b]
            most = largest_magnitude(x_b)
            if most < LEAST:
                most = np.int32(0)
            largest = np.int32(most).view(np.float32)
            scales[n, b] = largest / np.float32(127)
            total = np.int32(0)
            if 0 < most < INFINITY:
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


@kernel
def blend_norm_round(
    streams: _Array,
    read: _Array,
    gain: _Array,
    eps: float,
    y: _Array,
    block: int,
    codes: _Codes,
    sums: _Sums,
    scales: _Array,
    first: int,
    last: int,
) -> None:
    """Round `rms_norm` of `blend` of the streams (N, n, C), of which y (N, C) takes the norm."""
    # Not y itself: a loop whose result takes the place of its input is not vectorised.
    u = np.empty((1, y.shape[1]), np.float32)
    for task in range(first, last):
        row = min(task, read.shape[0] - 1)
        blend(streams[task : task + 1], read[row : row + 1], u, 0, 1)
        rms_norm(u, gain, eps, y[task : task + 1], 0, 1)
        quantize(y, block, codes, sums, scales, task, task + 1)


@kernel
def norm_round(
    x: _Array,
    gain: _Array,
    eps: float,
    y: _Array,
    block: int,
    codes: _Codes,
    sums: _Sums,
    scales: _Array,
    first: int,
    last: int,
) -> None:
    """Round `rms_norm` of x (N, C), which y (N, C) takes."""
    for task in range(first, last):
        rms_norm(x, gain, eps, y, task, task + 1)
        quantize(y, block, codes, sums, scales, task, task + 1)


@kernel
def swiglu_round(
    x: _Array,
    up: _Array,
    y: _Array,
    block: int,
    codes: _Codes,
    sums: _Sums,
    scales: _Array,
    first: int,
    last: int,
) -> None:
    """Round `swiglu` of x and up (N, C), which y (N, C) takes."""
    columns = y.shape[1]
    for task in range(first, last):
        swiglu(x[task], up[task], y[task], 0, columns)
        quantize(y, block, codes, sums, scales, task, task + 1)


@kernel
def relu2_round(
    x: _Array,
    y: _Array,
    block: int,
    codes: _Codes,
    sums: _Sums,
    scales: _Array,
    first: int,
    last: int,
) -> None:
    """Round `relu2` of x (N, C), which y (N, C) takes."""
    columns = y.shape[1]
    for task in range(first, last):
        relu2(x[task], y[task], 0, columns)
        quantize(y, block, codes, sums, scales, task, task + 1)


@kernel
def relu2_glu_round(
    x: _Array,
    up: _Array,
    y: _Array,
    block: int,
    codes: _Codes,
    sums: _Sums,
    scales: _Array,
    first: int,
    last: int,
) -> None:
    """Round `relu2_glu` of x and up (N, C), which y (N, C) takes."""
    columns = y.shape[1]
    for task in range(first, last):
        relu2_glu(x[task], up[task], y[task], 0, columns)
        quantize(y, block, codes, sums, scales, task, task + 1)
