"""This file holds the form in which the Numba backend keeps weights: matrices in tiles of rows, for `linear`."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.backends.numba_kernels.lanes import LANES
from nanochat.backends.numba_kernels.quantize import chunk_width
from nanochat.weights import Dense, Int8, Latent, Stored, Ternary

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


def prepare_leaf(name: str, leaf: Stored) -> Leaf:
    """Lay codes out, after rounding latent weights; copy dense numbers."""
    match leaf:
        case Dense():
            return np.array(leaf.values, np.float32, order="C")
        case Ternary():
            codes = ternary.unpack(leaf.packed, columns=leaf.columns, name=name)
            return _tiled(codes, leaf.scales, leaf.activation_block, packed=True)
        case Int8():
            return _tiled(leaf.codes, leaf.scales[:, None], leaf.activation_block, packed=False)
        case Latent(kind="ternary"):
            codes, scales = ternary.quantize(leaf.values, block=leaf.weight_block, name=name)
            return _tiled(codes, scales, leaf.activation_block, packed=True)
    codes, scales = ternary.quantize_rows(leaf.values, name=name)
    return _tiled(codes, scales[:, None], leaf.activation_block, packed=False)


def _tiled(
    codes: NDArray[np.int8], scales: NDArray[np.float16], block: int, *, packed: bool
) -> TiledLinear:
    rows, columns = codes.shape
    blocks = ternary.num_blocks(columns, block)
    tiles, width = -(-rows // LANES), chunk_width(block)
    chunks = -(-block // width)
    padded = np.zeros((tiles * LANES, blocks, chunks * width), np.int8)
    padded[:rows, :, :block] = codes.reshape(rows, blocks, block)
    lanes_last = padded.reshape(tiles, LANES, blocks * chunks, width).transpose(0, 2, 3, 1)
    if packed:
        pairs = (lanes_last + 1).astype(np.uint8).reshape(tiles, blocks * chunks, -1, 4, LANES)
        quads = pairs[:, :, :, 0] | pairs[:, :, :, 1] << 2
        lanes_last = quads | pairs[:, :, :, 2] << 4 | pairs[:, :, :, 3] << 6
    padded_scales = np.zeros((tiles * LANES, scales.shape[1]), np.float32)
    padded_scales[:rows] = scales
    return TiledLinear(
        codes=np.ascontiguousarray(lanes_last).view(np.uint8),
        scales=np.ascontiguousarray(padded_scales.reshape(tiles, LANES, -1).transpose(0, 2, 1)),
        rows=rows,
        columns=columns,
        activation_block=block,
    )
