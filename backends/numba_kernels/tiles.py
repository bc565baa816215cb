"""This file holds the form in which the Numba backend keeps weights: matrices in tiles of rows, for `linear`."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.backends.numba_kernels.lanes import LANES
from nanochat.backends.numba_kernels.quantize import chunk_width
from nanochat.weights import Dense, Int8, Latent, Stored

__all__ = ["Leaf", "TiledLinear", "prepare_leaf"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TiledLinear:
    """A ternary matrix or an 8-bit table, whose rows lie in lanes.

    Parameters
    ----------
    codes : uint8 array, shape (tiles, chunks, bytes, LANES)
        Four packed ternary codes, or one 8-bit code, to a byte.
    scales : float32 array, shape (tiles, weight blocks, LANES)
    rows, columns, activation_block : int
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    rows: int
    columns: int
    activation_block: int


Leaf = TiledLinear | NDArray[np.float32]


# Four codes 0; what they are multiplied with is 0, too.
_PACKED_ZEROS = 0b01_01_01_01


def prepare_leaf(name: str, leaf: Stored) -> Leaf:
    """Lay codes out, after rounding latent weights; copy dense numbers."""
    match leaf:
        case Dense():
            return np.array(leaf.values, np.float32, order="C")
        case Int8():
            return _eight_bits(leaf.codes, leaf.scales, leaf.activation_block)
        case Latent(kind="int8"):
            return _eight_bits(
                *ternary.quantize_rows(leaf.values, name=name), leaf.activation_block
            )
        case Latent():
            codes, scales = ternary.quantize(leaf.values, block=leaf.weight_block, name=name)
            return _two_bits(codes, scales, leaf.activation_block)
    if leaf.activation_block % 4 == 0:
        ternary.require_legal(leaf.packed, name)
        return _tiled(leaf.packed, leaf.scales, leaf.columns, leaf.activation_block, per_byte=4)
    codes = ternary.unpack(leaf.packed, columns=leaf.columns, name=name)
    return _two_bits(codes, leaf.scales, leaf.activation_block)


def _eight_bits(codes: NDArray[np.int8], scales: NDArray[np.float16], block: int) -> TiledLinear:
    return _tiled(codes.view(np.uint8), scales[:, None], codes.shape[1], block, per_byte=1)


def _two_bits(codes: NDArray[np.int8], scales: NDArray[np.float16], block: int) -> TiledLinear:
    rows, columns = codes.shape
    blocks = ternary.pack(codes.reshape(rows * ternary.num_blocks(columns, block), block))
    return _tiled(blocks.reshape(rows, -1), scales, columns, block, per_byte=4)


def _tiled(
    data: NDArray[np.uint8],
    scales: NDArray[np.float16],
    columns: int,
    block: int,
    *,
    per_byte: int,
) -> TiledLinear:
    """From rows of bytes, in which every block begins with a new byte."""
    rows, blocks = len(data), ternary.num_blocks(columns, block)
    data = data.reshape(rows, blocks, -1)
    tiles, chunk = -(-rows // LANES), chunk_width(block) // per_byte
    chunks = -(-data.shape[2] // chunk)
    padding = _PACKED_ZEROS if per_byte == 4 else 0
    padded = np.full((tiles * LANES, blocks, chunks * chunk), padding, np.uint8)
    padded[:rows, :, : data.shape[2]] = data
    codes = padded.reshape(tiles, LANES, blocks * chunks, chunk).transpose(0, 2, 3, 1)
    padded_scales = np.zeros((tiles * LANES, scales.shape[1]), np.float32)
    padded_scales[:rows] = scales
    return TiledLinear(
        codes=np.ascontiguousarray(codes),
        scales=np.ascontiguousarray(padded_scales.reshape(tiles, LANES, -1).transpose(0, 2, 1)),
        rows=rows,
        columns=columns,
        activation_block=block,
    )
