"""This file holds matrices of numbers that are ternary: every block of a row has zeros and one magnitude.

Numbers of 16 or 32 bits are compared as the bits that they are, so that nothing is rounded. Shapes are written with R
rows, C columns and B blocks of a row.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.errors import NumericError

__all__ = ["TernaryNumbers", "find_ternary"]

# Numbers that are looked at at once: what lies between two passes stays in the cache.
_AT_ONCE = 2**18


@dataclass(frozen=True, kw_only=True, eq=False)
class TernaryNumbers:
    """Packed codes (R, ceil(C / 4)), and float16 scales (R, B), 0 for blocks of zeros, whose scale no number keeps."""

    packed: NDArray[np.uint8]
    scales: NDArray[np.float16]

    def is_shared(self, count: int) -> bool:
        """Whether every so many neighbouring blocks of a row could have one scale."""
        blocks = self.scales.shape[1]
        if blocks % count:
            return False
        groups = self.scales.reshape(-1, blocks // count, count)
        return bool(((groups == 0) | (groups == groups.max(axis=2, keepdims=True))).all())

    def shared_scales(self, count: int) -> NDArray[np.float16]:
        """One scale for so many blocks, (R, B / count), of which `is_shared` is true; 2**-14 for zeros."""
        rows, blocks = self.scales.shape
        scales: NDArray[np.float16] = self.scales.reshape(rows, blocks // count, count).max(axis=2)
        scales[scales == 0] = ternary.SMALLEST_SCALE
        return scales


def find_ternary(values: NDArray[Any], *, block: int, name: str) -> TernaryNumbers:
    """The codes and scales of a float16, bfloat16 or float32 matrix, (R, C), that is ternary in blocks of C's.

    Raises
    ------
    NumericError
        If a number is not finite, a block has two magnitudes, or float16 does not hold one: the first such block is
        named, in the matrix that is called so.

    Examples
    --------
    >>> found = find_ternary(np.array([[0.5, -0.5, 0, 0]], np.float16), block=2, name="weight")
    >>> found.packed.tolist() == [[0b01_01_00_10]], found.scales.tolist()
    (True, [[0.5, 0.0]])
    """
    rows, columns = values.shape
    count = ternary.num_blocks(columns, block)
    packed = np.empty((rows, -(-columns // 4)), np.uint8)
    scales = np.empty((rows, count), np.float16)
    at_once = max(1, _AT_ONCE // max(1, columns))
    for start in range(0, rows, at_once):
        part = slice(start, start + at_once)
        packed[part], scales[part] = _find(values[part], block, name, start)
    return TernaryNumbers(packed=packed, scales=scales)


def _find(
    values: NDArray[Any], block: int, name: str, first: int
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    whole = np.ascontiguousarray(values)
    unsigned = np.dtype(f"u{whole.dtype.itemsize}")
    bits = whole.view(unsigned)
    sign = unsigned.type(1 << (8 * unsigned.itemsize - 1))
    magnitudes = (bits & ~sign).reshape(len(bits), -1, block)
    largest = magnitudes.max(axis=2)
    infinite = np.array(np.inf, whole.dtype).view(unsigned)
    other = (magnitudes != 0) & (magnitudes != largest[:, :, None])
    wrong = other.any(axis=2) | (largest >= infinite)
    if wrong.any():
        row, number = (int(i) for i in np.argwhere(wrong)[0])
        found = whole[row, number * block : (number + 1) * block].astype(np.float32)
        raise NumericError(_not_ternary(name, found, row + first, number * block))
    numbers = largest.view(whole.dtype).astype(np.float32)
    with np.errstate(over="ignore"):
        scales = numbers.astype(np.float16)
    inexact = scales != numbers
    if inexact.any():
        row, number = (int(i) for i in np.argwhere(inexact)[0])
        raise NumericError(
            f"{name} has the scale {numbers[row, number]:g} in row {row + first}, columns {number * block} to "
            f"{(number + 1) * block - 1}, which float16 does not hold without loss: rescale the matrix, or pass a "
            "checkpoint in float16"
        )
    nonzero = magnitudes.reshape(bits.shape) != 0
    negative = (bits >= sign) & nonzero
    codes = nonzero.view(np.int8) - np.int8(2) * negative.view(np.int8)
    return ternary.pack(codes, name=name), scales


def _not_ternary(name: str, block: NDArray[np.float32], row: int, column: int) -> str:
    where = f"row {row}, columns {column} to {column + len(block) - 1}"
    bad = block[~np.isfinite(block)]
    if bad.size:
        return (
            f"{name} holds {bad[0]} in {where}: every weight must be finite; fetch the model again"
        )
    sizes = np.unique(np.abs(block[block != 0]))
    return (
        f"{name} holds {sizes[0]:g} and {sizes[-1]:g} in {where}: a ternary block has zeros and one magnitude. These "
        "are numbers of an ordinary model, or those that training rounds with code of its own; pass a ternary model"
    )
