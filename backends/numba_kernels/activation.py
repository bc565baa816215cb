"""This file holds sums and products of networks and gates, element by element on flat arrays; a task is one element.

Each kernel first cuts its range out, because LLVM vectorises only loops that visibly start at 0.
"""

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba_kernels.compile import kernel
from nanochat.backends.numba_kernels.elementary import sigmoid

__all__ = ["add", "gate", "relu2", "relu2_glu", "swiglu"]

_Array = NDArray[np.float32]


@kernel
def add(x: _Array, other: _Array, y: _Array, first: int, last: int) -> None:
    """``x + other``."""
    x, other, y = x[first:last], other[first:last], y[first:last]
    for i in range(y.shape[0]):
        y[i] = x[i] + other[i]


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
