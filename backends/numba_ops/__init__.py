"""This package holds the operations of the Numba backend, which launch the kernels of `numba_kernels`."""

__all__: list[str] = []
