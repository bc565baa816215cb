"""This file holds how each instruction set multiplies rows of codes with activations, sixteen columns at a time.

A register holds four bytes of each of its rows, and an activation register the same four bytes for every row: int8
numbers of four columns. In packed bytes, field f of the four bytes belongs to the four activations of number f.

Products are first added to *partial* sums, in the shortest integers that hold them. What an instruction cannot
multiply by, such as a code that is signed, is made so by a *bias*: it is added to every code, and what comes out too
high is the bias times the sum of the activations.
"""

from collections.abc import Iterator
from typing import Protocol, TypeAlias

from llvmlite import ir

from nanochat.backends.host import is_intel
from nanochat.backends.numba.runtime.isa import Isa
from nanochat.backends.numba.runtime.vectors import (
    FLOAT,
    HALF,
    INT8,
    INT16,
    INT32,
    call,
    filled,
    integer,
    load,
    moved,
    pinned,
    splat,
    vector,
)

__all__ = ["GROUP_BYTES", "Arithmetic", "arithmetic", "widened"]

# Bytes of 32 rows of packed codes, or of one of the four parts of 8-bit codes, of a group of 16 columns.
GROUP_BYTES = 128

Builder: TypeAlias = ir.IRBuilder
Value: TypeAlias = ir.Value


class Arithmetic(Protocol):
    """How codes of one kind are multiplied with activations."""

    # Rows in a register.
    lanes: int
    # Registers of rows that are worked on at once, so that sums and activations stay in registers, too.
    registers: int
    # Partial sums of a row and token.
    partials: int
    # Groups of columns that a partial sum has room for, or 0 if it has room for all.
    longest: int
    # What is added to every code.
    bias: int

    def zero(self) -> Value:
        """A register of partial sums, to begin with."""
        ...

    def fields(self, builder: Builder, codes: Value) -> Iterator[tuple[Value, int]]:
        """The codes that meet activations 0 to 3 of a group, each with the number of the partial sum it adds to.

        Their code is written one after the other, so that registers hold one field while it is multiplied.
        """
        ...

    def add(self, builder: Builder, partial: Value, codes: Value, x: Value) -> Value:
        """Partial sums plus the products with four activations, an int32."""
        ...

    def whole(self, builder: Builder, partials: list[Value]) -> Value:
        """The int32 sums of rows."""
        ...


def arithmetic(isa: Isa, *, packed: bool, tokens: int, ahead: bool) -> Arithmetic:
    """The arithmetic for packed or 8-bit codes and so many tokens at once; `ahead` is whether codes are prefetched."""
    match isa:
        case "avx512vnni":
            return _Vnni(512, packed=packed, tokens=tokens)
        case "avxvnni":
            return _Vnni(256, packed=packed, tokens=tokens)
        case "avx2":
            return _Avx2Packed(tokens, ahead) if packed else _Avx2Bytes()
    return _PortablePacked(tokens) if packed else _PortableBytes(tokens)


def widened(builder: Builder, isa: Isa, halves: Value) -> Value:
    """Finite float16 numbers, given as int16, in float32."""
    kind = vector(FLOAT, halves.type.count)
    if isa != "portable":
        return builder.fpext(builder.bitcast(halves, vector(HALF, kind.count)), kind)
    # Not every CPU converts float16. As bits of float32, its exponent is 112 too small.
    wide = builder.zext(halves, vector(INT32, kind.count))
    sign = builder.and_(wide, filled(wide.type, 0x8000))
    bits = builder.shl(builder.xor(wide, sign), filled(wide.type, 13))
    positive = builder.fmul(builder.bitcast(bits, kind), filled(kind, 2.0**112))
    signed = builder.or_(
        builder.bitcast(positive, wide.type), builder.shl(sign, filled(wide.type, 16))
    )
    return builder.bitcast(signed, kind)


