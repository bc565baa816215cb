"""This file holds ternary matrices with five codes to a byte: the bytes, the layout of rows, and their product.

5 codes have 243 values, a byte 256, so 5 columns take 8 bits instead of 10: what a large model reads from
memory for each token shrinks by a fifth. To divide bytes by powers of 3 would cost more than that saves. But AVX-512
VBMI looks 64 bytes up at once in a table of 64 or 128 entries, and a byte can be chosen so that a part of its bits
decides each code:

* bits 0 to 5 decide codes 0 and 1, by `FIRST`, which holds 3 times the one plus the other,
* bits 2 to 7 decide codes 2 and 3, by `SECOND`,
* all bits but bit 3 decide code 4, by `THIRD`, at the place that `third_index` gives.

Codes are counted from 0 to 2. Most random tables do not have all 243 values; these were found by changing entries at
random and keeping, ever more often, what added values (simulated annealing), in seconds. Any others would do.

Columns meet activations as in the layout of two bits, in fours: the first code of a word's four bytes is for the first
four activations as `quantize` permutes them, and so on; words follow each other. The product takes bytes apart in
registers. For many tokens, a tile is spread to two bits a code once, which costs little for each of them.

Legend: see `linear`; P pairs of activation blocks.
"""

import functools
from collections.abc import Callable
from typing import Literal, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from nanochat.backends.numba.products.arithmetic import GROUP_BYTES
from nanochat.backends.numba.products.tile_product import TileProduct, Value
from nanochat.backends.numba.runtime.compilation import kernel
from nanochat.backends.numba.runtime.isa import Isa, cpu_features
from nanochat.backends.numba.runtime.vectors import (
    INT8,
    INT16,
    INT32,
    LANES,
    call,
    filled,
    float32,
    integer,
    load,
    moved,
    pointer,
    prefetch,
    splat,
    store,
    vector,
)
from nanochat.backends.numba.runtime.words import part_bytes

__all__ = [
    "FIRST",
    "KEPT",
    "SECOND",
    "THIRD",
    "WORDS",
    "CodeLayout",
    "bytes_of",
    "codes_of",
    "fits",
]
__all__ += [
    "embed_trits",
    "lay_trits",
    "possible",
    "spread_block",
    "spread_tile_product",
    "third_index",
]
__all__ += ["trit_tile_product"]

# How ternary codes lie in memory.
CodeLayout = Literal["two_bits", "five_trits"]

FIRST = [int(c) for c in "7326158436750387506283782016154180240452076320456371221488715364"]
SECOND = [int(c) for c in "1418558514071480758224603852401231360337617368275660401375462278"]
THIRD = [
    int(c)
    for c in "0201212112122200010011220121220001200000111111220222121212121022"
    "0200010000100122021011200211102112220020101021212021111002201210"
]

# Bits that `third_index` leaves in their place; places 3 and 5 take those from two places above.
KEPT = 0b01010111

# 32-bit words of a row for two activation blocks of 128 columns: six of five codes a byte for each block, and between
# them one of two-bit codes for the 8 columns that are left of each. 13 words for 256 columns are 1.625 bits each.
WORDS = 13
# Words of a block with five codes to a byte.
_FULL = WORDS // 2
# Registers of the product.
_LANES = 16
_BYTES, _NUMBERS = vector(INT8, 4 * _LANES), vector(INT32, _LANES)
# Bytes; see `tile_product`. One thread of a Zen 4 core took 0.82 to 0.92 times as long with it.
_AHEAD = 16384
# Bit by bit, the second number where the first is 1, and else the third.
_CHOOSE = 0xCA


