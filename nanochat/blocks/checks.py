"""This file holds what a ternary matrix of a file must be, and how many of its weights are zero.

Shapes are written with R rows, B blocks of a row and n packed bytes of a block.
"""

import logging
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nanochat.errors import NumericError

__all__ = [
    "OTHER_BYTES",
    "count_zeros",
    "require_scales",
    "say_many_zeros",
    "share_of_zeros",
    "zero_blocks",
]

_LOGGER = logging.getLogger(__name__)

# What is wrong with bytes that are no codes and scales, and what to do.
OTHER_BYTES = (
    "these bytes have another layout, blocks of another size, or damage: fetch the file again, or another one of the "
    "same model"
)

_LOWER_BITS = np.uint64(0x5555_5555_5555_5555)
_ONE = np.uint64(1)
# Bytes that are looked at at once: what lies between two passes stays in the cache.
_PASS_BYTES = 2**17
# Bits of float16.
_INFINITY, _MINUS_ZERO = 0x7C00, 0x8000
# Ternary training leaves about a third; rounding ordinary weights to the largest magnitude of a block, 80 percent.
_MOST_ZEROS = 0.6


def count_zeros(
    packed: NDArray[np.uint8], *, name: str, rows: NDArray[np.int64] | None = None
) -> NDArray[np.uint16]:
    """Zero codes of every block, (R, B), of packed ones, (R, B, n), with n a multiple of 8; a code 3 is refused.

    Raises
    ------
    NumericError
        If a pair of bits is 0b11: what is read as codes is something else. The name is for this, and so are the numbers
        of the rows in the matrix that is called so, if they are not those of `packed`.
    """
    num_rows, blocks, size = packed.shape
    counts = np.empty((num_rows, blocks), np.uint16)
    at_once = max(1, _PASS_BYTES // max(1, blocks * size))
    for start in range(0, num_rows, at_once):
        words = np.ascontiguousarray(packed[start : start + at_once]).view(np.uint64)
        lower = words & _LOWER_BITS
        # Neighbouring bytes do not meet: what the shift brings over from one is masked.
        illegal = words >> _ONE & lower
        if illegal.any():
            row, block, _ = (int(i) for i in np.argwhere(illegal)[0])
            first, last = block * 4 * size, (block + 1) * 4 * size - 1
            raise NumericError(
                f"{name} has a code 3 in row {_number(start + row, rows)}, columns {first} to {last}: ternary "
                f"codes are 0, 1 and 2; {OTHER_BYTES}"
            )
        # What is not 3 is zero if its lower bit is set.
        zeros = np.bitwise_count(lower)
        count = counts[start : start + at_once]
        np.copyto(count, zeros[:, :, 0])
        for n in range(1, size // 8):
            count += zeros[:, :, n]
    return counts


def require_scales(
    scales: NDArray[np.float16], *, name: str, rows: NDArray[np.int64] | None = None
) -> None:
    """Refuse scales, (R, B), that are not finite or that are negative; 0 makes zeros of a block.

    Name and rows are for errors; see `count_zeros`.
    """
    bits = scales.view(f"{scales.dtype.byteorder}u2")
    bad = (bits >= _INFINITY) & (bits != _MINUS_ZERO)
    if bad.any():
        row, block = (int(i) for i in np.argwhere(bad)[0])
        raise NumericError(
            f"{name} has the scale {scales[row, block]:g} in row {_number(row, rows)}, block {block}: scales are "
            f"finite and not negative; {OTHER_BYTES}"
        )


def zero_blocks(
    zeros: NDArray[np.uint16], scales: NDArray[np.float16], *, columns: int
) -> NDArray[np.bool_]:
    """Blocks whose weights are all zero, (R, B), and whose scales therefore mean nothing.

    Of the counts of `count_zeros`, for blocks of so many columns: the codes are zero, or the scale makes them so.
    """
    found: NDArray[np.bool_] = (zeros == columns) | (scales == 0)
    return found


def share_of_zeros(
    zeros: NDArray[np.uint16], scales: NDArray[np.float16], *, columns: int
) -> float:
    """The share of a matrix's weights that are zero.

    Of the counts of `count_zeros`, for blocks of so many columns. Ternary training leaves about a third; an ordinary
    model that was rounded to ternary blocks, as ``llama-quantize`` does, has about 80 %.

    Examples
    --------
    >>> share_of_zeros(np.array([[32, 64]], np.uint16), np.ones((1, 2), np.float16), columns=64)
    0.75
    """
    count = np.where(scales == 0, np.uint16(columns), zeros).sum(dtype=np.int64)
    return float(count) / max(1, zeros.size * columns)


def say_many_zeros(where: str, shares: Mapping[str, float]) -> None:
    """Warn of a model, by where it is, of whose matrices more than half have more zeros than training leaves."""
    many = [name for name, share in shares.items() if share > _MOST_ZEROS]
    if len(many) > len(shares) // 2:
        _LOGGER.warning(
            "%s: %.0f %% of the weights of %s are zero, and so of %d matrices of %d: a ternary model has about a "
            "third, and one that was rounded to this type without being trained for it writes nonsense",
            where,
            100 * shares[many[0]],
            many[0],
            len(many),
            len(shares),
        )


def _number(row: int, rows: NDArray[np.int64] | None) -> int:
    return row if rows is None else int(rows[row])
