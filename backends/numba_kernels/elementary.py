"""This file holds the exponential and the sigmoid, in float32 arithmetic that loops over them can vectorise."""

import numpy as np

from nanochat.backends.numba_kernels.compile import kernel

__all__ = ["exp", "sigmoid"]


@kernel
def exp(x: np.float32) -> np.float32:
    """``e**x`` within 1e-7 of its value; x is clamped to [-87, 88], and NaN stays NaN.

    References
    ----------
    .. [1] S. Moshier, Cephes, single/expf.c: the polynomial and the split of log 2.
    """
    x = np.float32(88) if x > np.float32(88) else x
    x = np.float32(-87) if x < np.float32(-87) else x
    # Adding 1.5 * 2**23 rounds to an integer and leaves it in the lowest bits.
    shifted = np.float32(x * np.float32(1.44269504) + np.float32(12582912))
    power = shifted - np.float32(12582912)
    rest = x - power * np.float32(0.693359375) + power * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * rest + np.float32(1.3981999507e-3)
    y = y * rest + np.float32(8.3334519073e-3)
    y = y * rest + np.float32(4.1665795894e-2)
    y = y * rest + np.float32(1.6666665459e-1)
    y = y * rest + np.float32(5.0000001201e-1)
    y = y * rest * rest + rest + np.float32(1)
    exponent = np.int32((shifted.view(np.int32) + 127) << 23)
    return y * exponent.view(np.float32)


@kernel
def sigmoid(x: np.float32) -> np.float32:
    """``1 / (1 + e**-x)``."""
    return np.float32(1) / (np.float32(1) + exp(-x))
