"""This package holds the Numba backend: operations on NumPy arrays, which launch the kernels of `numba_kernels`."""

from nanochat.backends.numba.ops import NumbaOps

__all__ = ["NumbaOps"]
