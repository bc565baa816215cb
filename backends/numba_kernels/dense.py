"""This file holds float32 sums over the last axis: the product with a dense matrix, and RMSNorm.

Legend: N tokens, C columns, R rows of the matrix.
"""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from nanochat.backends.numba_kernels.compile import parallel_kernel, sum_kernel

__all__ = ["dense_product", "dense_product_parallel", "rms_norm", "rms_norm_parallel"]


@sum_kernel
def dense_product(
    weight: NDArray[np.float32],
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    first: int,
    last: int,
) -> None:
    """``y = x @ weight.T`` for weight (R, C), x (N, C) and y (N, R); a task is one row of the matrix."""
    for r in range(first, last):
        weight_r = weight[r]
        for n in range(x.shape[0]):
            x_n = x[n]
            total = np.float32(0)
            for c in range(weight_r.shape[0]):
                total += weight_r[c] * x_n[c]
            y[n, r] = total


@parallel_kernel
def dense_product_parallel(
    weight: NDArray[np.float32],
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    tasks: int,
    parts: int,
) -> None:
    """All tasks of `dense_product`."""
    for part in prange(parts):
        first, last = part * tasks // parts, (part + 1) * tasks // parts
        dense_product(weight, x, y, first, last)


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


@parallel_kernel
def rms_norm_parallel(
    x: NDArray[np.float32],
    gain: NDArray[np.float32],
    eps: float,
    y: NDArray[np.float32],
    tasks: int,
    parts: int,
) -> None:
    """All tasks of `rms_norm`."""
    for part in prange(parts):
        first, last = part * tasks // parts, (part + 1) * tasks // parts
        rms_norm(x, gain, eps, y, first, last)
