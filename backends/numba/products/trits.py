"""This file holds ternary matrices with five codes to a byte: the layout of rows, and their product.

Columns meet activations as in the layout of two bits, in fours: the first code of a word's four bytes is for the first
four activations as `quantize` permutes them, and so on; words follow each other. The product takes bytes apart in
registers, by `trit_codes`. For many tokens, a tile is spread to two bits a code once, which costs little for each.

Legend: see `linear`; P pairs of activation blocks.
"""

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from nanochat.backends.numba.products.arithmetic import GROUP_BYTES
from nanochat.backends.numba.products.tile_product import TileProduct, Value
from nanochat.backends.numba.products.trit_codes import (
    TritLayout,
    layout_for,
    register_bytes,
    separated,
)
from nanochat.backends.numba.runtime.compilation import kernel
from nanochat.backends.numba.runtime.lanes import WORDS
from nanochat.backends.numba.runtime.vectors import (
    INT8,
    INT32,
    LANES,
    filled,
    float32,
    integer,
    load,
    moved,
    pointer,
    splat,
    store,
    vector,
)
from nanochat.backends.numba.runtime.words import part_bytes

__all__ = [
    "embed_trits",
    "lay_trits",
    "spread_block",
    "spread_tile_product",
    "trit_tile_product",
]

# Words of a block with five codes to a byte.
_FULL = WORDS // 2