def third_index(byte: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The place in `THIRD`."""
    taken = np.uint8(0x7F & ~KEPT)
    return byte & np.uint8(KEPT) | byte >> np.uint8(2) & taken


@functools.cache
def codes_of() -> NDArray[np.uint8]:
    """The five codes, from 0 to 2, of every byte, (256, 5)."""
    byte = np.arange(256, dtype=np.uint8)
    pairs = [np.array(FIRST, np.uint8)[byte & 63], np.array(SECOND, np.uint8)[byte >> 2]]
    codes = [part for pair in pairs for part in (pair // 3, pair % 3)]
    return np.stack([*codes, np.array(THIRD, np.uint8)[third_index(byte)]], 1)


@functools.cache
def bytes_of() -> NDArray[np.uint8]:
    """The byte for five codes of two bits, the first in the lowest bits, (1024,); 0 for codes that are not legal."""
    found = np.zeros(1024, np.uint8)
    for byte, codes in enumerate(codes_of()):
        found[sum(int(code) << 2 * n for n, code in enumerate(codes))] = byte
    return found


def fits(columns: int, block: int) -> bool:
    """Whether a matrix can be kept so, by its columns and those of an activation block."""
    return block == 128 and columns % 256 == 0


def possible(isa: Isa) -> bool:
    """Whether this CPU has the look-ups, and may use them."""
    return isa == "avx512vnni" and "avx512vbmi" in cpu_features()


@kernel
def lay_trits(
    row: NDArray[np.uint8], bytes_of: NDArray[np.uint8], laid: NDArray[np.uint32], lane: int
) -> None:
    """Lay a row of packed codes out in a lane of a tile (P WORDS, L).

    bytes_of is that of `trits`; codes that are not legal become others.
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
    """Rows of a table (tiles, P, WORDS, L, 4) into y (N, columns), one task a token; codes_of is that of `trits`."""
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
    _context, tokens, ahead, codes, scales, x, sums, x_scales, y, tile, first, count
):
    kinds = codes, scales, x, sums, x_scales, y
    constants = ["avx512vnni", True, tokens.literal_value, ahead.literal_value, False]

    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        values = arguments[2:8]
        arrays = [
            context.make_array(k)(context, builder, v) for k, v in zip(kinds, values, strict=True)
        ]
        _TritProduct(builder, constants, *arrays, *arguments[8:]).write()
        return context.get_dummy_value()

    return types.void(tokens, ahead, *kinds, tile, first, count), generate


def _typed_spread_product(  # type: ignore[no-untyped-def]
    _context, codes, scales, x, sums, x_scales, y, tile, first, count
):
    kinds = codes, scales, x, sums, x_scales, y

    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        arrays = [
            context.make_array(k)(context, builder, v)
            for k, v in zip(kinds, arguments[:6], strict=True)
        ]
        product = TileProduct(
            builder, ["avx512vnni", True, 4, False, False], *arrays, *arguments[6:]
        )
        product.codes = pointer(builder, arrays[0].data)
        product.write()
        return context.get_dummy_value()

    return types.void(*kinds, tile, first, count), generate


def _typed_spread_block(_context, codes, tile, block, spread):  # type: ignore[no-untyped-def]
    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        arrays = [
            context.make_array(kind)(context, builder, value)
            for kind, value in ((codes, arguments[0]), (spread, arguments[3]))
        ]
        _write_spread(builder, arrays[0], arguments[1], arguments[2], arrays[1])
        return context.get_dummy_value()

    return types.void(codes, tile, block, spread), generate


# trit_tile_product(tokens, ahead, codes, scales, x, sums, x_scales, y, tile, first, count) does what
# `tile_product.tile_product` does, for codes (tiles, B / 2, WORDS, L, 4).
trit_tile_product = cast(Callable[..., None], intrinsic(prefer_literal=True)(_typed))

