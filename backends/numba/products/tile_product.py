"""This file holds the product of one tile of rows with a few tokens, as code for LLVM.

The sums of an activation block stay in vector registers, which Numba's own language has no words for. Everything that
depends on the instruction set is in `arithmetic`; the loops here are the same for all. Products and sums of float32 are
rounded one by one, so every instruction set gives the same bits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nanochat.backends.host import is_intel
from nanochat.backends.numba.products.arithmetic import GROUP_BYTES, arithmetic, widened
from nanochat.backends.numba.runtime.vectors import (
    FLOAT,
    INT16,
    INT32,
    LANES,
    filled,
    integer,
    load,
    moved,
    pointer,
    prefetch,
    splat,
    store,
    vector,
)

__all__ = ["TileProduct", "Value", "tile_product"]

Value: TypeAlias = ir.Value

# What is asked for: bytes ahead, and the level of cache. The packed codes of one token come from memory, since those of
# a whole model fit no cache, and a CPU by itself looks too little ahead: on one Zen 4 core this gave 1.1 times the
# speed, about what a plain reading loop reaches, and cost nothing in the cache; 8 KiB gave half of it, 4 KiB and less
# none. A Xeon of Intel's (with AMX) gains 1.6 times in two bits and 2 times in trits, where 2 KiB gave 1.5 and 1.75: it
# looks ahead in a page of memory once something of it was asked for, and the first level is still to be waited for.
# Where it pays is measured; see `tune`.
_AHEAD = ((512, 1), (4096, 2)) if is_intel() else ((16384, 2),)


# Numba's code generation has no types.
def _typed(  # type: ignore[no-untyped-def]
    _context, isa, packed, tokens, ahead, codes, scales, x, sums, x_scales, y, tile, first, count
):
    constants = [kind.literal_value for kind in (isa, packed, tokens, ahead)]
    constants.append(scales.dtype == types.float32)
    kinds = codes, scales, x, sums, x_scales, y

    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        values = arguments[4:10]
        arrays = [
            context.make_array(k)(context, builder, v) for k, v in zip(kinds, values, strict=True)
        ]
        TileProduct(builder, constants, *arrays, *arguments[10:]).write()
        return context.get_dummy_value()

    return types.void(isa, packed, tokens, ahead, *kinds, tile, first, count), generate


# tile_product(isa, packed, tokens, ahead, codes, scales, x, sums, x_scales, y, tile, first, count) writes y for the
# rows of a tile and `tokens` tokens from the first on. The last of `count` tokens stands for those that are missing.
# isa, packed, tokens, and ahead, whether later codes are asked for, are constants; the arrays are those of
# `linear.integer_product`.
tile_product = cast(Callable[..., None], intrinsic(prefer_literal=True)(_typed))


class TileProduct:
    """Writes the code of one product; another layout of codes has other sums of a block."""

    def __init__(  # type: ignore[no-untyped-def]
        self, builder, constants, codes, scales, x, sums, x_scales, y, tile, first, count
    ) -> None:
        isa, packed, tokens, self.looks_ahead, self.has_wide_scales = constants
        self.builder = builder
        self.isa = isa
        self.kind = arithmetic(isa, packed=packed, tokens=tokens, ahead=self.looks_ahead)
        self.group_bytes = GROUP_BYTES if packed else 4 * GROUP_BYTES
        self.weight_blocks = self.sizes(scales)[1]
        _, blocks, width = self.sizes(x)
        self.groups = builder.udiv(width, integer(16))
        self.share = builder.udiv(blocks, self.weight_blocks)
        # As long as its addresses are constants, LLVM keeps it in registers.
        totals = ir.ArrayType(FLOAT, LANES * tokens)
        self.total = pointer(builder, cgutils.alloca_once(builder, totals))  # type: ignore[no-untyped-call]

        tile_groups = builder.mul(blocks, self.groups)
        self.codes = self.item(codes, tile, builder.mul(tile_groups, integer(self.group_bytes)))
        self.scale_bytes = 4 if self.has_wide_scales else 2
        scales_size = builder.mul(self.weight_blocks, integer(self.scale_bytes * LANES))
        self.scales = self.item(scales, tile, scales_size)

        last = builder.sub(count, integer(1))
        rows = []
        for t in range(tokens):
            there = builder.icmp_signed("<", integer(t), last)
            rows.append(builder.add(first, builder.select(there, integer(t), last)))
        numbers_size = builder.mul(blocks, integer(4))
        self.x = [self.item(x, row, builder.mul(blocks, width)) for row in rows]
        self.sums = [self.item(sums, row, numbers_size) for row in rows]
        self.x_scales = [self.item(x_scales, row, numbers_size) for row in rows]

        columns = self.sizes(y)[1]
        row = builder.mul(tile, integer(LANES))
        self.count = builder.sub(columns, row)
        places = [builder.add(builder.mul(token, columns), row) for token in rows]
        self.y = [self.item(y, place, integer(4)) for place in places]

    def write(self) -> None:
        """The loops over blocks, and over the parts of a tile that registers have room for."""
        builder, lanes = self.builder, self.kind.lanes
        rows = self.kind.registers * lanes
        zero = filled(vector(FLOAT, lanes), 0)
        for start in range(0, LANES * len(self.x), lanes):
            store(builder, zero, moved(builder, self.total, integer(4 * start)))
        with self.loop(self.weight_blocks) as weight_block, self.loop(self.share) as k:
            block = builder.add(builder.mul(weight_block, self.share), k)
            with self.loop(integer(LANES // rows)) as part:
                row = builder.mul(part, integer(rows))
                scale = builder.add(builder.mul(weight_block, integer(LANES)), row)
                self._add_scaled(self.block_sums(block, row), block, row, scale)
        full = builder.icmp_signed(">=", self.count, integer(LANES))
        with builder.if_else(full) as (then, otherwise):
            with then:
                self._copy(self.y)
            with otherwise:
                self._copy_some()

    def _copy(self, places: list[Value]) -> None:
        """Write the totals of tokens to these places."""
        builder, kind = self.builder, vector(FLOAT, self.kind.lanes)
        for t, place in enumerate(places):
            for start in range(0, LANES, self.kind.lanes):
                here = moved(builder, self.total, integer(4 * (LANES * t + start)))
                store(builder, load(builder, here, kind), moved(builder, place, integer(4 * start)))

    def _copy_some(self) -> None:
        """Write what the last, incomplete tile has rows for."""
        builder = self.builder
        memory = ir.ArrayType(FLOAT, LANES * len(self.y))
        start = pointer(builder, cgutils.alloca_once(builder, memory))  # type: ignore[no-untyped-call]
        totals = [moved(builder, start, integer(4 * LANES * t)) for t in range(len(self.y))]
        self._copy(totals)
        with self.loop(self.count) as lane:
            offset = builder.mul(lane, integer(4))
            for total, y in zip(totals, self.y, strict=True):
                number = load(builder, moved(builder, total, offset), FLOAT)
                store(builder, number, moved(builder, y, offset))

    def block_sums(self, block: Value, row: Value) -> list[list[Value]]:
        """Sums of int32 by registers and tokens, from that row on, without the correction for the bias."""
        builder, longest = self.builder, integer(self.kind.longest)
        group = builder.mul(block, self.groups)
        if self.kind.longest == 0:
            return self._group_sums(group, self.groups, row)
        several = builder.icmp_signed(">", self.groups, longest)
        count = builder.select(several, longest, self.groups)
        # LLVM keeps these variables in registers.
        whole = self.variables(vector(INT32, self.kind.lanes))
        self._write(whole, self._group_sums(group, count, row))
        # One loop over all parts would save and fetch `whole` in blocks of one part, too, and most are.
        with builder.if_then(several, likely=False):
            up = builder.add(self.groups, integer(self.kind.longest - 1))
            parts = builder.sub(builder.udiv(up, longest), integer(1))
            with self.loop(parts) as part:
                done = builder.mul(builder.add(part, integer(1)), longest)
                rest = builder.sub(self.groups, done)
                count = builder.select(builder.icmp_signed("<", rest, longest), rest, longest)
                found = self._group_sums(builder.add(group, done), count, row)
                total = [
                    [builder.add(builder.load(v), f) for v, f in zip(*pair, strict=True)]
                    for pair in zip(whole, found, strict=True)
                ]
                self._write(whole, total)
        return [[builder.load(variable) for variable in variables] for variables in whole]

    def _write(self, variables: list[list[Value]], values: list[list[Value]]) -> None:
        for r, t in self.each():
            self.builder.store(values[r][t], variables[r][t])

    def _group_sums(self, first: Value, count: Value, row: Value) -> list[list[Value]]:
        """Sums over so many groups, by way of partial sums, which have room for them."""
        builder, kind = self.builder, self.kind
        partials = [self.variables(kind.zero().type) for _ in range(kind.partials)]
        for variables in partials:
            self.clear(variables)
        with self.loop(count) as step:
            self._add_group(partials, builder.add(first, step), row)
        return [
            [
                kind.whole(builder, [builder.load(p[r][t]) for p in partials])
                for t in range(len(self.x))
            ]
            for r in range(kind.registers)
        ]

    def _add_group(self, partials: list[list[list[Value]]], group: Value, row: Value) -> None:
        """Add the products of 16 columns."""
        builder, kind = self.builder, self.kind
        start = moved(builder, self.codes, builder.mul(group, integer(self.group_bytes)))
        start = moved(builder, start, builder.mul(row, integer(4)))
        if self.looks_ahead:
            self._prefetch(start)
        registers = range(kind.registers)
        fields = [
            kind.fields(builder, moved(builder, start, integer(4 * kind.lanes * r)))
            for r in registers
        ]
        for f, of_registers in enumerate(zip(*fields, strict=True)):
            offset = builder.add(builder.mul(group, integer(16)), integer(4 * f))
            for t, x in enumerate(self.x):
                four = load(builder, moved(builder, x, offset), INT32)
                for r, (codes, number) in enumerate(of_registers):
                    partial = partials[number][r][t]
                    found = kind.add(builder, builder.load(partial), codes, four)
                    builder.store(found, partial)

    def _prefetch(self, codes: Value) -> None:
        """Ask for what will take the place of these codes some groups later."""
        parts = range(0, self.group_bytes, GROUP_BYTES)
        lines = range(0, 4 * self.kind.lanes * self.kind.registers, 64)
        for line in (part + line for part in parts for line in lines):
            self.ask(moved(self.builder, codes, integer(line)))

    def ask(self, line: Value) -> None:
        """Ask for what comes after a line of codes."""
        for ahead, cache in _AHEAD:
            prefetch(self.builder, moved(self.builder, line, integer(ahead)), cache=cache)

    def _add_scaled(self, whole: list[list[Value]], block: Value, row: Value, scale: Value) -> None:
        """Add the sums of a block, times both scales, to the total."""
        builder, lanes = self.builder, self.kind.lanes
        offset = builder.mul(block, integer(4))
        for r in range(self.kind.registers):
            number = builder.add(scale, integer(lanes * r))
            here = moved(builder, self.scales, builder.mul(number, integer(self.scale_bytes)))
            if self.has_wide_scales:
                scales = load(builder, here, vector(FLOAT, lanes))
            else:
                scales = widened(builder, self.isa, load(builder, here, vector(INT16, lanes)))
            for t in range(len(self.x)):
                x_sum = load(builder, moved(builder, self.sums[t], offset), INT32)
                excess = builder.mul(x_sum, ir.Constant(INT32, self.kind.bias))
                found = builder.sub(whole[r][t], splat(builder, excess, lanes))
                x_scale = load(builder, moved(builder, self.x_scales[t], offset), FLOAT)
                scaled = builder.sitofp(found, scales.type)
                scaled = builder.fmul(scaled, splat(builder, x_scale, lanes))
                scaled = builder.fmul(scaled, scales)
                number = builder.add(row, integer(LANES * t + lanes * r))
                place = moved(builder, self.total, builder.mul(number, integer(4)))
                store(builder, builder.fadd(load(builder, place, scales.type), scaled), place)

    def each(self) -> Iterator[tuple[int, int]]:
        """The numbers of all registers of rows and tokens."""
        for r in range(self.kind.registers):
            for t in range(len(self.x)):
                yield r, t

    def variables(self, kind: ir.Type) -> list[list[Value]]:
        """One for each register of rows and token."""
        return [
            [cgutils.alloca_once(self.builder, kind) for _ in self.x]  # type: ignore[no-untyped-call]
            for _ in range(self.kind.registers)
        ]

    def clear(self, variables: list[list[Value]]) -> None:
        """Begin with zeros."""
        for r, t in self.each():
            variable = variables[r][t]
            self.builder.store(ir.Constant(variable.type.pointee, None), variable)

    def sizes(self, array: Any) -> list[Value]:
        """The shape of an array."""
        return cast(list[Value], cgutils.unpack_tuple(self.builder, array.shape))  # type: ignore[no-untyped-call]

    def item(self, array: Any, number: Value, size: Value) -> Value:
        """The address of an array's item of so many bytes."""
        start = pointer(self.builder, array.data)
        return moved(self.builder, start, self.builder.mul(number, size))

    @contextmanager
    def loop(self, count: Value) -> Iterator[Value]:
        """Repeat what is written inside, at least once."""
        builder = self.builder
        before, body = builder.block, builder.append_basic_block("loop")
        builder.branch(body)
        builder.position_at_end(body)
        index = builder.phi(count.type)
        index.add_incoming(integer(0), before)
        yield index
        following = builder.add(index, integer(1))
        index.add_incoming(following, builder.block)
        after = builder.append_basic_block("after")
        builder.cbranch(builder.icmp_signed("<", following, count), body, after)
        builder.position_at_end(after)
