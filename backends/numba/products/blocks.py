"""This file holds how the blocks of a file become tiles: in one pass over the mapped bytes, which checks them, too.

A row is read once, block after block. Its codes go as words of 16 columns, in our two bits, to where `linear` or
`trits` want them; its scales go through a table that knows which are legal. Pages of the file are given back on the
way: only a few megabytes of a matrix are in memory twice.

Legend: see `linear`; F rows of the file.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba.products.trit_codes import CodeLayout, bytes_of
from nanochat.backends.numba.products.trits import lay_trits
from nanochat.backends.numba.runtime.compilation import inlined, kernel
from nanochat.backends.numba.runtime.threads import Call, Program, run_program
from nanochat.backends.numba.runtime.vectors import LANES
from nanochat.backends.numba.runtime.words import (
    eight_trits,
    put_word,
    sixteen_trits,
    turn_words,
    word_at,
)
from nanochat.blocks.packings import PARTS, bits_to_packed, byte_to_digits, columns_of
from nanochat.blocks.plain import OUTSIDE, REFUSED
from nanochat.tensors import release
from nanochat.weights import Packing, TernaryBlocks

__all__ = ["COLUMNS_OF_BLOCKS", "COLUMNS_OF_TILES", "lay", "run_all"]

# Columns of which all tiles and all blocks are made: those of the words that are moved.
COLUMNS_OF_TILES, COLUMNS_OF_BLOCKS = 16, 32
_Bytes = NDArray[np.uint8]
_Index = NDArray[np.int64]
_Words = NDArray[np.uint32]

# Bytes of a file that are laid out before their pages are given back.
_PIECE = 16 * 2**20
# Nanoseconds of a byte of the file, about.
_BYTE = 0.3
# 32 codes 0, which are the lower bits of all codes, too; and the bits of the smallest scale.
_ZEROS = 0x5555_5555_5555_5555
_SMALLEST = 0x0400
# Rows that are turned into columns of a tile at once.
_ROWS = 8


def lay(
    leaf: TernaryBlocks,
    codes: NDArray[np.uint8],
    scales: NDArray[np.uint16],
    *,
    table: NDArray[np.uint16],
    layout: CodeLayout,
    threads: int,
) -> int | None:
    """Fill tiles of codes, (tiles, ..., L, 4), and of scales, (tiles, S, L), on so many threads.

    Returns
    -------
    int or None
        The first tile with something that is not legal, if there is one: what is laid out then means nothing.
    """
    tiles = len(codes)
    laid = codes.view(np.uint32).reshape(tiles, -1, LANES)
    sound = np.ones(tiles, np.uint8)
    lay_blocks = _lay_blocks(leaf.packing, layout)
    source = (
        _span(leaf.codes),
        leaf.codes.strides[0],
        leaf.codes.strides[1],
        leaf.codes.shape[2],
        columns_of(leaf.packing, leaf.codes.shape[2]) // 4,
        _span(leaf.scales),
        *leaf.scales.strides,
    )
    lookup, parts = _tables(leaf.packing)
    trit_bytes = np.empty(0, np.uint8) if layout == "two_bits" else bytes_of(layout)
    order = np.ascontiguousarray(leaf.blocks, np.int64)
    row_bytes = max(1, leaf.codes[:1].nbytes)
    at_once = max(1, _PIECE // (LANES * row_bytes))
    for first in range(0, tiles, at_once):
        part = slice(first, first + at_once)
        rows = leaf.rows[first * LANES : (first + at_once) * LANES]
        arguments = (
            *source,
            np.ascontiguousarray(rows, np.int64),
            order,
            *(table, lookup, parts, trit_bytes),
            *(laid[part], scales[part], sound[part]),
        )
        run_all(
            lay_blocks,
            *arguments,
            tasks=len(laid[part]),
            num_bytes=len(rows) * row_bytes,
            threads=threads,
        )
        there = slice(int(rows.min()), int(rows.max()) + 1)
        release(leaf.codes[there])
        release(leaf.scales[there])
    wrong = np.flatnonzero(sound == 0)
    return int(wrong[0]) if wrong.size else None


def run_all(
    kernel: Callable[..., None], *arguments: object, tasks: int, num_bytes: int, threads: int
) -> None:
    """Run a kernel that lays so many bytes out."""
    # Never called by Python itself, which would compile it again for arrays that are read-only, as those of files are.
    call = Call(kernel, arguments, tasks, num_bytes * _BYTE)
    run_program(Program([call], threads=threads))


def _span(view: NDArray[Any]) -> _Bytes:
    """All bytes from the first to the last element of a view whose strides are not negative."""
    low, high = np.lib.array_utils.byte_bounds(view)
    first = view[(slice(1),) * view.ndim]
    assert low == first.__array_interface__["data"][0]
    as_bytes = first.view(np.uint8).reshape(-1)
    return np.lib.stride_tricks.as_strided(as_bytes, (high - low,), (1,), writeable=False)


@functools.cache
def _tables(packing: Packing) -> tuple[NDArray[np.uint64], _Index]:
    """What a packing looks up, and its parts."""
    if packing in PARTS:
        return byte_to_digits(), np.array(PARTS[packing], np.int64)
    return bits_to_packed().astype(np.uint64), np.zeros((0, 2), np.int64)


@functools.cache
def _lay_blocks(packing: Packing, layout: CodeLayout) -> Callable[..., None]:
    """The kernel for a packing and a layout; a task is a tile.

    Numba compiles neither what another packing needs, nor what another layout does: `packing` and `layout` are
    constants to it.
    """
    is_ours = packing == "pairs"

    @kernel
    def lay_blocks(
        codes: _Bytes,
        codes_row: int,
        codes_block: int,
        size: int,
        packed_size: int,
        scales: _Bytes,
        scales_row: int,
        scales_block: int,
        rows: _Index,
        blocks: _Index,
        table: NDArray[np.uint16],
        lookup: NDArray[np.uint64],
        parts: _Index,
        trit_bytes: _Bytes,
        laid: _Words,
        laid_scales: NDArray[np.uint16],
        sound: _Bytes,
        first: int,
        last: int,
    ) -> None:
        count = blocks.shape[0]
        num_scales = laid_scales.shape[1]
        # Scales of a block, or blocks of a scale.
        repeats, share = max(1, num_scales // count), max(1, count // num_scales)
        lines = np.empty((_ROWS, count * packed_size), np.uint8)
        for tile in range(first, last):
            wrong = False
            for lane in range(LANES):
                # Lanes without a row have the last one at first.
                row = rows[min(tile * LANES + lane, rows.shape[0] - 1)]
                line = lines[lane % _ROWS]
                # All blocks first: a word that is loaded soon after its bytes were stored waits for them.
                for b in range(0 if is_ours else count):
                    start = row * codes_row + blocks[b] * codes_block
                    packed = line[b * packed_size : (b + 1) * packed_size]
                    if packing == "bits":
                        _unpack_bits(codes, start, size, lookup, packed)
                    elif packing == "quarters":
                        _unpack_quarters(codes, start, size, 0, packed)
                    elif packing == "high_quarters":
                        _unpack_quarters(codes, start, size, 6, packed)
                    elif not is_ours and not _unpack_trits(codes, start, parts, lookup, packed):
                        wrong = True
                kept = np.uint16(0)
                for b in range(count):
                    start, at = row * codes_row + blocks[b] * codes_block, b * packed_size
                    threes, zeros = np.uint64(0), np.uint64(_ZEROS)
                    for i in range(0, packed_size, 8):
                        word = word_at(codes, start + i) if is_ours else word_at(line, at + i)
                        threes |= word & word >> np.uint64(1)
                        zeros &= word
                        if is_ours:
                            put_word(line, at + i, word)
                    wrong = wrong or threes & np.uint64(_ZEROS) != 0
                    there = row * scales_row + blocks[b] * scales_block
                    scale = table[np.int64(scales[there]) | np.int64(scales[there + 1]) << 8]
                    wrong = wrong or scale == REFUSED
                    if scale == 0 and zeros != np.uint64(_ZEROS):
                        zeros = np.uint64(_ZEROS)
                        for i in range(0, packed_size, 8):
                            put_word(line, at + i, zeros)
                    if zeros != np.uint64(_ZEROS):
                        wrong = wrong or scale == OUTSIDE or (kept != 0 and kept != scale)
                        kept = scale
                    if (b + 1) % share == 0:
                        for i in range(repeats):
                            there = b // share * repeats + i
                            laid_scales[tile, there, lane] = kept if kept != 0 else _SMALLEST
                        kept = np.uint16(0)
                if layout != "two_bits":
                    lay_trits(line, trit_bytes, laid[tile], lane)
                elif lane % _ROWS == _ROWS - 1:
                    _lay_pairs(lines, laid[tile], lane - _ROWS + 1)
            for lane in range(max(0, rows.shape[0] - tile * LANES), LANES):
                laid_scales[tile, :, lane] = 0
                if layout != "two_bits":
                    lines[0] = np.uint8(_ZEROS & 255)
                    lay_trits(lines[0], trit_bytes, laid[tile], lane)
                else:
                    laid[tile, :, lane] = np.uint32(_ZEROS & 0xFFFF_FFFF)
            sound[tile] = not wrong

    return lay_blocks


@kernel
def _lay_pairs(lines: _Bytes, laid: _Words, lane: int) -> None:
    """Lay rows of packed codes out in lanes of a tile (G, L), one to a row, from the first lane on."""
    whole = laid.shape[0] // 4 * 4
    for word in range(0, whole, 4):
        turn_words(lines, lines.shape[1], word, laid, lane)
    for word in range(whole, laid.shape[0]):
        for r in range(_ROWS):
            both = word_at(lines[r], word // 2 * 8)
            laid[word, lane + r] = both >> np.uint64(word % 2 * 32) & np.uint64(0xFFFF_FFFF)


@kernel
def _unpack_bits(
    codes: _Bytes, start: int, size: int, lookup: NDArray[np.uint64], packed: _Bytes
) -> None:
    """See `nanochat.blocks.packings`."""
    for m in range(size):
        eight = lookup[codes[start + m]]
        packed[2 * m] = eight & np.uint64(255)
        packed[2 * m + 1] = eight >> np.uint64(8)


@kernel
def _unpack_quarters(codes: _Bytes, start: int, size: int, shift: int, packed: _Bytes) -> None:
    """Digit n of a byte is in its bits from ``abs(2 n - shift)`` on."""
    for half in range(size // 32):
        for m in range(0, 8, 2):
            word = word_at(codes, start + 32 * half + 4 * m)
            for n in range(4):
                digits = word >> np.uint64(abs(2 * n - shift)) & np.uint64(0x0303_0303_0303_0303)
                digits |= digits >> np.uint64(6)
                digits |= digits >> np.uint64(12)
                packed[32 * half + 8 * n + m] = digits & np.uint64(255)
                packed[32 * half + 8 * n + m + 1] = digits >> np.uint64(32) & np.uint64(255)


@kernel
def _unpack_trits(
    codes: _Bytes, start: int, parts: _Index, lookup: NDArray[np.uint64], packed: _Bytes
) -> bool:
    """Whether no byte has more digits than its part says."""
    out, sound = 0, True
    for p in range(parts.shape[0]):
        digits, size = parts[p, 0], parts[p, 1]
        step = size // 4
        if digits == 5 and size % 16 == 0:
            for m in range(0, step, 4):
                sixteen_trits(codes, start + 4 * m, packed, out + m, step)
        elif digits == 5:
            for m in range(0, step, 2):
                eight_trits(codes, start + 4 * m, packed, out + m, step)
        else:
            word = np.uint64(0)
            for m in range(size):
                word |= np.uint64(codes[start + m]) << np.uint64(8 * m)
            found = _four_bytes(word, lookup)
            for n in range(4):
                # Two bytes of four digits make two of ours, and four bytes four.
                both = found >> np.uint64(16 * n if size == 2 else 8 * n)
                if size == 4:
                    packed[out + n] = both & np.uint64(255)
                elif n < 2:
                    packed[out + n] = (both & np.uint64(15)) | both >> np.uint64(4) & np.uint64(240)
            for m in range(size):
                sound = sound and lookup[codes[start + m]] >> np.uint64(32) == 0
        out += digits * size // 4
        start += size
    return sound


@inlined
def _four_bytes(word: np.uint64, lookup: NDArray[np.uint64]) -> np.uint64:
    """The digits of the four lower bytes of a word: those with number n in byte n, the first byte's lowest."""
    return np.uint64(
        lookup[word & np.uint64(255)]
        | lookup[word >> np.uint64(8) & np.uint64(255)] << np.uint64(2)
        | lookup[word >> np.uint64(16) & np.uint64(255)] << np.uint64(4)
        | lookup[word >> np.uint64(24) & np.uint64(255)] << np.uint64(6)
    )
