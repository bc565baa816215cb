"""This file holds how many numbers kernels compute together, which layouts follow; known without Numba."""

__all__ = ["LANES"]

# Matrix rows, positions or features that are computed together. 32 int16 fill one register of AVX-512; 64 and 128 were
# no faster for a 2048 x 2048 product.
LANES = 32
