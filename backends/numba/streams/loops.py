"""This file holds the kernels of loops that tokens leave one by one: who has left, and what stands for them.

A step that is repeated runs every loop step of the list. Once all tokens have left, what follows is not computed
(`Call.unless`), but for what says who has left, and for what keeps the numbers of those that did.

Legend: N tokens, C numbers of a token.
"""

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba.runtime.compilation import kernel

__all__ = ["add_bias", "leave", "select"]

_Array = NDArray[np.float32]


@kernel
def add_bias(x: _Array, bias: _Array, y: _Array, first: int, last: int) -> None:
    """``y = x + bias`` for x (N, C) and bias (C,); a task is one token."""
    for n in range(first, last):
        for c in range(x.shape[1]):
            y[n, c] = x[n, c] + bias[c]


@kernel
def leave(
    survival: _Array,
    threshold: float,
    before: NDArray[np.int64],
    mask: NDArray[np.bool_],
    everyone: NDArray[np.int64],
    first: int,
    last: int,
) -> None:
    """Whether each token has left (N,), and whether all have: with one of them before, all have. It is one task.

    What survival is once all have left has not been computed.
    """
    for _ in range(first, last):
        is_over = before[0] != 0
        all_left = True
        for n in range(survival.shape[0]):
            mask[n] = is_over or survival[n] <= np.float32(threshold)
            all_left = all_left and mask[n]
        everyone[0] = 1 if all_left else 0


@kernel
def select(
    mask: NDArray[np.bool_], yes: _Array, no: _Array, y: _Array, first: int, last: int
) -> None:
    """``y = yes`` where the mask (N,) holds, else ``no``, all (N, C); a task is one token."""
    for n in range(first, last):
        source = yes[n] if mask[n] else no[n]
        for c in range(y.shape[1]):
            y[n, c] = source[c]
