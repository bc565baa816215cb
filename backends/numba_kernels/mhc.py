"""This file holds the kernels of manifold-constrained hyper-connections.

Coefficients have one row for all tokens (a static site) or one for each token.

Legend: N tokens, n streams, C width, M mixing logits.
"""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from nanochat.backends.numba_kernels.compile import fused_kernel, kernel, parallel_kernel
from nanochat.backends.numba_kernels.elementary import exp, sigmoid

__all__ = ["blend", "blend_parallel", "coefficients", "mix", "mix_parallel"]

_Array = NDArray[np.float32]


@kernel
def coefficients(
    logits: _Array,
    permutations: NDArray[np.int64],
    iterations: int,
    read: _Array,
    write: _Array,
    mixing: _Array,
) -> None:
    """From logits (N, 2 n + M) to the coefficients of `Ops.mhc_read`: read and write (N, n), mixing (N, n, n).

    `permutations` (n!, n) is for the lite mixer; if it is empty, the mixer is Sinkhorn with `iterations`. Without
    mixing logits, `mixing` is left alone.
    """
    n = read.shape[1]
    for row in range(logits.shape[0]):
        for i in range(n):
            read[row, i] = sigmoid(logits[row, i])
            write[row, i] = np.float32(2) * sigmoid(logits[row, n + i])
        if logits.shape[1] > 2 * n:
            _mixing(logits[row, 2 * n :], permutations, iterations, mixing[row])


@kernel
def _mixing(
    logits: _Array, permutations: NDArray[np.int64], iterations: int, matrix: _Array
) -> None:
    n = matrix.shape[0]
    largest = logits[0]
    for k in range(logits.shape[0]):
        largest = max(largest, logits[k])
    if permutations.shape[0] == 0:
        for i in range(n):
            for j in range(n):
                matrix[i, j] = exp(logits[i * n + j] - largest)
        for _ in range(iterations):
            for j in range(n):
                total = np.float32(0)
                for i in range(n):
                    total += matrix[i, j]
                for i in range(n):
                    matrix[i, j] /= total
            for i in range(n):
                total = np.float32(0)
                for j in range(n):
                    total += matrix[i, j]
                for j in range(n):
                    matrix[i, j] /= total
        return
    matrix[:] = 0
    total = np.float32(0)
    for k in range(logits.shape[0]):
        total += exp(logits[k] - largest)
    for k in range(logits.shape[0]):
        share = exp(logits[k] - largest) / total
        for i in range(n):
            matrix[i, permutations[k, i]] += share


@fused_kernel
def blend(streams: _Array, read: _Array, y: _Array, first: int, last: int) -> None:
    """``y = sum_i read_i streams_i`` for streams (N, n, C) and y (N, C); a task is one token."""
    for task in range(first, last):
        read_t = read[min(task, read.shape[0] - 1)]
        y_t = y[task]
        y_t[:] = 0
        for i in range(streams.shape[1]):
            streams_i, share = streams[task, i], read_t[i]
            for c in range(y_t.shape[0]):
                y_t[c] += share * streams_i[c]


@parallel_kernel
def blend_parallel(streams: _Array, read: _Array, y: _Array, tasks: int, parts: int) -> None:
    """All tasks of `blend`."""
    for part in prange(parts):
        blend(streams, read, y, part * tasks // parts, (part + 1) * tasks // parts)


@fused_kernel
def mix(
    streams: _Array, y: _Array, write: _Array, mixing: _Array, mixed: _Array, first: int, last: int
) -> None:
    """``mixed_i = sum_j mixing_ij streams_j + write_i y`` for streams and mixed (N, n, C), n even.

    A task is one token.
    """
    n = streams.shape[1]
    for task in range(first, last):
        mixing_t = mixing[min(task, mixing.shape[0] - 1)]
        write_t = write[min(task, write.shape[0] - 1)]
        y_t = y[task]
        for i in range(n):
            mixed_i, share = mixed[task, i], write_t[i]
            for c in range(y_t.shape[0]):
                mixed_i[c] = share * y_t[c]
            for j in range(0, n, 2):
                left, right = streams[task, j], streams[task, j + 1]
                weight, other = mixing_t[i, j], mixing_t[i, j + 1]
                for c in range(y_t.shape[0]):
                    mixed_i[c] = mixed_i[c] + weight * left[c] + other * right[c]


@parallel_kernel
def mix_parallel(
    streams: _Array, y: _Array, write: _Array, mixing: _Array, mixed: _Array, tasks: int, parts: int
) -> None:
    """All tasks of `mix`."""
    for part in prange(parts):
        first, last = part * tasks // parts, (part + 1) * tasks // parts
        mix(streams, y, write, mixing, mixed, first, last)
