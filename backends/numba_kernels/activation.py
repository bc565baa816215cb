"""This file holds the element by element products of networks and gates, on flat arrays; a task is one element.

Each kernel first cuts its range out, because LLVM vectorises only loops that visibly start at 0.
"""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from nanochat.backends.numba_kernels.compile import kernel, parallel_kernel
from nanochat.backends.numba_kernels.elementary import sigmoid

__all__ = [
    "gate",
    "gate_parallel",
    "relu2",
    "relu2_glu",
    "relu2_glu_parallel",
    "relu2_parallel",
    "swiglu",
    "swiglu_parallel",
]

_Array = NDArray[np.float32]


@kernel
def swiglu(x: _Array, up: _Array, y: _Array, first: int, last: int) -> None:
    """``x * sigmoid(x) * up``."""
    x, up, y = x[first:last], up[first:last], y[first:last]
    for i in range(y.shape[0]):
        y[i] = x[i] * sigmoid(x[i]) * up[i]


@parallel_kernel
def swiglu_parallel(x: _Array, up: _Array, y: _Array, tasks: int, parts: int) -> None:
    """All tasks of `swiglu`."""
    for part in prange(parts):
        swiglu(x, up, y, part * tasks // parts, (part + 1) * tasks // parts)


@kernel
def gate(x: _Array, logits: _Array, y: _Array, first: int, last: int) -> None:
    """``x * sigmoid(logits)``."""
    x, logits, y = x[first:last], logits[first:last], y[first:last]
    for i in range(y.shape[0]):
        y[i] = x[i] * sigmoid(logits[i])


@parallel_kernel
def gate_parallel(x: _Array, logits: _Array, y: _Array, tasks: int, parts: int) -> None:
    """All tasks of `gate`."""
    for part in prange(parts):
        gate(x, logits, y, part * tasks // parts, (part + 1) * tasks // parts)


@kernel
def relu2(x: _Array, y: _Array, first: int, last: int) -> None:
    """``max(x, 0)**2``."""
    x, y = x[first:last], y[first:last]
    for i in range(y.shape[0]):
        positive = np.float32(0) if x[i] < 0 else x[i]
        y[i] = positive * positive


@parallel_kernel
def relu2_parallel(x: _Array, y: _Array, tasks: int, parts: int) -> None:
    """All tasks of `relu2`."""
    for part in prange(parts):
        relu2(x, y, part * tasks // parts, (part + 1) * tasks // parts)


@kernel
def relu2_glu(x: _Array, up: _Array, y: _Array, first: int, last: int) -> None:
    """``max(x, 0)**2 * up``."""
    x, up, y = x[first:last], up[first:last], y[first:last]
    for i in range(y.shape[0]):
        positive = np.float32(0) if x[i] < 0 else x[i]
        y[i] = positive * positive * up[i]


@parallel_kernel
def relu2_glu_parallel(x: _Array, up: _Array, y: _Array, tasks: int, parts: int) -> None:
    """All tasks of `relu2_glu`."""
    for part in prange(parts):
        relu2_glu(x, up, y, part * tasks // parts, (part + 1) * tasks // parts)
