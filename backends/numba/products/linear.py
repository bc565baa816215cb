"""This file holds products with ternary and 8-bit weights, and with those in float32, and the rows of tables.

Weights lie in tiles of `LANES` rows: neighbouring lanes of a register are neighbouring rows, so an activation is
broadcast, no sum runs across lanes, and scales multiply lane by lane. The layout is the same for every instruction set:

* A *group* is 16 columns. A row's four bytes of packed codes of a group are those of the checkpoint: field f of byte j,
  from the lowest bits, is column ``4 j + f``. Those of all rows of a tile follow each other.
* Activations of a group are permuted, so that what meets field f of the four bytes follows each other: byte ``4 f + j``
  is column ``4 j + f``. 8-bit codes are permuted like them, and lie as four parts of four bytes a row.
* A block that is no multiple of 16 columns is filled up with codes and activations 0.
* Large models may be kept five codes to a byte; see `trits`.

Legend: C columns, B activation blocks of a row, G groups of a block, L lanes, N tokens, R rows.
"""

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba.products.tile_product import tile_product
from nanochat.backends.numba.products.trit_codes import CodeLayout
from nanochat.backends.numba.products.trits import (
    spread_block,
    spread_tile_product,
    trit_tile_product,
)
from nanochat.backends.numba.runtime.compilation import inlined, kernel, sum_kernel
from nanochat.backends.numba.runtime.isa import Isa
from nanochat.backends.numba.runtime.vectors import LANES, ask, float32, widened

__all__ = ["AHEAD", "TOKENS", "VARIANTS", "dense_product", "embed", "gather", "gather_narrow"]
__all__ += ["integer_product", "narrow_product", "num_tasks", "plain_product"]

_Codes = NDArray[np.uint8]
_Scales = NDArray[np.uint16 | np.float32]
_Float32 = NDArray[np.float32]
_Int32 = NDArray[np.int32]
_Int8 = NDArray[np.int8]

# Tokens of one task. They share a tile of weights while it is in the first cache, 32 KiB of packed codes for 4096
# columns; their activations stay in the second, 256 KiB, while one tile after the other comes.
TOKENS = 64

# Tokens from which on a tile of trits is spread to two bits, which takes as long as the products of two or three.
_SPREAD = 32

# Tokens from which on the codes of the next tile are asked for while those of this one are used, a few lines for each
# token: processors look ahead by themselves, but a tile is soon read. A step of 32 rows of nano-125m took 0.97 times as
# long on one Zen 4 core. Where fewer tokens or 8-bit codes wait for memory, that many lines at once made it 1.1 to 1.7.
_ASKING = 16
_LINE = 64

# What `variant` may be: the most tokens that share a register of codes, plus `AHEAD` to ask for the codes of a token
# that has a register for itself before it needs them. On one Zen 4 core and for every instruction set, 4 tokens gave
# more than 2, 3, 6, 8 and 12: 8 leave x86 too few addresses or registers.
AHEAD = 8
VARIANTS = (4 + AHEAD, 4, 1 + AHEAD, 1)


