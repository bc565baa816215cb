"""This file holds how five ternary codes become a byte that three look-ups in registers take apart again.

5 codes have 243 values, a byte 256, so 5 columns take 8 bits instead of 10: what a large model reads from
memory for each token shrinks by a fifth. To divide bytes by powers of 3 would cost more than that saves. But AVX-512
VBMI looks 64 bytes up at once in a table of 64 or 128 entries, and a byte can be chosen so that a part of its bits
decides each code:

* bits 0 to 5 decide codes 0 and 1, by `FIRST`, which holds 3 times the one plus the other,
* bits 2 to 7 decide codes 2 and 3, by `SECOND`,
* all bits but bit 3 decide code 4, by `THIRD`, at the place that `third_index` gives.

Codes are counted from 0 to 2. Most random tables do not have all 243 values; these were found by changing entries at
random and keeping, ever more often, what added values (simulated annealing), in seconds. Any others would do.
"""

import functools
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba_kernels.isa import Isa, cpu_features

__all__ = ["FIRST", "KEPT", "SECOND", "THIRD", "WORDS", "Layout", "bytes_of", "codes_of", "fits"]
__all__ += ["possible", "third_index"]

# How ternary codes lie in memory.
Layout = Literal["two_bits", "five_trits"]

FIRST = [int(c) for c in "7326158436750387506283782016154180240452076320456371221488715364"]
SECOND = [int(c) for c in "1418558514071480758224603852401231360337617368275660401375462278"]
THIRD = [
    int(c)
    for c in "0201212112122200010011220121220001200000111111220222121212121022"
    "0200010000100122021011200211102112220020101021212021111002201210"
]

# Bits that `third_index` leaves in their place; places 3 and 5 take those from two places above.
KEPT = 0b01010111

# 32-bit words of a row for two activation blocks of 128 columns: six of five codes a byte for each block, and between
# them one of two-bit codes for the 8 columns that are left of each. 13 words for 256 columns are 1.625 bits each.
WORDS = 13


def third_index(byte: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The place in `THIRD`."""
    taken = np.uint8(0x7F & ~KEPT)
    return byte & np.uint8(KEPT) | byte >> np.uint8(2) & taken


@functools.cache
def codes_of() -> NDArray[np.uint8]:
    """The five codes, from 0 to 2, of every byte, (256, 5)."""
    byte = np.arange(256, dtype=np.uint8)
    pairs = [np.array(FIRST, np.uint8)[byte & 63], np.array(SECOND, np.uint8)[byte >> 2]]
    codes = [part for pair in pairs for part in (pair // 3, pair % 3)]
    return np.stack([*codes, np.array(THIRD, np.uint8)[third_index(byte)]], 1)


@functools.cache
def bytes_of() -> NDArray[np.uint8]:
    """The byte for five codes of two bits, the first in the lowest bits, (1024,); 0 for codes that are not legal."""
    found = np.zeros(1024, np.uint8)
    for byte, codes in enumerate(codes_of()):
        found[sum(int(code) << 2 * n for n, code in enumerate(codes))] = byte
    return found


def fits(columns: int, block: int) -> bool:
    """Whether a matrix can be kept so, by its columns and those of an activation block."""
    return block == 128 and columns % 256 == 0


def possible(isa: Isa) -> bool:
    """Whether this CPU has the look-ups, and may use them."""
    return isa == "avx512vnni" and "avx512vbmi" in cpu_features()
