"""This package holds the Numba backend: what NumPy arrays go through between the kernels of `numba_kernels`."""

from nanochat.backends.numba.ops import NumbaOps

__all__ = ["NumbaOps"]
