"""This file holds the product of a few rows with a matrix whose columns lie in lanes, whatever the matrix is kept in.

A row of the matrix is widened to float32 once, in registers, and multiplied by one weight of each row. That is written
in vectors of LLVM, which maps them to the registers of the processor: loops over arrays would leave the sums in memory.
One Zen 4 core gives 108 billion operations a second of its 118, and 90 to 100 where it widens.

Legend: R rows, I positions or features that are summed over, L lanes.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nanochat.backends.numba.runtime.isa import cpu_features
from nanochat.backends.numba.runtime.vectors import (
    FLOAT,
    HALF,
    INT8,
    INT16,
    INT32,
    INT64,
    LANES,
    call,
    filled,
    integer,
    load,
    moved,
    pointer,
    splat,
    store,
    vector,
)
from nanochat.rows import PAGE
from nanochat.ternary import KV_BLOCK

__all__ = ["MOST_ROWS", "PACKED_LANES", "multiply", "to_half"]

# Bytes of a row of codes of 4 bits: each holds lane l in its lower half, and l + L / 2 in its upper.
PACKED_LANES = LANES // 2

# The sums of 8 rows in 32 lanes fill half of the 32 registers of AVX-512; those of 2 rows, or 4 in 16 lanes at a time,
# half of AVX2's.
_IS_WIDE = "avx512f" in cpu_features()
MOST_ROWS = 8 if _IS_WIDE else 4

# By the elements of the matrix: their bytes; those of two codes of 4 bits count as one.
_BYTES = {FLOAT: 4, INT16: 2, INT8: 1}

# Arguments of the function that multiplies without scales.
_PLAIN = 9

# Bytes of a line of the caches.
_LINE = 64


# Numba's code generation has no types.
def _multiply(
    _typing: object,
    rows: Any,
    weights: Any,
    offsets: Any,
    matrix: Any,
    place: Any,
    count: Any,
    sums: Any,
    stride: Any,
    begun: Any,
    ahead: Any,
    scales: Any,
) -> tuple[Any, Any]:
    kinds = rows, weights, offsets, matrix, place, count, sums, stride, begun, ahead, scales

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def data(number: int) -> Any:
            array = context.make_array(signature.args[number])
            return array(context, builder, arguments[number]).data

        first = moved(builder, data(3), arguments[4])
        values = [arguments[0], data(1), data(2), first, arguments[5], data(6), *arguments[7:10]]
        if not isinstance(scales, types.NoneType):
            values.append(data(10))
        four_bits = signature.args[3].dtype == types.uint8
        kinds_here = [value.type for value in values]
        builder.call(_function(builder.module, kinds_here, four_bits=four_bits), values)
        return context.get_dummy_value()

    return types.void(*kinds), generate


# ``multiply(rows, weights, offsets, matrix, place, count, sums, stride, begun, ahead, scales)`` in a kernel: for 1 to
# `MOST_ROWS` rows r, ``sums[r, lane] = sum over i < count of weights[r, i] * matrix[i, lane]``, added in the order of
# i, and to what is in the sums if `begun` is 1 and not 0. So a sum may be taken in parts, and has the same bits. Arrays
# are in C order. Row r of the weights begins `offsets[r]` elements after the first, the matrix `place`, and row r of
# the sums ``r * stride``. The matrix is float32, float16 as uint16, int8, or codes of 4 bits, two to a byte, as uint8.
# What lies `ahead` bytes further is asked for: what is read next, as a rule. If there are scales, and not None,
# ``matrix[i, lane]`` stands for its product with ``scales[i // KV_BLOCK * PAGE + lane]``, in the bits of bfloat16. That
# of a code of 4 bits is exact.
multiply = cast(Callable[..., None], intrinsic(_multiply))


def _function(module: Any, kinds: list[Any], *, four_bits: bool) -> Any:
    """The one function of a kernel that multiplies, since a copy at every call would take long to compile."""
    scaled = "_scaled" if len(kinds) > _PLAIN else ""
    name = f"nanochat_multiply{scaled}_{'i4' if four_bits else kinds[3].pointee}"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    done = function.append_basic_block("done")
    choice = builder.switch(function.args[0], done)
    for rows in range(1, MOST_ROWS + 1):
        block = function.append_basic_block(f"rows_{rows}")
        choice.add_case(rows, block)
        builder.position_at_end(block)
        _generate(rows, builder, *function.args[1:], four_bits=four_bits)
        builder.branch(done)
    builder.position_at_end(done)
    builder.ret_void()
    return function


def _generate(
    rows: int,
    builder: Any,
    weights: Any,
    offsets: Any,
    matrix: Any,
    count: Any,
    sums: Any,
    stride: Any,
    begun: Any,
    ahead: Any,
    scales: Any = None,
    *,
    four_bits: bool,
) -> None:
    starts = [
        moved(builder, weights, builder.load(moved(builder, offsets, integer(r))))
        for r in range(rows)
    ]
    width = LANES if _IS_WIDE or rows <= 2 else LANES // 2
    numbers = vector(FLOAT, width)
    for low in range(0, LANES, width):
        places = [
            pointer(
                builder,
                moved(builder, sums, builder.add(builder.mul(stride, integer(r)), integer(low))),
            )
            for r in range(rows)
        ]
        firsts = _firsts(builder, begun, places, numbers)
        before, block = builder.block, builder.append_basic_block("block")
        body, blocked = builder.append_basic_block("sum"), builder.append_basic_block("blocked")
        after = builder.append_basic_block("summed")
        builder.cbranch(builder.icmp_signed(">", count, integer(0)), block, after)
        # All rows of the matrix that share a scale.
        builder.position_at_end(block)
        begin = builder.phi(INT64)
        sums_before = [builder.phi(numbers) for _ in range(rows)]
        end, factors = count, None
        if scales is not None:
            factors = _scales_at(builder, scales, begin, numbers, low)
            end = builder.add(begin, integer(KV_BLOCK))
            end = builder.select(builder.icmp_signed("<", end, count), end, count)
        builder.branch(body)
        builder.position_at_end(body)
        i = builder.phi(INT64)
        totals = [builder.phi(numbers) for _ in range(rows)]
        if four_bits:
            address = moved(builder, matrix, builder.mul(i, integer(PACKED_LANES)))
            row = _unpacked(builder, address, numbers, low)
        else:
            lane = builder.add(builder.mul(i, integer(LANES)), integer(low))
            address = moved(builder, matrix, lane)
            row = _widened(builder, address, numbers)
        if factors is not None:
            row = builder.fmul(row, factors)
        if low == 0:
            _ask(builder, address, ahead)
        added = [
            _multiply_add(builder, builder.load(moved(builder, start, i)), row, total)
            for start, total in zip(starts, totals, strict=True)
        ]
        following = builder.add(i, integer(1))
        builder.cbranch(builder.icmp_signed("<", following, end), body, blocked)
        builder.position_at_end(blocked)
        builder.cbranch(builder.icmp_signed("<", following, count), block, after)
        for phi, first in ((begin, integer(0)), *zip(sums_before, firsts, strict=True)):
            phi.add_incoming(first, before)
        for phi, later in ((begin, following), *zip(sums_before, added, strict=True)):
            phi.add_incoming(later, blocked)
        for phi, first in ((i, begin), *zip(totals, sums_before, strict=True)):
            phi.add_incoming(first, block)
        for phi, later in ((i, following), *zip(totals, added, strict=True)):
            phi.add_incoming(later, body)
        builder.position_at_end(after)
        results = [builder.phi(numbers) for _ in range(rows)]
        for r, result in enumerate(results):
            result.add_incoming(firsts[r], before)
            result.add_incoming(added[r], blocked)
        for place, result in zip(places, results, strict=True):
            store(builder, result, place)


def _scales_at(builder: Any, scales: Any, begin: Any, numbers: Any, low: int) -> Any:
    """The scales of a block of rows of the matrix, from lane `low` on, as float32."""
    place = builder.mul(builder.udiv(begin, integer(KV_BLOCK)), integer(PAGE))
    address = moved(builder, scales, builder.add(place, integer(low)))
    wide = vector(INT32, numbers.count)
    bits = builder.zext(load(builder, address, vector(INT16, numbers.count)), wide)
    return builder.bitcast(builder.shl(bits, filled(wide, 16)), numbers)


def _firsts(builder: Any, begun: Any, places: list[Any], numbers: Any) -> list[Any]:
    """What sums begin with: zeros, or what is in their places."""
    before, there = builder.block, builder.append_basic_block("there")
    first = builder.append_basic_block("first")
    builder.cbranch(builder.icmp_signed("==", begun, integer(1)), there, first)
    builder.position_at_end(there)
    found = [load(builder, place, numbers) for place in places]
    builder.branch(first)
    builder.position_at_end(first)
    firsts = [builder.phi(numbers) for _ in places]
    for phi, value in zip(firsts, found, strict=True):
        phi.add_incoming(ir.Constant(numbers, None), before)
        phi.add_incoming(value, there)
    return firsts


def _ask(builder: Any, address: Any, ahead: Any) -> None:
    """Have what lies so many bytes after a row of the matrix fetched."""
    for line in range(0, _BYTES[address.type.pointee] * LANES, _LINE):
        offset = builder.add(ahead, integer(line))
        later = moved(builder, pointer(builder, address), offset)
        # To be read, to stay in the second cache, and data: the first is full of what is read now.
        call(builder, "llvm.prefetch.p0", ir.VoidType(), [later, INT32(0), INT32(2), INT32(1)])


def _widened(builder: Any, address: Any, numbers: Any) -> Any:
    """A vector of the matrix as float32."""
    element = address.type.pointee
    found = load(builder, address, vector(element, numbers.count))
    if element == FLOAT:
        return found
    if element == INT16:
        return builder.fpext(builder.bitcast(found, vector(HALF, numbers.count)), numbers)
    return builder.sitofp(builder.sext(found, vector(INT32, numbers.count)), numbers)


def _unpacked(builder: Any, address: Any, numbers: Any, low: int) -> Any:
    """Codes of 4 bits as float32: of all lanes, or of as many as there are bytes, from lane `low` on."""
    codes = vector(INT32, PACKED_LANES)
    found = builder.sext(load(builder, address, vector(INT8, PACKED_LANES)), codes)
    # Shifts to the right repeat the sign.
    upper = builder.ashr(found, filled(codes, 4))
    lower = builder.ashr(builder.shl(found, filled(codes, 28)), filled(codes, 28))
    if numbers.count == PACKED_LANES:
        return builder.sitofp(upper if low else lower, numbers)
    order = ir.Constant(vector(INT32, LANES), [*range(LANES)])
    return builder.sitofp(builder.shuffle_vector(lower, upper, order), numbers)


def _multiply_add(builder: Any, weight: Any, row: Any, total: Any) -> Any:
    # Fused where the processor has that: elsewhere, a fused one is a call of a function.
    count = row.type.count
    weights = splat(builder, weight, count)
    return call(builder, f"llvm.fmuladd.v{count}f32", row.type, [weights, row, total])


def _to_half(_typing: object, number: Any) -> tuple[Any, Any]:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], HALF), INT16)

    return types.uint16(number), generate


# The bits of a float32 number rounded to float16, half to even.
to_half = cast(Callable[[np.float32], np.uint16], intrinsic(_to_half))
