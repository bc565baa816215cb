"""This file holds how blocks of files pack ternary codes, and how those become the bytes of `nanochat.ternary.pack`.

Bytes are moved and looked up whole: no code ever has a byte of its own, unless it is written. Shapes are written with N
blocks of n bytes, or of c columns, and B blocks of a row in R rows; a digit is a code plus 1.

References
----------
.. [1] github.com/ggml-org/llama.cpp, ggml/src/ggml-common.h and gguf-py/gguf/quants.py, commit 0c1e570.
.. [2] github.com/PrismML-Eng/llama.cpp, ggml/src/ggml-common.h, branch prism: PTQ1_0.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from nanochat.blocks.checks import OTHER_BYTES
from nanochat.errors import NumericError
from nanochat.weights import Packing

__all__ = [
    "PARTS",
    "Codec",
    "Parts",
    "bits_to_packed",
    "byte_to_digits",
    "columns_of",
    "convert",
    "pack_quarters",
    "pack_trits",
    "unpacked",
]

# From bytes of blocks, (N, n), to others.
Codec = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
# Parts of a block of trits as (digits of a byte, bytes), in the order in which they stand in it.
Parts = tuple[tuple[int, int], ...]
# Of TQ1_0 and PTQ1_0.
PARTS: Mapping[Packing, Parts] = {
    "trits_256": ((5, 32), (5, 16), (4, 4)),
    "trits_128": ((5, 16), (5, 8), (4, 2)),
}

_DIGITS = 5
# A byte is the next whole number above its five digits' share of 256, so that multiplying by 3 shifts a digit out.
_NUMBER_TO_BYTE = np.array(
    [-(-number * 256 // 3**_DIGITS) for number in range(3**_DIGITS)], np.uint8
)
_BYTE_TO_DIGITS = np.array(
    [[(byte * 3**n & 255) * 3 >> 8 for n in range(_DIGITS)] for byte in range(256)], np.uint64
)
# The four digits of a packed byte, as the bytes of one number.
_FOUR_DIGITS: NDArray[np.uint32] = np.array(
    [[byte >> 2 * i & 3 for i in range(4)] for byte in range(256)], np.uint8
).view(np.uint32)[:, 0]
# Eight bits as eight packed codes: set is 1, clear is -1.
_BITS_TO_PACKED = np.array(
    [sum(2 << 2 * i for i in range(8) if byte >> i & 1) for byte in range(256)], "<u2"
)
# Blocks that are converted at once: what lies between two passes stays in the cache.
_AT_ONCE = 2**12
# Columns of a quarter of a group of 128.
_QUARTER = 32


def columns_of(packing: Packing, size: int) -> int:
    """Columns of a block whose codes take so many bytes.

    Examples
    --------
    >>> columns_of("pairs", 32), columns_of("bits", 16), columns_of("trits_128", 26)
    (128, 128, 128)
    """
    if packing in PARTS:
        return sum(digits * count for digits, count in PARTS[packing])
    return 8 * size if packing == "bits" else 4 * size


def unpacked(
    packing: Packing,
    codes: NDArray[np.uint8],
    *,
    name: str,
    rows: NDArray[np.int64] | None = None,
) -> NDArray[np.uint8]:
    """The packed codes of every block, (R, B, c / 4), of the bytes (R, B, n); the same bytes for "pairs".

    Raises
    ------
    NumericError
        If a byte holds more trits than its block has. The name is for this, and so are the numbers of the rows in the
        matrix that is called so, if they are not those of `codes`.
    """
    if packing == "pairs":
        return codes
    if packing in PARTS:
        beyond = _has_digit_beyond(codes, PARTS[packing])
        if beyond.any():
            row, block = (int(i) for i in np.argwhere(beyond)[0])
            raise NumericError(
                f"{name} has a digit where a block ends, in row {row if rows is None else rows[row]}, block {block}: "
                f"{OTHER_BYTES}"
            )
    num_rows, count, size = codes.shape
    out = np.empty((num_rows, count, columns_of(packing, size) // 4), np.uint8)
    convert(codes, _UNPACKERS[packing], out)
    return out


def convert(blocks: NDArray[np.uint8], codec: Codec, out: NDArray[np.uint8]) -> None:
    """Fill `out`, (R, B, m), with what a codec of blocks (N, n) makes of blocks (R, B, n), a few at a time."""
    rows, count, size = blocks.shape
    at_once = max(1, _AT_ONCE // max(1, count))
    for start in range(0, rows, at_once):
        part = blocks[start : start + at_once]
        out[start : start + at_once] = codec(part.reshape(-1, size)).reshape(len(part), count, -1)


def byte_to_digits() -> NDArray[np.uint64]:
    """Of each byte of trits its five digits, digit n in the lowest bits of byte n of the number, (256,)."""
    shifts = np.arange(0, 8 * _DIGITS, 8, dtype=np.uint64)
    digits: NDArray[np.uint64] = (_BYTE_TO_DIGITS << shifts).sum(axis=1, dtype=np.uint64)
    return digits


def bits_to_packed() -> NDArray[np.uint16]:
    """Of each byte of bits its eight packed codes, the first in the lowest bits, (256,)."""
    return _BITS_TO_PACKED.astype(np.uint16)


def _unpack_quarters(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Undo `pack_quarters`."""
    digits = _transpose_digits(data).reshape(len(data), -1, _QUARTER // 4, 4)
    return digits.swapaxes(2, 3).reshape(len(data), -1)


def _unpack_high_quarters(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The packed codes of bytes whose digits are those of `pack_quarters`, highest bits first."""
    digits = _transpose_digits(data).reshape(len(data), -1, _QUARTER // 4, 4)
    return digits[..., ::-1].swapaxes(2, 3).reshape(len(data), -1)


def pack_quarters(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes, (N, n), of packed codes (N, n): digit n of byte 32 h + m is that of column 128 h + 32 n + m."""
    columns = packed.reshape(len(packed), -1, 4, _QUARTER // 4).swapaxes(2, 3)
    return _transpose_digits(columns.reshape(len(packed), -1))


def _unpack_bits(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The packed codes, (N, 2 n), of bits, (N, n): bit i of byte m is column 8 m + i's, set for 1, clear for -1."""
    return _BITS_TO_PACKED.take(data).view(np.uint8)


def pack_trits(packed: NDArray[np.uint8], parts: Parts) -> NDArray[np.uint8]:
    """Bytes of packed codes (N, c / 4).

    Digit n of byte m of a part of M bytes is that of the part's column M n + m, the most significant first.
    """
    found: list[NDArray[np.uint8]] = []
    begin = 0
    for num_digits, size in parts:
        end = begin + num_digits * size // 4
        digits = _FOUR_DIGITS.take(packed[:, begin:end]).view(np.uint8)
        # As large numbers as there are: bytes do not overflow into each other, for they are at most 2 * 121.
        lanes = digits.reshape(len(packed), num_digits, size).view(f"u{min(size, 8)}")
        number = np.zeros((len(packed), lanes.shape[2]), lanes.dtype)
        for n in range(num_digits):
            number += lanes[:, n] * lanes.dtype.type(3 ** (_DIGITS - 1 - n))
        found.append(_NUMBER_TO_BYTE.take(number.view(np.uint8)))
        begin = end
    return np.concatenate(found, axis=1)


def _has_digit_beyond(data: NDArray[np.uint8], parts: Parts) -> NDArray[np.bool_]:
    """Whether a byte of four trits holds a fifth, of the bytes of blocks, (..., n): `pack_trits` writes none."""
    begin = 0
    found = np.zeros(data.shape[:-1], np.bool_)
    for num_digits, size in parts:
        if num_digits < _DIGITS:
            too_many = _BYTE_TO_DIGITS[:, num_digits:].sum(axis=1) > 0
            found |= too_many[data[..., begin : begin + size]].any(axis=-1)
        begin += size
    return found


def _unpack_trits(data: NDArray[np.uint8], parts: Parts) -> NDArray[np.uint8]:
    """Undo `pack_trits`."""
    table = _pair_table()
    packed = np.empty((len(data), sum(digits * size for digits, size in parts) // 4), np.uint8)
    begin = place = 0
    for num_digits, size in parts:
        pairs = table.take(data[:, begin : begin + size].view("<u2"))
        if size == 2:
            # Two digits of each byte make one of ours: of the even bytes of the sum.
            both = (pairs | pairs >> np.uint64(4)).view(np.uint8)
            packed[:, place : place + num_digits // 2] = both[:, :num_digits:2]
            place += num_digits // 2
        else:
            words = pairs[:, ::2] | pairs[:, 1::2] << np.uint64(4)
            found = words.view(np.uint8).reshape(len(data), size // 4, 8)
            for n in range(num_digits):
                # Byte by byte: far faster than inner loops over so few.
                for m in range(size // 4):
                    packed[:, place] = found[:, m, n]
                    place += 1
        begin += size
    return packed


@cache
def _pair_table() -> NDArray[np.uint64]:
    """Of two bytes of trits the digits: byte n holds digit n of the first in its lowest bits, then of the second."""
    one = byte_to_digits()
    # The first byte is the lower half of the index.
    table: NDArray[np.uint64] = (one << np.uint64(2))[:, None] | one
    return table.reshape(-1).astype("<u8")


def _transpose_digits(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Digit n of byte i of every four bytes becomes digit i of byte n, of a copy."""
    words = data.astype(np.uint8, order="C").view("<u4")
    # Digits off the diagonal of each quarter change places, and then the quarters off the diagonal.
    for shift, mask in ((6, 0x00CC_00CC), (12, 0x0000_F0F0)):
        moved = (words ^ words >> np.uint32(shift)) & np.uint32(mask)
        words ^= moved ^ moved << np.uint32(shift)
    return words.view(np.uint8)


_UNPACKERS: Mapping[Packing, Codec] = {
    "bits": _unpack_bits,
    "quarters": _unpack_quarters,
    "high_quarters": _unpack_high_quarters,
    **{packing: partial(_unpack_trits, parts=parts) for packing, parts in PARTS.items()},
}
