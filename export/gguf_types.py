"""This file holds the block formats of GGUF that carry a model exactly: TQ2_0 for ternary matrices, Q8_0 for tables.

Both interleave codes with one float16 scale per block. Codes are moved, never rounded again. Shapes are written with R
rows and C columns.

References
----------
.. [1] github.com/ggml-org/llama.cpp, ggml/src/ggml-common.h and gguf-py/gguf/quants.py, commit 0c1e570.
"""

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.errors import FormatError, ShapeError

__all__ = ["Q8_0_BLOCK", "TQ2_0_BLOCK", "pack_q8_0", "pack_tq2_0", "unpack_q8_0", "unpack_tq2_0"]

# Columns of a block.
TQ2_0_BLOCK = 256
Q8_0_BLOCK = 32
_SCALE = np.dtype("<f2")
_TQ2_0_BYTES = TQ2_0_BLOCK // 4 + _SCALE.itemsize
_Q8_0_BYTES = Q8_0_BLOCK + _SCALE.itemsize


def pack_tq2_0(codes: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Blocks of 64 bytes and a scale. Pair n of byte 32 h + m is the code of column 128 h + 32 n + m, plus 1.

    Parameters
    ----------
    codes : int8 array, shape (R, C), values in {-1, 0, 1}
    scales : float16 array, shape (R, S)
        Each is repeated for the C / (256 S) blocks that it covers.

    Returns
    -------
    uint8 array, shape (R, C / 256 * 66)

    Raises
    ------
    ShapeError
        If a scale does not cover whole blocks.
    """
    rows, columns = codes.shape
    count = ternary.num_blocks(columns, TQ2_0_BLOCK)
    if count % scales.shape[1]:
        raise ShapeError(
            f"a scale for every {columns // scales.shape[1]} columns: TQ2_0 has one for every "
            f"{TQ2_0_BLOCK}; train with weight_block=256"
        )
    pairs = (codes + np.int8(1)).view(np.uint8).reshape(rows, count, 2, 4, 32)
    packed = pairs[:, :, :, 0] | pairs[:, :, :, 1] << 2
    packed |= pairs[:, :, :, 2] << 4 | pairs[:, :, :, 3] << 6
    repeated = np.repeat(scales.astype(_SCALE), count // scales.shape[1], axis=1)
    blocks = [packed.reshape(rows, count, 64), repeated[:, :, None].view(np.uint8)]
    return np.concatenate(blocks, axis=2).reshape(rows, -1)


def unpack_tq2_0(
    data: NDArray[np.uint8], *, num_scales: int, name: str
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Undo `pack_tq2_0`.

    Parameters
    ----------
    data : uint8 array, shape (R, C / 256 * 66)
    num_scales : int
        Scales per row, S.
    name : str
        The tensor's name, for errors.

    Returns
    -------
    codes : int8 array, shape (R, C)
    scales : float16 array, shape (R, S)

    Raises
    ------
    NumericError
        If a pair of bits stands for no code.
    FormatError
        If blocks that should share a scale do not.
    """
    rows = len(data)
    blocks = data.reshape(rows, -1, _TQ2_0_BYTES)
    ternary.require_legal(blocks[:, :, :-2], name)
    packed = blocks[:, :, :-2].reshape(rows, -1, 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    codes = (packed >> shifts & np.uint8(3)).view(np.int8) - np.int8(1)
    return codes.reshape(rows, -1), _shared_scales(blocks[:, :, -2:], num_scales, name)


def pack_q8_0(codes: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Blocks of a scale and 32 codes.

    Parameters
    ----------
    codes : int8 array, shape (R, C)
    scales : float16 array, shape (R,)
        Each is repeated for every block of its row.

    Returns
    -------
    uint8 array, shape (R, C / 32 * 34)

    Raises
    ------
    ShapeError
        If 32 does not divide C.
    """
    rows, columns = codes.shape
    count = ternary.num_blocks(columns, Q8_0_BLOCK)
    repeated = np.repeat(scales.astype(_SCALE)[:, None], count, axis=1)
    blocks = [
        repeated[:, :, None].view(np.uint8),
        codes.reshape(rows, count, Q8_0_BLOCK).view(np.uint8),
    ]
    return np.concatenate(blocks, axis=2).reshape(rows, -1)


def unpack_q8_0(
    data: NDArray[np.uint8], *, name: str
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Undo `pack_q8_0`.

    Returns
    -------
    codes : int8 array, shape (R, C)
    scales : float16 array, shape (R,)

    Raises
    ------
    FormatError
        If the blocks of a row do not share a scale.
    """
    rows = len(data)
    blocks = data.reshape(rows, -1, _Q8_0_BYTES)
    codes = np.ascontiguousarray(blocks[:, :, 2:]).view(np.int8).reshape(rows, -1)
    return codes, _shared_scales(blocks[:, :, :2], 1, name)[:, 0]


def _shared_scales(data: NDArray[np.uint8], count: int, name: str) -> NDArray[np.float16]:
    """Return `count` scales of each row, from the two bytes of each of its blocks."""
    bits = np.ascontiguousarray(data).view("<u2").reshape(len(data), count, -1)
    different = np.argwhere(bits != bits[:, :, :1])
    if len(different):
        raise FormatError(
            f"{name} has scales that differ within what should share one, in row {different[0][0]}: "
            "export the model again with nanochat-ternary"
        )
    return bits[:, :, 0].copy().view(_SCALE).astype(np.float16)
