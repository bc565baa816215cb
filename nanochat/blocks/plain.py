"""This file holds how a matrix in another program's blocks becomes a plain `Ternary`, and is checked on the way.

A backend that lays the blocks out itself takes the scales by the same table, and errors from `read_rows`.

Shapes are written with R rows, C columns, B blocks of a row and S scales of a row.
"""

import functools

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.blocks.checks import OTHER_BYTES, count_zeros, require_scales, zero_blocks
from nanochat.blocks.packings import columns_of, unpacked
from nanochat.errors import NumericError
from nanochat.weights import Dense, Int8, Latent, Stored, Ternary, TernaryBlocks

__all__ = ["OUTSIDE", "REFUSED", "ZEROS", "Plain", "plain", "read_rows", "scale_table"]
__all__ += ["stored_scales"]

Plain = Latent | Ternary | Int8 | Dense

# Four codes 0.
ZEROS = 0b01_01_01_01
# What `scale_table` holds for scales that are not legal, and for products that float16 does not hold.
REFUSED, OUTSIDE = 0xFFFF, 0xFFFE
_LARGEST = float(np.finfo(np.float16).max)
# Bytes that are looked at at once: what lies between two passes stays in the cache.
_PASS_BYTES = 2**17


def plain(leaf: Stored) -> Plain:
    """The leaf itself; of `TernaryBlocks`, the matrix that they hold, in memory of its own.

    Blocks whose codes or scale are zero have codes 0 and the scale 2**-14, if none that they share it with has another.

    Raises
    ------
    NumericError
        If a code is 3, a byte holds more trits than its block, a scale is negative or not finite, or becomes so by the
        factor, or scales differ where one is asked for: with the place in the file.
    """
    if not isinstance(leaf, TernaryBlocks):
        return leaf
    rows, size = len(leaf.rows), leaf.columns // 4
    packed = np.empty((rows, size), np.uint8)
    scales = np.empty((rows, leaf.columns // leaf.weight_block), np.float16)
    at_once = max(1, _PASS_BYTES // max(1, size))
    for start in range(0, rows, at_once):
        part = slice(start, start + at_once)
        packed[part], scales[part] = read_rows(leaf, leaf.rows[part])
    return Ternary(
        packed=packed, scales=scales, columns=leaf.columns, activation_block=leaf.activation_block
    )


def read_rows(
    leaf: TernaryBlocks, rows: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """The packed codes, (R, C / 4), and scales, (R, S), of some rows of the file; see `plain` for errors."""
    name = leaf.name
    # Copies.
    codes, stored = leaf.codes[rows], leaf.scales[rows]
    packed = unpacked(leaf.packing, codes, name=name, rows=rows)
    zeros = count_zeros(packed, name=name, rows=rows)
    require_scales(stored, name=name, rows=rows)
    zero = zero_blocks(zeros, stored, columns=columns_of(leaf.packing, codes.shape[2]))
    packed[zero] = ZEROS
    bits = scale_table(leaf.factor)[stored.view(np.uint16)]
    outside = (bits == OUTSIDE) & ~zero
    if outside.any():
        row, block = (int(i) for i in np.argwhere(outside)[0])
        raise NumericError(
            f"{name} has the scale {stored[row, block]:g} in row {rows[row]}, block {block}, which times "
            f"{leaf.factor:g} lies outside {ternary.SMALLEST_SCALE:g} to {_LARGEST:g}, which is what float16 holds; "
            "rescale the matrix, or fetch the file again"
        )
    order = leaf.blocks
    assert len(order) * columns_of(leaf.packing, codes.shape[2]) == leaf.columns
    scales = _shared(leaf, bits[:, order].view(np.float16), zero[:, order], rows)
    return packed[:, order].reshape(len(rows), -1), scales


# Of I2_S each tensor has a factor of its own: hundreds of tables would be kept.
@functools.lru_cache(maxsize=2)
def scale_table(factor: float) -> NDArray[np.uint16]:
    """The bits of the float16 nearest to a scale times the factor, by the bits of the scale; 0 for either zero.

    `REFUSED` is there for scales that are negative or not finite, and `OUTSIDE` for products that float16 cannot hold
    without loss. Where the factor is 1, all others are as they were, be they ever so small.
    """
    scales = np.arange(2**16, dtype=np.uint16).view(np.float16)
    # As they are widened, signalling NaNs say so.
    with np.errstate(invalid="ignore", over="ignore"):
        products = scales.astype(np.float64) * factor
        table = products.astype(np.float16).view(np.uint16)
        legal = np.isfinite(scales) & (scales >= 0)
    if factor != 1:
        # Written so that NaN is outside, too.
        table[~((products >= ternary.SMALLEST_SCALE) & (products <= _LARGEST))] = OUTSIDE
    table[~legal] = REFUSED
    table[scales == 0] = 0
    table.flags.writeable = False
    return table


@functools.cache
def stored_scales() -> NDArray[np.uint16]:
    """The same for our own matrices: all finite scales as they are, and `REFUSED`."""
    bits = np.arange(2**16, dtype=np.uint16)
    table = np.where(np.isfinite(bits.view(np.float16)), bits, np.uint16(REFUSED))
    table.flags.writeable = False
    return table


def _shared(
    leaf: TernaryBlocks,
    scales: NDArray[np.float16],
    zero: NDArray[np.bool_],
    rows: NDArray[np.int64],
) -> NDArray[np.float16]:
    """Scales (R, S) of larger or smaller blocks."""
    smallest = np.float16(ternary.SMALLEST_SCALE)
    (num_rows, blocks), count = scales.shape, leaf.columns // leaf.weight_block
    if count % blocks == 0:
        return np.repeat(np.where(zero, smallest, scales), count // blocks, axis=1)
    assert blocks % count == 0
    zero = zero.reshape(num_rows, count, -1)
    grouped = np.where(zero, np.float16(0), scales.reshape(zero.shape))
    largest = grouped.max(axis=2)
    different = (~zero & (grouped != largest[:, :, None])).any(axis=2)
    if different.any():
        row, group = (int(i) for i in np.argwhere(different)[0])
        first = group * leaf.weight_block
        raise NumericError(
            f"{leaf.name} has scales that differ in row {rows[row]}, within columns {first} to "
            f"{first + leaf.weight_block - 1}, which share one in this model; {OTHER_BYTES}"
        )
    return np.where(zero.all(axis=2), smallest, largest)