# spread_block(codes, tile, block, spread) writes one block of a tile to spread (B, 8, L, 4), in two bits a code;
# spread_tile_product(spread, scales, x, ...) is the product of that tile with four tokens.
spread_block = cast(Callable[..., None], intrinsic(_typed_spread_block))
spread_tile_product = cast(Callable[..., None], intrinsic(_typed_spread_product))


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

    def block_sums(self, block: Value, row: Value) -> list[list[Value]]:
        """See `TileProduct`; a tile is as wide as the registers, so that the row is its first."""
        del row
        builder = self.builder
        sums = [self.variables(_NUMBERS) for _ in range(self.chains)]
        for variables in sums:
            self.clear(variables)
        side = builder.and_(block, integer(1))
        pair = builder.mul(builder.lshr(block, integer(1)), self.pair_bytes)
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
        return [[builder.load(variable) for variable in variables] for variables in sums[0]]

    def _add_word(self, sums: list[list[list[Value]]], codes: Value, numbers: list[Value]) -> None:
        """Add the products of 20 columns."""
        found = [_codes(self.builder, self._load(codes, r)) for r in range(self.kind.registers)]
        for n in range(5):
            self._add_products(sums[n % self.chains], [five[n] for five in found], numbers, n)

    def _add_shared(
        self, sums: list[list[list[Value]]], codes: Value, side: Value, numbers: list[Value]
    ) -> None:
        """Add the products of the last 8 columns of a block."""
        builder = self.builder
        up = builder.trunc(builder.mul(side, integer(4)), INT32)
        words = [
            builder.lshr(
                builder.bitcast(self._load(codes, r), _NUMBERS), splat(builder, up, _LANES)
            )
            for r in range(self.kind.registers)
        ]
        for n in range(2):
            pairs = [builder.lshr(word, filled(_NUMBERS, 2 * n)) for word in words]
            found = [builder.and_(pair, filled(_NUMBERS, 0x03030303)) for pair in pairs]
            self._add_products(sums[n % self.chains], found, numbers, n)

    def _load(self, codes: Value, register: int) -> Value:
        here = moved(self.builder, codes, integer(4 * _LANES * register))
        if self.looks_ahead:
            prefetch(self.builder, moved(self.builder, here, integer(_AHEAD)))
        return load(self.builder, here, _BYTES)

    def _add_products(
        self, sums: list[list[Value]], codes: list[Value], numbers: list[Value], n: int
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


def _codes(builder: ir.IRBuilder, packed: Value) -> list[Value]:
    """The five codes of each byte."""
    wide = vector(INT16, 2 * _LANES)
    # What comes in from the next byte is in bits that no look-up sees.
    upper = builder.lshr(builder.bitcast(packed, wide), filled(wide, 2))
    kept = filled(_NUMBERS, KEPT * 0x01010101)
    third = call(
        builder,
        "llvm.x86.avx512.pternlog.d.512",
        _NUMBERS,
        [
            kept,
            builder.bitcast(packed, _NUMBERS),
            builder.bitcast(upper, _NUMBERS),
            ir.Constant(INT32, _CHOOSE),
        ],
    )
    upper = builder.bitcast(upper, _BYTES)
    pairs = [(packed, FIRST), (upper, SECOND)]
    codes = [
        call(builder, "llvm.x86.avx512.permvar.qi.512", _BYTES, [_table(part), bits])
        for bits, table in pairs
        for part in ([pair // 3 for pair in table], [pair % 3 for pair in table])
    ]
    halves = [_table(THIRD[:64]), _table(THIRD[64:])]
    third = builder.bitcast(third, _BYTES)
    name = "llvm.x86.avx512.vpermi2var.qi.512"
    return [*codes, call(builder, name, _BYTES, [halves[0], third, halves[1]])]


def _table(numbers: list[int]) -> Value:
    return ir.Constant(_BYTES, numbers)


def _write_spread(  # type: ignore[no-untyped-def]
    builder, codes, tile: Value, block: Value, spread
) -> None:
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
    for register in range(0, GROUP_BYTES, 4 * _LANES):
        found = [
            code
            for word in range(_FULL)
            for code in _codes(
                builder,
                load(
                    builder, moved(builder, words, integer(GROUP_BYTES * word + register)), _BYTES
                ),
            )
        ]
        last = load(builder, moved(builder, shared, integer(register)), _NUMBERS)
        last = builder.and_(
            builder.shl(last, splat(builder, up, _LANES)), filled(_NUMBERS, 0xF0F0F0F0)
        )
        for group in range(8):
            fields = [builder.bitcast(code, _NUMBERS) for code in found[4 * group : 4 * group + 4]]
            total = last if group == 7 else None
            for f, field in enumerate(fields):
                shifted = builder.shl(field, filled(_NUMBERS, 2 * f))
                total = shifted if total is None else builder.or_(total, shifted)
            store(builder, total, moved(builder, out, integer(GROUP_BYTES * group + register)))
