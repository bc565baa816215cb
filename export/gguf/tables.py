"""This file holds how tables of GGUF files become small integers and their factors, or numbers of 16 bits, as stored.

Nothing is rounded: codes times scales are the numbers that the gguf library makes of the same bytes, to the last bit.
Shapes are written with R rows, C columns and B blocks of a row.

References
----------
.. [1] github.com/ggml-org/llama.cpp, ggml/src/ggml-common.h and ggml-quants.c, commit 0c1e570: Q4_0, Q6_K and Q8_0.
"""

from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from nanochat.errors import NumericError
from nanochat.export.gguf.types import BF16, F16, Q4_0, Q6_K, Q8_0, TensorType

__all__ = ["COLUMNS_OF_SCALE", "half_view", "integer_table"]

# Types of integers, with the columns that share a scale.
COLUMNS_OF_SCALE: Mapping[TensorType, int] = {Q4_0: 32, Q8_0: 32, Q6_K: 16}

_SCALE = np.dtype("<f2")
_HALVES: Mapping[TensorType, np.dtype[np.generic]] = {
    F16: _SCALE,
    BF16: np.dtype(ml_dtypes.bfloat16),
}
# Bytes that are taken apart at once: what lies between two passes stays in the cache.
_PASS_BYTES = 2**17


def integer_table(
    kind: TensorType, data: NDArray[np.uint8], *, name: str
) -> tuple[NDArray[np.int8], NDArray[np.float16] | NDArray[np.float32]]:
    """The codes, (R, C), of a table in `Q8_0`, `Q4_0` or `Q6_K`, and the scales of every 32 or 16 columns, (R, S).

    Codes lie in [-127, 127]; scales may be negative, as llama.cpp makes them in `Q4_0`. They are float16, but float32
    in `Q6_K`, where they are products of a float16 and 8 bits.

    Parameters
    ----------
    kind : TensorType
        One of `COLUMNS_OF_SCALE`.
    data : uint8 array, shape (R, bytes of a row)
    name : str
        For errors.

    Raises
    ------
    NumericError
        If a scale is not finite, or a code of `Q8_0` is -128, which llama.cpp never writes and 8-bit products here do
        not take.
    """
    blocks = data.reshape(len(data), -1, kind.bytes)
    rows, count, size = blocks.shape
    columns = COLUMNS_OF_SCALE[kind]
    codes = np.empty((rows, count, kind.columns), np.int8)
    dtype = np.float32 if kind == Q6_K else np.float16
    scales = np.empty((rows, count, kind.columns // columns), dtype)
    at_once = max(1, _PASS_BYTES // max(1, count * size))
    for start in range(0, rows, at_once):
        part = slice(start, start + at_once)
        _READERS[kind](blocks[part], codes[part], scales[part])
        _require_legal(codes[part], scales[part], name=name, row=start, columns=columns)
    return codes.reshape(rows, -1), scales.reshape(rows, -1)


def half_view(
    kind: TensorType, data: NDArray[np.uint8]
) -> NDArray[np.float16] | NDArray[ml_dtypes.bfloat16]:
    """The numbers, (R, C), of a table in `F16` or `BF16`, as views of its bytes, (R, 2 C)."""
    return data.view(_HALVES[kind])


def _require_legal(
    codes: NDArray[np.int8],
    scales: NDArray[np.float16] | NDArray[np.float32],
    *,
    name: str,
    row: int,
    columns: int,
) -> None:
    """Refuse a part of a table, (R, B, columns of a block) and (R, B, S), that begins at a row."""
    finite = np.isfinite(scales).reshape(len(scales), -1)
    if not finite.all():
        place, number = (int(i) for i in np.argwhere(~finite)[0])
        raise NumericError(
            f"{name} has the scale {scales.reshape(len(scales), -1)[place, number]:g} in row {row + place}, columns "
            f"{number * columns} to {(number + 1) * columns - 1}: scales are finite; fetch the file again"
        )
    if codes.size and codes.min() < -127:
        place, number = (int(i) for i in np.argwhere(codes.reshape(len(codes), -1) < -127)[0])
        raise NumericError(
            f"{name} has the code -128 in row {row + place}, column {number}: codes lie in [-127, 127], and llama.cpp "
            "writes no other; fetch the file again, or one of the same model in which this table is F16"
        )


# Each fills codes, (R, B, columns of a block), and scales, (R, B, S), from the bytes of blocks.


def _read_q8_0(
    blocks: NDArray[np.uint8], codes: NDArray[np.int8], scales: NDArray[np.floating]
) -> None:
    scales[...] = blocks[:, :, :2].view(_SCALE)
    codes[...] = blocks[:, :, 2:].view(np.int8)


def _read_q4_0(
    blocks: NDArray[np.uint8], codes: NDArray[np.int8], scales: NDArray[np.floating]
) -> None:
    """Low halves of bytes are columns 0 to 15, high ones 16 to 31."""
    scales[...] = blocks[:, :, :2].view(_SCALE)
    digits = codes.view(np.uint8)
    np.bitwise_and(blocks[:, :, 2:], np.uint8(15), out=digits[:, :, :16])
    np.right_shift(blocks[:, :, 2:], np.uint8(4), out=digits[:, :, 16:])
    codes -= np.int8(8)


def _read_q6_k(
    blocks: NDArray[np.uint8], codes: NDArray[np.int8], scales: NDArray[np.floating]
) -> None:
    """Column 128 h + 32 n + m has four bits of byte 64 h + 32 (n % 2) + m, and two of byte 128 + 32 h + m."""
    rows, count, _ = blocks.shape
    low = blocks[:, :, :128].reshape(rows, count, 2, 2, 32)
    high = blocks[:, :, 128:192].reshape(rows, count, 2, 32)
    digits = codes.view(np.uint8).reshape(rows, count, 2, 4, 32)
    np.bitwise_and(low, np.uint8(15), out=digits[:, :, :, :2])
    np.right_shift(low, np.uint8(4), out=digits[:, :, :, 2:])
    for n in range(4):
        digits[:, :, :, n] |= (high >> np.uint8(2 * n) & np.uint8(3)) << np.uint8(4)
    codes -= np.int8(32)
    # Exact: 11 bits times 8. What is not finite is refused by the caller.
    with np.errstate(invalid="ignore"):
        np.multiply(
            blocks[:, :, 208:].view(_SCALE).astype(np.float32),
            blocks[:, :, 192:208].view(np.int8),
            out=scales,
        )


_READERS: Mapping[
    TensorType,
    Callable[[NDArray[np.uint8], NDArray[np.int8], NDArray[np.floating]], None],
] = {Q8_0: _read_q8_0, Q4_0: _read_q4_0, Q6_K: _read_q6_k}
