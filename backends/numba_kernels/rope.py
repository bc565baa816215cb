"""This file holds rotary positions.

Legend: B sequences, T tokens, H heads, K features.
"""

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba_kernels.compile import kernel

__all__ = ["rotate"]

_Array = NDArray[np.float32]


@kernel
def rotate(
    x: _Array,
    cosines: _Array,
    sines: _Array,
    starts: NDArray[np.int64],
    y: _Array,
    first: int,
    last: int,
) -> None:
    """Rotate the halves of each head of x (B, T, H, K); the tables are (positions, K / 2); a task is one token."""
    length, half = x.shape[1], x.shape[3] // 2
    for task in range(first, last):
        b, t = task // length, task % length
        cosine, sine = cosines[starts[b] + t], sines[starts[b] + t]
        for h in range(x.shape[2]):
            left, right = x[b, t, h, :half], x[b, t, h, half:]
            y_left, y_right = y[b, t, h, :half], y[b, t, h, half:]
            for i in range(half):
                y_left[i] = left[i] * cosine[i] - right[i] * sine[i]
                y_right[i] = right[i] * cosine[i] + left[i] * sine[i]
