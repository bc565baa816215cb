"""This file holds how the rows of a checkpoint are laid out in tiles with five codes to a byte.

Legend: see `linear`; P pairs of activation blocks. Columns meet activations as in the layout of two bits, in fours: the
first code of a word's four bytes is for the first four activations as `quantize` permutes them, and so on.
"""

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba_kernels.compile import kernel
from nanochat.backends.numba_kernels.lanes import LANES
from nanochat.backends.numba_kernels.trits import WORDS

__all__ = ["lay_trits"]

_FULL = WORDS // 2
# Codes 0, in two bits each.
_ZEROS = 0b01_01_01_01_01


@kernel
def lay_trits(
    packed: NDArray[np.uint8],
    bytes_of: NDArray[np.uint8],
    codes: NDArray[np.uint8],
    legal: NDArray[np.uint8],
    first: int,
    last: int,
) -> None:
    """Lay packed rows (R, bytes) out as codes (tiles, P, WORDS, L, 4), one task a tile.

    bytes_of is that of `trits`; legal (tiles,) becomes 0 where a row of the tile holds the pair 0b11.
    """
    for tile in range(first, last):
        codes_t = codes[tile]
        illegal = np.uint8(0)
        for lane in range(LANES):
            r = tile * LANES + lane
            if r >= packed.shape[0]:
                codes_t[:, :, lane] = bytes_of[_ZEROS]
                codes_t[:, _FULL, lane] = np.uint8(_ZEROS & 0xFF)
                continue
            row = packed[r]
            for i in range(row.shape[0]):
                illegal |= row[i] & row[i] >> 1 & 0b01_01_01_01
            for pair in range(codes.shape[1]):
                for j in range(4):
                    rest = np.uint8(0)
                    for side in range(2):
                        start = 64 * pair + 32 * side + j
                        # Of each group, byte j: the 32 codes that byte j of all words is made of.
                        stream = np.uint64(0)
                        for group in range(8):
                            eight = np.uint64(row[start + 4 * group])
                            stream |= eight << np.uint64(8 * group)
                        for word in range(_FULL):
                            five = stream >> np.uint64(10 * word) & np.uint64(1023)
                            place = (_FULL + 1) * side + word
                            codes_t[pair, place, lane, j] = bytes_of[np.int64(five)]
                        rest |= np.uint8(stream >> np.uint64(60)) << np.uint8(4 * side)
                    codes_t[pair, _FULL, lane, j] = rest
        legal[tile] = illegal == 0