class _Vnni:
    """Four products of an unsigned and a signed byte are added to an int32 by one instruction."""

    def __init__(self, bits: int, *, packed: bool, tokens: int) -> None:
        self.lanes = bits // 32
        self.registers = 2
        # int32 has room for the 4 * 128 * 127 of packed codes in place times 33025 groups, half a million columns.
        self.longest = 0
        self.bias = 1 if packed else 128
        self._packed = packed
        # One token does not pay for shifts: each field is multiplied where it stands, and its sum is shifted.
        self._in_place = packed and tokens == 1
        self.partials = 4 if self._in_place else 1
        self._bytes = vector(INT8, 4 * self.lanes)
        self._name = f"llvm.x86.avx512.vpdpbusd.{bits}"

    def zero(self) -> Value:
        return filled(vector(INT32, self.lanes), 0)

    def fields(self, builder: Builder, codes: Value) -> Iterator[tuple[Value, int]]:
        if not self._packed:
            sign = filled(self._bytes, 128)
            for part in _parts(builder, codes, self._bytes):
                yield builder.xor(part, sign), 0
            return
        packed = load(builder, codes, self._bytes)
        if not self._in_place:
            yield from _shifted(builder, packed)
            return
        for f in range(4):
            yield builder.and_(packed, filled(self._bytes, 3 << 2 * f)), f

    def add(self, builder: Builder, partial: Value, codes: Value, x: Value) -> Value:
        numbers = partial.type
        arguments = [partial, builder.bitcast(codes, numbers), splat(builder, x, self.lanes)]
        return call(builder, self._name, numbers, arguments)

    def whole(self, builder: Builder, partials: list[Value]) -> Value:
        total = partials[-1]
        for partial in reversed(partials[:-1]):
            # Exact: a sum of field f is a multiple of 4**f.
            total = builder.ashr(total, filled(total.type, 2))
            total = builder.add(total, partial)
        return total


class _Avx2Packed:
    """Two products of an unsigned and a signed byte make an int16, at most 2 * 2 * 127 of packed codes.

    Fields 1 and 3 of one token are multiplied where they stand, at four times their worth.
    """

    lanes = 8
    bias = 1

    def __init__(self, tokens: int, ahead: bool) -> None:
        self._in_place = tokens == 1
        # 4 gave one token 1.07 times the speed on Zen 4, but 0.7 times together with prefetching; on a Xeon of Intel's,
        # 1.15 times with it.
        self.registers = 4 if tokens == 1 and (not ahead or is_intel()) else 2
        self.partials = 2 if self._in_place else 1
        # 16 * (4 * 508) < 2**15, and in place 8 * (2 * 4 * 508) < 2**15.
        self.longest = 8 if self._in_place else 16

    def zero(self) -> Value:
        return filled(vector(INT16, 16), 0)

    def fields(self, builder: Builder, codes: Value) -> Iterator[tuple[Value, int]]:
        packed = load(builder, codes, vector(INT8, 32))
        if not self._in_place:
            yield from _shifted(builder, packed)
            return
        for half in (packed, _shift(builder, packed, 4)):
            for number, mask in enumerate((0b11, 0b1100)):
                yield builder.and_(half, filled(packed.type, mask)), number

    def add(self, builder: Builder, partial: Value, codes: Value, x: Value) -> Value:
        found = builder.add(partial, _products(builder, codes, x))
        # Four tokens use all 16 registers, and LLVM would add products of several fields before it adds them here,
        # and spill sums: 0.85 times the speed on one Zen 4 core that compiled for AVX2.
        return found if self._in_place else pinned(builder, found)

    def whole(self, builder: Builder, partials: list[Value]) -> Value:
        sums = [_pairs(builder, partial) for partial in partials]
        if len(sums) == 1:
            return sums[0]
        return builder.add(sums[0], builder.ashr(sums[1], filled(sums[1].type, 2)))


class _Avx2Bytes:
    """The magnitudes of codes are multiplied with activations that take the codes' signs.

    Two products fill an int16, 2 * 128 * 127 < 2**15, and are added to an int32 at once.
    """

    lanes = 8
    registers = 2
    partials = 1
    longest = 0
    bias = 0

    def zero(self) -> Value:
        return filled(vector(INT32, 8), 0)

    def fields(self, builder: Builder, codes: Value) -> Iterator[tuple[Value, int]]:
        for part in _parts(builder, codes, vector(INT8, 32)):
            yield part, 0

    def add(self, builder: Builder, partial: Value, codes: Value, x: Value) -> Value:
        # Defined for -128, too: as an unsigned byte its magnitude is 128.
        defined = ir.Constant(ir.IntType(1), 0)
        magnitudes = call(builder, "llvm.abs.v32i8", codes.type, [codes, defined])
        numbers = builder.bitcast(splat(builder, x, 8), codes.type)
        signed = call(builder, "llvm.x86.avx2.psign.b", codes.type, [numbers, codes])
        kind = vector(INT16, 16)
        products = call(builder, "llvm.x86.avx2.pmadd.ub.sw", kind, [magnitudes, signed])
        return builder.add(partial, _pairs(builder, products))

    def whole(self, builder: Builder, partials: list[Value]) -> Value:
        del builder
        return partials[0]