@kernel
def lay_trits(
    row: NDArray[np.uint8], bytes_of: NDArray[np.uint8], laid: NDArray[np.uint32], lane: int
) -> None:
    """Lay a row of packed codes out in a lane of a tile (P WORDS, L).

    bytes_of is that of `trit_codes`; codes that are not legal become others.
    """
    # Of each group of a block, byte j: the 32 codes that byte j of all words is made of.
    streams = np.empty(4, np.uint64)
    low = np.uint64(1023)
    for block in range(2 * (laid.shape[0] // WORDS)):
        start = block // 2 * WORDS + block % 2 * (_FULL + 1)
        part_bytes(row, 32 * block, streams)
        s0, s1, s2, s3 = streams[0], streams[1], streams[2], streams[3]
        for place in range(_FULL):
            down = np.uint64(10 * place)
            laid[start + place, lane] = (
                np.uint32(bytes_of[s0 >> down & low])
                | np.uint32(bytes_of[s1 >> down & low]) << np.uint32(8)
                | np.uint32(bytes_of[s2 >> down & low]) << np.uint32(16)
                | np.uint32(bytes_of[s3 >> down & low]) << np.uint32(24)
            )
        # What is left of either block, four bits of each byte.
        down = np.uint64(60)
        rest = s0 >> down | s1 >> down << np.uint64(8) | s2 >> down << np.uint64(16)
        rest |= s3 >> down << np.uint64(24)
        if block % 2:
            laid[start - 1, lane] |= np.uint32(rest << np.uint64(4))
        else:
            laid[start + _FULL, lane] = np.uint32(rest)


@kernel
def embed_trits(
    codes: NDArray[np.uint8],
    scales: NDArray[np.uint16],
    tokens: NDArray[np.int64],
    codes_of: NDArray[np.uint8],
    y: NDArray[np.float32],
    first: int,
    last: int,
) -> None:
    """Rows of a table (tiles, P, WORDS, L, 4) into y (N, columns), one task a token.

    codes_of is that of `trit_codes`.
    """
    share = 2 * codes.shape[1] // scales.shape[1]
    for n in range(first, last):
        tile, lane = tokens[n] // LANES, tokens[n] % LANES
        for block in range(2 * codes.shape[1]):
            pair, side = block // 2, block % 2
            scale = float32(scales[tile, block // share, lane])
            y_b = y[n, 128 * block : 128 * (block + 1)]
            for j in range(4):
                rest = codes[tile, pair, _FULL, lane, j] >> 4 * side
                for k in range(32):
                    if k < 5 * _FULL:
                        byte = codes[tile, pair, (_FULL + 1) * side + k // 5, lane, j]
                        code = np.int32(codes_of[byte, k % 5]) - 1
                    else:
                        code = np.int32(rest >> 2 * (k - 5 * _FULL) & 3) - 1
                    y_b[16 * (k // 4) + 4 * j + k % 4] = np.float32(code) * scale


# Numba's code generation has no types.
def _typed(  # type: ignore[no-untyped-def]
    _context, isa, tokens, ahead, codes, scales, x, sums, x_scales, y, tile, first, count
):
    kinds = codes, scales, x, sums, x_scales, y
    constants = [isa.literal_value, True, tokens.literal_value, ahead.literal_value, False]

    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        values = arguments[3:9]
        arrays = [
            context.make_array(k)(context, builder, v) for k, v in zip(kinds, values, strict=True)
        ]
        _TritProduct(builder, constants, *arrays, *arguments[9:]).write()
        return context.get_dummy_value()

    return types.void(isa, tokens, ahead, *kinds, tile, first, count), generate


def _typed_spread_product(  # type: ignore[no-untyped-def]
    _context, isa, codes, scales, x, sums, x_scales, y, tile, first, count
):
    kinds = codes, scales, x, sums, x_scales, y
    constants = [isa.literal_value, True, 4, False, False]

    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        arrays = [
            context.make_array(k)(context, builder, v)
            for k, v in zip(kinds, arguments[1:7], strict=True)
        ]
        product = TileProduct(builder, constants, *arrays, *arguments[7:])
        product.codes = pointer(builder, arrays[0].data)
        product.write()
        return context.get_dummy_value()

    return types.void(isa, *kinds, tile, first, count), generate


def _typed_spread_block(_context, isa, codes, tile, block, spread):  # type: ignore[no-untyped-def]
    layout = cast(TritLayout, layout_for(isa.literal_value))

    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        arrays = [
            context.make_array(kind)(context, builder, value)
            for kind, value in ((codes, arguments[1]), (spread, arguments[4]))
        ]
        _write_spread(builder, layout, arrays[0], arguments[2], arguments[3], arrays[1])
        return context.get_dummy_value()

    return types.void(isa, codes, tile, block, spread), generate


# trit_tile_product(isa, tokens, ahead, codes, scales, x, sums, x_scales, y, tile, first, count) does what
# `tile_product.tile_product` does, for codes (tiles, B / 2, WORDS, L, 4) in the layout for the instruction set.
trit_tile_product = cast(Callable[..., None], intrinsic(prefer_literal=True)(_typed))

# spread_block(isa, codes, tile, block, spread) writes one block of a tile to spread (B, 8, L, 4), in two bits a code;
# spread_tile_product(isa, spread, scales, x, ...) is the product of that tile with four tokens.
spread_block = cast(Callable[..., None], intrinsic(prefer_literal=True)(_typed_spread_block))
spread_tile_product = cast(
    Callable[..., None], intrinsic(prefer_literal=True)(_typed_spread_product)
)


class _TritProduct(TileProduct):
    def __init__(  # type: ignore[no-untyped-def]
        self, builder, constants, codes, scales, x, sums, x_scales, y, tile, first, count
    ) -> None:
        super().__init__(
            builder, constants, codes, scales, x, sums, x_scales, y, tile, first, count
        )
        _, pairs, words, *_ = self.sizes(codes)
        self.pair_bytes = integer(WORDS * GROUP_BYTES)
        self.codes = self.item(codes, tile, builder.mul(pairs, self.pair_bytes))
        # A number that LLVM does not know: if it wrote the loop over words out, it would run out of registers.
        self.full = builder.udiv(words, integer(2))
        # One token has few sums, and each addition must wait for the one before.
        self.chains = 2 if len(self.x) == 1 else 1
        self.layout = cast(TritLayout, layout_for(self.isa))
        self.width = register_bytes(self.layout)
        assert self.width == 4 * self.kind.lanes

    def block_sums(self, block: Value, row: Value) -> list[list[Value]]:
        """See `TileProduct`. Partial sums have room for a block: it has 32 products of four columns."""
        builder = self.builder
        sums = [self.variables(self.kind.zero().type) for _ in range(self.chains)]
        for variables in sums:
            self.clear(variables)
        side = builder.and_(block, integer(1))
        pair = builder.mul(builder.lshr(block, integer(1)), self.pair_bytes)
        pair = builder.add(pair, builder.mul(row, integer(4)))
        shared = moved(builder, self.codes, builder.add(pair, integer(_FULL * GROUP_BYTES)))
        start = builder.add(pair, builder.mul(side, integer((_FULL + 1) * GROUP_BYTES)))
        x = [moved(builder, there, builder.mul(block, integer(128))) for there in self.x]
        with self.loop(self.full) as word:
            offset = builder.add(start, builder.mul(word, integer(GROUP_BYTES)))
            numbers = [moved(builder, there, builder.mul(word, integer(20))) for there in x]
            self._add_word(sums, moved(builder, self.codes, offset), numbers)
        self._add_shared(sums, shared, side, [moved(builder, t, integer(20 * _FULL)) for t in x])
        for r, t in self.each():
            for other in sums[1:]:
                self._add(sums[0][r][t], builder.load(other[r][t]))
        return [
            [self.kind.whole(builder, [builder.load(variable)]) for variable in variables]
            for variables in sums[0]
        ]

    def _add_word(self, sums: list[list[list[Value]]], codes: Value, numbers: list[Value]) -> None:
        """Add the products of 20 columns."""
        registers = range(self.kind.registers)
        fives = [separated(self.builder, self.layout, self._load(codes, r)) for r in registers]
        if self.layout == "table_trits":
            # AVX-512 has registers for all. To look them up first gave 1.05 to 1.15 times the speed on one Zen 4 core.
            fives = [iter(list(five)) for five in fives]
        for n, found in enumerate(zip(*fives, strict=True)):
            self._add_products(sums[n % self.chains], found, numbers, n)

    def _add_shared(
        self, sums: list[list[list[Value]]], codes: Value, side: Value, numbers: list[Value]
    ) -> None:
        """Add the products of the last 8 columns of a block."""
        builder, kind = self.builder, vector(INT32, self.kind.lanes)
        up = splat(builder, builder.trunc(builder.mul(side, integer(4)), INT32), kind.count)
        words = [
            builder.lshr(builder.bitcast(self._load(codes, r), kind), up)
            for r in range(self.kind.registers)
        ]
        for n in range(2):
            pairs = [builder.lshr(word, filled(kind, 2 * n)) for word in words]
            found = [builder.and_(pair, filled(kind, 0x03030303)) for pair in pairs]
            found = [builder.bitcast(codes, vector(INT8, self.width)) for codes in found]
            self._add_products(sums[n % self.chains], found, numbers, n)

    def _load(self, codes: Value, register: int) -> Value:
        here = moved(self.builder, codes, integer(self.width * register))
        # Once for each line.
        if self.looks_ahead and self.width * register % 64 == 0:
            self.ask(here)
        return load(self.builder, here, vector(INT8, self.width))

    def _add_products(
        self, sums: list[list[Value]], codes: Sequence[Value], numbers: list[Value], n: int
    ) -> None:
        """Add those of one code of each byte, by registers, with the four activations of number n."""
        builder = self.builder
        for t, there in enumerate(numbers):
            four = load(builder, moved(builder, there, integer(4 * n)), INT32)
            for r, found in enumerate(codes):
                place = sums[r][t]
                builder.store(self.kind.add(builder, builder.load(place), found, four), place)

    def _add(self, place: Value, value: Value) -> None:
        self.builder.store(self.builder.add(self.builder.load(place), value), place)


def _write_spread(  # type: ignore[no-untyped-def]
    builder, layout: TritLayout, codes, tile: Value, block: Value, spread
) -> None:
    size = register_bytes(layout)
    bytes_, numbers = vector(INT8, size), vector(INT32, size // 4)
    _, pairs, *_ = cgutils.unpack_tuple(builder, codes.shape)  # type: ignore[no-untyped-call]
    side = builder.and_(block, integer(1))
    pair = builder.add(builder.mul(tile, pairs), builder.lshr(block, integer(1)))
    start = moved(
        builder, pointer(builder, codes.data), builder.mul(pair, integer(WORDS * GROUP_BYTES))
    )
    words = moved(builder, start, builder.mul(side, integer((_FULL + 1) * GROUP_BYTES)))
    shared = moved(builder, start, integer(_FULL * GROUP_BYTES))
    place = builder.mul(block, integer(8 * GROUP_BYTES))
    out = moved(builder, pointer(builder, spread.data), place)
    # The codes that are left of the second block are where they belong, those of the first four bits below.
    up = builder.trunc(builder.mul(builder.xor(side, integer(1)), integer(4)), INT32)
    for register in range(0, GROUP_BYTES, size):
        there = [moved(builder, words, integer(GROUP_BYTES * w + register)) for w in range(_FULL)]
        found = [
            builder.bitcast(code, numbers)
            for word in there
            for code in separated(builder, layout, load(builder, word, bytes_))
        ]
        last = load(builder, moved(builder, shared, integer(register)), numbers)
        last = builder.and_(
            builder.shl(last, splat(builder, up, numbers.count)), filled(numbers, 0xF0F0F0F0)
        )
        for group in range(8):
            total = last if group == 7 else None
            for f, field in enumerate(found[4 * group : 4 * group + 4]):
                shifted = builder.shl(field, filled(numbers, 2 * f))
                total = shifted if total is None else builder.or_(total, shifted)
            store(builder, total, moved(builder, out, integer(GROUP_BYTES * group + register)))