def num_tasks(codes: _Codes, tokens: int) -> int:
    """Tasks of `integer_product`."""
    return len(codes) * -(-tokens // TOKENS)


def integer_product(
    isa: Isa, layout: CodeLayout = "two_bits", *, wide: bool = False
) -> Callable[..., None]:
    """The kernel for an instruction set, which the CPU must have, and for a layout, which it must allow.

    Scales are float32, if they are `wide`, or the bits of float16.

    ``kernel(codes, scales, x, sums, x_scales, y, variant, first, last)`` writes y (N, R): the int32 sum of each
    activation block, times both scales, added in float32 from left to right. codes are (tiles, B, G, L, 4) for packed
    weights, (tiles, B / 2, WORDS, L, 4) for those in five trits, and (tiles, B, 4 G, L, 4) for 8-bit ones, whatever the
    layout of the others; scales are (tiles, weight blocks, L); x (N, B, 16 G), sums (N, B) and x_scales (N, B) are from
    `quantize`; variant is one of `VARIANTS`. A task is one tile for `TOKENS` tokens; tiles change fastest. Every kernel
    and variant writes the bits of `plain_product`.
    """
    return _integer_product(isa, wide) if layout == "two_bits" else _trit_product(isa)


@functools.cache
def _integer_product(isa: Isa, wide: bool) -> Callable[..., None]:
    # A kernel has one signature, so what has other scales is another kernel. Numba's cache tells those of instruction
    # sets apart by the value of `isa`.
    del wide

    @kernel
    def integer_product(
        codes: _Codes,
        scales: _Scales,
        x: _Int8,
        sums: _Int32,
        x_scales: _Float32,
        y: _Float32,
        variant: int,
        first: int,
        last: int,
    ) -> None:
        tiles = codes.shape[0]
        packed = codes.shape[2] * 16 == x.shape[2]
        alone, ahead = variant % AHEAD == 1, variant >= AHEAD
        tile = first % tiles
        start = first // tiles * TOKENS
        size = codes.size // tiles
        for _ in range(first, last):
            n = start
            end = min(start + TOKENS, x.shape[0])
            # Of the next tile.
            asked, part = (tile + 1) * size, -(-size // (end - start))
            while n < end:
                # Two tokens and more go with four; those that are missing are doubles of the last.
                count = 1 if alone else min(4, end - n)
                if count > 1 and packed:
                    tile_product(
                        isa, True, 4, False, codes, scales, x, sums, x_scales, y, tile, n, count
                    )
                elif count > 1:
                    tile_product(
                        isa, False, 4, False, codes, scales, x, sums, x_scales, y, tile, n, count
                    )
                elif packed and ahead:
                    tile_product(
                        isa, True, 1, True, codes, scales, x, sums, x_scales, y, tile, n, count
                    )
                elif packed:
                    tile_product(
                        isa, True, 1, False, codes, scales, x, sums, x_scales, y, tile, n, count
                    )
                elif ahead:
                    tile_product(
                        isa, False, 1, True, codes, scales, x, sums, x_scales, y, tile, n, count
                    )
                else:
                    tile_product(
                        isa, False, 1, False, codes, scales, x, sums, x_scales, y, tile, n, count
                    )
                n += count
                if packed and end - start >= _ASKING:
                    for line in range(asked, asked + count * part, _LINE):
                        ask(codes, line)
                    asked += count * part
            tile += 1
            if tile == tiles:
                tile = 0
                start += TOKENS

    return integer_product


@functools.cache
def _trit_product(isa: Isa) -> Callable[..., None]:
    @kernel
    def trit_product(
        codes: _Codes,
        scales: _Scales,
        x: _Int8,
        sums: _Int32,
        x_scales: _Float32,
        y: _Float32,
        variant: int,
        first: int,
        last: int,
    ) -> None:
        tiles = codes.shape[0]
        alone, ahead = variant % AHEAD == 1, variant >= AHEAD
        spread = np.empty((x.shape[1] if x.shape[0] >= _SPREAD else 0, 8, LANES, 4), np.uint8)
        tile = first % tiles
        start = first // tiles * TOKENS
        for _ in range(first, last):
            n = start
            end = min(start + TOKENS, x.shape[0])
            spreads = end - start >= _SPREAD and not alone
            if spreads:
                for block in range(x.shape[1]):
                    spread_block(isa, codes, tile, block, spread)
            while n < end:
                count = 1 if alone else min(4, end - n)
                if spreads:
                    spread_tile_product(isa, spread, scales, x, sums, x_scales, y, tile, n, count)
                elif count > 1:
                    trit_tile_product(
                        isa, 4, False, codes, scales, x, sums, x_scales, y, tile, n, count
                    )
                elif ahead:
                    trit_tile_product(
                        isa, 1, True, codes, scales, x, sums, x_scales, y, tile, n, count
                    )
                else:
                    trit_tile_product(
                        isa, 1, False, codes, scales, x, sums, x_scales, y, tile, n, count
                    )
                n += count
            tile += 1
            if tile == tiles:
                tile = 0
                start += TOKENS

    return trit_product


@kernel
def plain_product(
    codes: _Codes, scales: _Scales, x: _Int8, x_scales: _Float32, y: _Float32, first: int, last: int
) -> None:
    """What `integer_product` writes, in plain loops: the judge of all its kernels. A task is one token."""
    packed = codes.shape[2] * 16 == x.shape[2]
    share = x.shape[1] // scales.shape[1]
    for n in range(first, last):
        for r in range(y.shape[1]):
            tile, lane = r // LANES, r % LANES
            result = np.float32(0)
            for b in range(x.shape[1]):
                total = np.int32(0)
                for i in range(x.shape[2]):
                    group, f, j = i // 16, i % 16 // 4, i % 4
                    if packed:
                        code = np.int32(codes[tile, b, group, lane, j] >> 2 * f & 3) - 1
                    else:
                        code = np.int32(np.int8(codes[tile, b, 4 * group + f, lane, j]))
                    total = np.int32(total + code * x[n, b, i])
                scale = widened(scales[tile, b // share, lane])
                result = result + np.float32(total) * x_scales[n, b] * scale
            y[n, r] = result


@functools.cache
def embed(*, wide: bool = False) -> Callable[..., None]:
    """The kernel for scales in float32, if they are `wide`, or in the bits of float16.

    ``kernel(codes, scales, tokens, block, y, first, last)`` writes rows of codes times the scales of their blocks to y
    (N, columns). Codes and scales are those of `integer_product`, but none in `five_trits`; a task is one token.
    """
    # As in `_integer_product`.
    del wide

    @kernel
    def embed(
        codes: _Codes,
        scales: _Scales,
        tokens: NDArray[np.int64],
        block: int,
        y: _Float32,
        first: int,
        last: int,
    ) -> None:
        # A block of 8-bit codes has four parts for each 16 columns.
        packed = codes.shape[2] * 16 < block + 16
        share = codes.shape[1] // scales.shape[1]
        for n in range(first, last):
            tile, lane = tokens[n] // LANES, tokens[n] % LANES
            for b in range(codes.shape[1]):
                scale = widened(scales[tile, b // share, lane])
                y_b = y[n, b * block : (b + 1) * block]
                for column in range(block):
                    group, j, f = column // 16, column % 16 // 4, column % 4
                    if packed:
                        code = np.int32(codes[tile, b, group, lane, j] >> 2 * f & 3) - 1
                    else:
                        code = np.int32(np.int8(codes[tile, b, 4 * group + f, lane, j]))
                    y_b[column] = np.float32(code) * scale

    return embed


@inlined
def _brain_float32(bits: np.uint16) -> np.float32:
    """A number of bfloat16, given by its bits: the upper ones of float32."""
    return np.int32(np.int32(bits) << 16).view(np.float32)


@functools.cache
def gather_narrow(*, brain: bool) -> Callable[..., None]:
    """`gather` of a table of 16 bits, given as such: bfloat16 (`brain`) or float16."""

    @kernel
    def gather_narrow(
        table: NDArray[np.uint16], ids: NDArray[np.int64], y: _Float32, first: int, last: int
    ) -> None:
        for n in range(first, last):
            row, y_n = table[ids[n]], y[n]
            for c in range(row.shape[0]):
                y_n[c] = _brain_float32(row[c]) if brain else float32(row[c])

    return gather_narrow


@functools.cache
def narrow_product(*, brain: bool) -> Callable[..., None]:
    """`dense_product` with a weight of 16 bits, given as such: bfloat16 (`brain`) or float16."""

    @sum_kernel
    def narrow_product(
        weight: NDArray[np.uint16], x: _Float32, y: _Float32, first: int, last: int
    ) -> None:
        for r in range(first, last):
            weight_r = weight[r]
            for n in range(x.shape[0]):
                x_n = x[n]
                total = np.float32(0)
                for c in range(weight_r.shape[0]):
                    bits = weight_r[c]
                    total += (_brain_float32(bits) if brain else float32(bits)) * x_n[c]
                y[n, r] = total

    return narrow_product


@kernel
def gather(
    table: NDArray[np.float32],
    ids: NDArray[np.int64],
    y: NDArray[np.float32],
    first: int,
    last: int,
) -> None:
    """Rows of the table (R, C) into y (N, C), one task an id."""
    for n in range(first, last):
        y[n] = table[ids[n]]


@sum_kernel
def dense_product(
    weight: NDArray[np.float32],
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    first: int,
    last: int,
) -> None:
    """``y = x @ weight.T`` for weight (R, C), x (N, C) and y (N, R); a task is one row of the matrix."""
    for r in range(first, last):
        weight_r = weight[r]
        for n in range(x.shape[0]):
            x_n = x[n]
            total = np.float32(0)
            for c in range(weight_r.shape[0]):
                total += weight_r[c] * x_n[c]
            y[n, r] = total
