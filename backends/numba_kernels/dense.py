"""This file holds the use of matrices in float32: their rows, products with them, and RMSNorm.

Legend: N tokens, C columns, R rows of the matrix.
"""

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba_kernels.compile import kernel, sum_kernel

__all__ = ["dense_product", "gather", "rms_norm"]


@kernel
def gather(
    table: NDArray[np.float32],
    ids: NDArray[np.int64],
    y: NDArray[np.float32],
    first: int,
    last: int,
) -> None:
    """Rows of the table (R, C) into y (N, C), one task an id."""
    for n in range(first, last):
        y[n] = table[ids[n]]


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
