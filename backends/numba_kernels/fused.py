"""This file holds norms and activations whose results are rounded to int8 at once, while they are in the cache.

Each computes what the kernels that it calls would, one after the other, to the last bit. A task is one row. Rows of
activations that are rounded in blocks may be cut into those blocks, each a row of its own, to give more tasks.

Legend: N tokens, n streams, C columns. Codes, sums and scales are those of `quantize`.
"""

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba_kernels.activation import relu2, relu2_glu, swiglu
from nanochat.backends.numba_kernels.compile import kernel
from nanochat.backends.numba_kernels.dense import rms_norm
from nanochat.backends.numba_kernels.mhc import blend
from nanochat.backends.numba_kernels.quantize import quantize

__all__ = ["blend_norm_round", "norm_round", "relu2_glu_round", "relu2_round", "swiglu_round"]

_Array = NDArray[np.float32]
_Codes = NDArray[np.int8]
_Sums = NDArray[np.int32]


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