class _PortablePacked:
    """Bytes are widened to int16 in place, those at even and those at odd addresses, and multiplied there."""

    lanes = 4
    partials = 1
    # Sums stay below 2**15: 16 groups of 4 fields of 2 * 2 * 127.
    longest = 16
    bias = 1

    def __init__(self, tokens: int) -> None:
        self.registers = 4 if tokens == 1 else 2

    def zero(self) -> Value:
        return filled(vector(INT16, 8), 0)

    def fields(self, builder: Builder, codes: Value) -> Iterator[tuple[Value, int]]:
        yield from _shifted(builder, load(builder, codes, vector(INT8, 16)))

    def add(self, builder: Builder, partial: Value, codes: Value, x: Value) -> Value:
        return builder.add(partial, _widened_products(builder, codes, x))

    def whole(self, builder: Builder, partials: list[Value]) -> Value:
        return _halves(builder, partials[0])


class _PortableBytes:
    """As `_PortablePacked`; two products fill an int16, 2 * 128 * 127 < 2**15."""

    lanes = 4
    partials = 1
    longest = 0
    bias = 0

    def __init__(self, tokens: int) -> None:
        self.registers = 4 if tokens == 1 else 2

    def zero(self) -> Value:
        return filled(vector(INT32, 4), 0)

    def fields(self, builder: Builder, codes: Value) -> Iterator[tuple[Value, int]]:
        for part in _parts(builder, codes, vector(INT8, 16)):
            yield part, 0

    def add(self, builder: Builder, partial: Value, codes: Value, x: Value) -> Value:
        return builder.add(partial, _halves(builder, _widened_products(builder, codes, x)))

    def whole(self, builder: Builder, partials: list[Value]) -> Value:
        del builder
        return partials[0]


def _parts(builder: Builder, codes: Value, kind: ir.Type) -> Iterator[Value]:
    """8-bit codes that meet activations 0 to 3 of a group."""
    for f in range(4):
        yield load(builder, moved(builder, codes, integer(GROUP_BYTES * f)), kind)


def _shifted(builder: Builder, packed: Value) -> Iterator[tuple[Value, int]]:
    """The four fields of packed bytes, as numbers from 0 to 2, which share a partial sum."""
    for f in range(4):
        yield builder.and_(_shift(builder, packed, 2 * f), filled(packed.type, 3)), 0


def _shift(builder: Builder, packed: Value, bits: int) -> Value:
    # x86 cannot shift bytes; in int16, bits of the next byte come in from above.
    if bits == 0:
        return packed
    wide = builder.bitcast(packed, vector(INT16, packed.type.count // 2))
    return builder.bitcast(builder.lshr(wide, filled(wide.type, bits)), packed.type)


def _products(builder: Builder, codes: Value, x: Value) -> Value:
    numbers = builder.bitcast(splat(builder, x, 8), codes.type)
    return call(builder, "llvm.x86.avx2.pmadd.ub.sw", vector(INT16, 16), [codes, numbers])


def _pairs(builder: Builder, sums: Value) -> Value:
    """Sums of neighbouring int16 numbers."""
    return call(builder, "llvm.x86.avx2.pmadd.wd", vector(INT32, 8), [sums, filled(sums.type, 1)])


def _widened_products(builder: Builder, codes: Value, x: Value) -> Value:
    """Products of neighbouring signed bytes, added in int16."""
    kind = vector(INT16, codes.type.count // 2)
    wide = builder.bitcast(codes, kind)
    numbers = builder.bitcast(splat(builder, x, kind.count // 2), kind)
    eight = filled(kind, 8)
    low = [builder.ashr(builder.shl(value, eight), eight) for value in (wide, numbers)]
    high = [builder.ashr(value, eight) for value in (wide, numbers)]
    return builder.add(builder.mul(*low), builder.mul(*high))


def _halves(builder: Builder, sums: Value) -> Value:
    """Sums of neighbouring int16 numbers, without an instruction for it."""
    wide = builder.bitcast(sums, vector(INT32, sums.type.count // 2))
    sixteen = filled(wide.type, 16)
    low = builder.ashr(builder.shl(wide, sixteen), sixteen)
    return builder.add(low, builder.ashr(wide, sixteen))
