"""This file holds what kernels read from the bits of float32 numbers, which order like integers."""

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba.runtime.compilation import inlined

__all__ = ["INFINITY", "LEAST", "MAGNITUDE", "largest_magnitude"]

# All bits but the sign, and those of infinity, which all NaN exceed.
MAGNITUDE = 0x7FFFFFFF
INFINITY = 0x7F800000
# Bits of 2**-119, below which `ternary.quantize_activations` and `ternary.quantize_kv` count a block as zeros.
LEAST = (127 - 119) << 23


@inlined
def largest_magnitude(x: NDArray[np.float32]) -> np.int32:
    """The bits of the largest magnitude; 0 without numbers."""
    bits = x.view(np.int32)
    most = np.int32(0)
    for i in range(x.shape[0]):
        most = max(most, np.int32(bits[i] & MAGNITUDE))
    return most
