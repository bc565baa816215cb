"""This file holds the coefficients of mHC sites: from logits to what streams are read, written and mixed with.

A site has 32 logits at most: `LANES` holds them all, and the matrix of a site is one vector.

Legend: N tokens, n streams, J chunks of the projection's sums, L rows of the projection with padding, M mixing logits.
"""

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba_kernels.compile import kernel, sum_kernel
from nanochat.backends.numba_kernels.elementary import exp
from nanochat.backends.numba_kernels.lanes import LANES, float32_lanes
from nanochat.backends.numba_kernels.mhc_matrix import blend_2, blend_4, sinkhorn_2, sinkhorn_4

__all__ = ["coefficients", "static_coefficients"]

_Array = NDArray[np.float32]


@kernel
def coefficients(
    sums: _Array,
    squares: _Array,
    bias: _Array,
    gates: _Array,
    features: int,
    eps: float,
    matrices: _Array,
    iterations: int,
    read: _Array,
    write: _Array,
    mixing: _Array,
    first: int,
    last: int,
) -> None:
    """Compute the coefficients of `Ops.mhc_read` for a dynamic site; a task is one token.

    Parameters
    ----------
    sums, squares : float32 arrays, shapes (N, J, L) and (N, J)
        From `mhc_projection`, over `features` numbers of a token.
    bias, gates : float32 arrays, shape (2 n + M,)
    matrices : float32 array, shape (n!, n * n)
        The permutations, for the lite mixer; if it is empty, the mixer is Sinkhorn with `iterations`.
    read, write : float32 arrays, shape (N, n)
        Results, as `mixing`, (N, n, n); that is (N, 0, 0) for the identity.
    """
    logits = float32_lanes()
    for token in range(first, last):
        square = _total(squares[token])
        root = np.sqrt(square / np.float32(features) + np.float32(eps))
        for r in range(LANES):
            logits[r] = 0
        for j in range(sums.shape[1]):
            sums_j = sums[token, j]
            for r in range(sums_j.shape[0]):
                logits[r] += sums_j[r]
        for r in range(bias.shape[0]):
            logits[r] = bias[r] + gates[r] * (logits[r] / root)
        _coefficients(
            logits, bias.shape[0], matrices, iterations, read[token], write[token], mixing[token]
        )


@kernel
def static_coefficients(
    bias: _Array, matrices: _Array, iterations: int, read: _Array, write: _Array, mixing: _Array
) -> None:
    """As `coefficients` for a static site, whose results are those of one token."""
    logits = float32_lanes()
    for r in range(bias.shape[0]):
        logits[r] = bias[r]
    _coefficients(logits, bias.shape[0], matrices, iterations, read[0], write[0], mixing[0])


@kernel
def _coefficients(
    logits: _Array,
    count: int,
    matrices: _Array,
    iterations: int,
    read: _Array,
    write: _Array,
    mixing: _Array,
) -> None:
    n = read.shape[0]
    # NaN is never larger, and stays NaN below.
    largest = logits[2 * n]
    for r in range(2 * n, count):
        largest = logits[r] if logits[r] > largest else largest
    for r in range(2 * n):
        logits[r] = -logits[r]
    for r in range(2 * n, count):
        logits[r] -= largest
    for r in range(count, LANES):
        logits[r] = 0
    for r in range(LANES):
        logits[r] = exp(logits[r])
    for i in range(n):
        # Sigmoids.
        read[i] = np.float32(1) / (np.float32(1) + logits[i])
        write[i] = np.float32(2) / (np.float32(1) + logits[n + i])
    if count > 2 * n:
        shares = logits[2 * n : count]
        if matrices.shape[0] == 0:
            if n == 2:
                sinkhorn_2(shares, matrices, iterations, mixing)
            else:
                sinkhorn_4(shares, matrices, iterations, mixing)
        elif n == 2:
            blend_2(shares, matrices, iterations, mixing)
        else:
            blend_4(shares, matrices, iterations, mixing)


@sum_kernel
def _total(x: _Array) -> np.float32:
    total = np.float32(0)
    for i in range(x.shape[0]):
        total += x[i]
    return total
