"""This file holds how many numbers kernels compute together, which layouts follow; known without Numba."""

__all__ = ["LANES", "STREAMED", "WORDS", "fits_trits"]

# Matrix rows, positions or features that are computed together. 32 int16 fill one register of AVX-512; 64 and 128 were
# no faster for a 2048 x 2048 product.
LANES = 32

# 32-bit words of a row of five codes to a byte, for two activation blocks of 128 columns: six for each block, and one
# of two-bit codes between them for the 8 columns that are left of each. 13 words for 256 columns are 1.625 bits each.
WORDS = 13

# Bytes of a model's ternary codes, in two bits, that fit no cache of most machines: from there on, table trits (see
# `products.trit_codes`) are read sooner than two bits: on two Zen 4 cores a token took 0.84 to 0.88 times as long, on
# one 0.89 to 0.95 times. From the cache it took 1.3 times as long. Power trits take twice the arithmetic of two bits,
# for which few cores are too slow.
STREAMED = 64 * 2**20


def fits_trits(columns: int, block: int) -> bool:
    """Whether a matrix can be kept five codes to a byte, by its columns and those of an activation block."""
    return block == 128 and columns % 256 == 0
