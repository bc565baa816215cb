"""This file holds how the rows of a checkpoint are laid out in tiles, at the speed of memory and without copies.

Legend: see `linear`. A row is read once, from the checkpoint's file if it lies there; a tile is written in the cache.
"""

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba_kernels.compile import kernel
from nanochat.backends.numba_kernels.lanes import LANES

__all__ = ["lay_bytes", "lay_packed"]

# Four codes 0.
_ZEROS = 0b01_01_01_01


@kernel
def lay_packed(
    packed: NDArray[np.uint8],
    block: int,
    codes: NDArray[np.uint8],
    legal: NDArray[np.uint8],
    first: int,
    last: int,
) -> None:
    """Lay packed rows (R, bytes) out as codes (tiles, B, G, L, 4), one task a tile.

    legal (tiles,) becomes 0 where a row of the tile holds the pair 0b11.
    """
    blocks, groups = codes.shape[1], codes.shape[2]
    for tile in range(first, last):
        codes_t = codes[tile]
        illegal = np.uint8(0)
        for lane in range(LANES):
            r = tile * LANES + lane
            if r >= packed.shape[0]:
                codes_t[:, :, lane] = _ZEROS
                continue
            row = packed[r]
            for i in range(row.shape[0]):
                illegal |= row[i] & row[i] >> 1 & 0b01_01_01_01
            for b in range(blocks):
                if block % 16 == 0:
                    row_b = row[b * (block // 4) : (b + 1) * (block // 4)]
                    for g in range(groups):
                        codes_t[b, g, lane, 0] = row_b[4 * g]
                        codes_t[b, g, lane, 1] = row_b[4 * g + 1]
                        codes_t[b, g, lane, 2] = row_b[4 * g + 2]
                        codes_t[b, g, lane, 3] = row_b[4 * g + 3]
                else:
                    for i in range(4 * groups):
                        byte = np.uint8(0)
                        for f in range(4):
                            column = b * block + 4 * i + f
                            pair = (
                                row[column // 4] >> column % 4 * 2 & 3 if 4 * i + f < block else 1
                            )
                            byte |= np.uint8(pair << 2 * f)
                        codes_t[b, i // 4, lane, i % 4] = byte
        legal[tile] = illegal == 0


@kernel
def lay_bytes(
    table: NDArray[np.uint8], block: int, codes: NDArray[np.uint8], first: int, last: int
) -> None:
    """Lay rows of 8-bit codes (R, columns) out as codes (tiles, B, 4 G, L, 4), one task a tile."""
    for tile in range(first, last):
        codes_t = codes[tile]
        for lane in range(LANES):
            r = tile * LANES + lane
            if r >= table.shape[0]:
                codes_t[:, :, lane] = 0
                continue
            for b in range(codes.shape[1]):
                row = table[r, b * block : (b + 1) * block]
                for part in range(codes.shape[2]):
                    start = part // 4 * 16 + part % 4
                    for j in range(4):
                        column = start + 4 * j
                        codes_t[b, part, lane, j] = row[column] if column < block else 0
