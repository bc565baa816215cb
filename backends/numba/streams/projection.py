"""This file holds the product of the streams with the projection of a dynamic mHC site, and their mean square.

A projection has few rows, 32 at most, and many columns, so the rows lie in lanes: (n C, L), as float16 where the
processor can widen it. A chunk is 128 columns of every stream. Its sums are written down and added up by
`mhc.coefficients`, in one order for any number of threads and of tokens; the norm is divided out there, too.

Legend: N tokens, n streams, C width, J chunks of a width, L rows of the projection, padded to 8, 24 or 32.
"""

import functools
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from nanochat.backends.numba.runtime.compilation import kernel, sum_kernel
from nanochat.backends.numba.runtime.isa import cpu_features
from nanochat.backends.numba.runtime.vectors import (
    FLOAT,
    HALF,
    INT16,
    INT64,
    call,
    integer,
    load,
    moved,
    pointer,
    splat,
    store,
    vector,
)

__all__ = ["CHUNK", "TOKENS", "num_chunks", "projector"]

_Array = NDArray[np.float32]

# Columns of every stream; 32 rows of 4 streams are 32 KB of float16.
CHUNK = 128
# Tokens for which a number of the projection is widened once. AVX-512 has registers for the sums of 8 in 32 lanes; with
# 16 registers of 8 lanes the sums of 2 leave room for the rest.
_WIDE = "avx512f" in cpu_features()
TOKENS = 8 if _WIDE else 2


def num_chunks(width: int) -> int:
    """Chunks of `CHUNK` columns into which the projection of streams of that width is cut."""
    return -(-width // CHUNK)


@functools.cache
def projector(dtype: str, lanes: int, streams: int) -> Callable[..., None]:
    """The kernel for numbers of a type, in so many lanes, of so many streams.

    ``kernel(streams (N, n, C), projection (n C, L), sums (N, J, L), squares (N, J), first, last)``; a task is one chunk
    of `TOKENS` tokens, those of a chunk one after the other.
    """
    # Every type has a kernel of its own, since whoever runs kernels expects one signature of each.
    del dtype

    # Numba's cache tells the kernels apart by the values of `lanes` and `streams`.
    @kernel
    def project(
        x: _Array,
        projection: NDArray[np.uint16],
        sums: _Array,
        squares: _Array,
        first: int,
        last: int,
    ) -> None:
        tokens, _, width = x.shape
        groups = -(-tokens // TOKENS)
        found = np.empty((max(streams, TOKENS), lanes), np.float32)
        for task in range(first, last):
            j, start = task // groups, task % groups * TOKENS
            column = j * CHUNK
            count = min(CHUNK, width - column)
            end = min(start + TOKENS, tokens)
            for token in range(start, end):
                total = np.float32(0)
                for i in range(streams):
                    total += _square(x[token, i, column : column + count])
                squares[token, j] = total
            if end - start == TOKENS:
                stride = streams * width
                for i in range(streams):
                    place, row = start * stride + i * width + column, i * width + column
                    _product(lanes, 1, TOKENS, x, place, stride, 0, projection, row, count, found)
                    for t in range(TOKENS):
                        _add(sums[start + t, j], found[t], i == 0)
            else:
                for token in range(start, end):
                    place = token * streams * width + column
                    _product(
                        lanes, streams, 1, x, place, 0, width, projection, column, count, found
                    )
                    for i in range(streams):
                        _add(sums[token, j], found[i], i == 0)

    return project


@kernel
def _add(sums: _Array, numbers: _Array, first: bool) -> None:
    for lane in range(sums.shape[0]):
        sums[lane] = numbers[lane] if first else sums[lane] + numbers[lane]


@sum_kernel
def _square(x: _Array) -> np.float32:
    total = np.float32(0)
    for i in range(x.shape[0]):
        total += x[i] * x[i]
    return total


def _registers(lanes: int) -> Sequence[tuple[int, int]]:
    """First lane and length of every vector that holds `lanes` lanes."""
    longest = 16 if _WIDE else 8
    found: list[tuple[int, int]] = []
    while sum(length for _, length in found) < lanes:
        low = sum(length for _, length in found)
        found.append((low, longest if lanes - low >= longest else 8))
    return found


# Numba's code generation has no types.
def _typed(  # type: ignore[no-untyped-def]
    _typing,
    lanes,
    streams,
    tokens,
    x,
    x_start,
    token_stride,
    stream_stride,
    matrix,
    row,
    count,
    sums,
):
    """Add up ``number of the projection * number of the streams`` over `count` columns.

    Of `streams` streams side by side, which share no sum, for `tokens` tokens. Operands: x, the place of its first
    number, the strides of its tokens and streams; the projection, the place of its first row; the number of columns;
    the sums, (streams, tokens, lanes).
    """
    sizes = lanes, streams, tokens
    if not all(isinstance(size, types.IntegerLiteral) for size in sizes):
        return None
    kinds = x, x_start, token_stride, stream_stride, matrix, row, count, sums

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        def data(place: int) -> ir.Value:
            array = context.make_array(signature.args[place])(context, builder, arguments[place])
            return pointer(builder, array.data)

        values = [size.literal_value for size in sizes]
        places = [*arguments[4:7], *arguments[8:10]]
        half = matrix.dtype == types.uint16
        _generate(builder, values, half, data(3), data(7), data(10), places)
        return context.get_dummy_value()

    return types.void(*sizes, *kinds), generate


_product = cast(Callable[..., None], intrinsic(prefer_literal=True)(_typed))


def _generate(
    builder: ir.IRBuilder,
    sizes: list[int],
    half: bool,
    x: ir.Value,
    matrix: ir.Value,
    sums: ir.Value,
    places: list[ir.Value],
) -> None:
    lanes, streams, tokens = sizes
    x_start, token_stride, stream_stride, row, count = places
    registers = _registers(lanes)
    size = 2 if half else 4

    def times(value: ir.Value, factor: int) -> ir.Value:
        return builder.mul(value, integer(factor))

    x_of = {}
    rows_of = []
    for s in range(streams):
        column = times(stream_stride, s)
        rows_of.append(moved(builder, matrix, times(builder.add(row, column), lanes * size)))
        for t in range(tokens):
            place = builder.add(builder.add(x_start, column), times(token_stride, t))
            x_of[s, t] = moved(builder, x, times(place, 4))
    before, body = builder.block, builder.append_basic_block("columns")
    after = builder.append_basic_block("summed")
    builder.branch(body)
    builder.position_at_end(body)
    i = builder.phi(INT64)
    i.add_incoming(integer(0), before)
    kinds = [vector(FLOAT, length) for _, length in registers]
    keys = [(s, t, r) for s in range(streams) for t in range(tokens) for r in range(len(kinds))]
    totals = {key: builder.phi(kinds[key[2]]) for key in keys}
    finished = {}
    for s in range(streams):
        at_row = moved(builder, rows_of[s], times(i, lanes * size))
        numbers = [
            _wide(builder, moved(builder, at_row, integer(low * size)), length, half)
            for low, length in registers
        ]
        for t in range(tokens):
            number = load(builder, moved(builder, x_of[s, t], times(i, 4)), FLOAT)
            for r, (_, length) in enumerate(registers):
                operands = [splat(builder, number, length), numbers[r], totals[s, t, r]]
                name = f"llvm.fmuladd.v{length}f32"
                finished[s, t, r] = call(builder, name, kinds[r], operands)
    following = builder.add(i, integer(1))
    i.add_incoming(following, body)
    for key in keys:
        totals[key].add_incoming(ir.Constant(kinds[key[2]], None), before)
        totals[key].add_incoming(finished[key], body)
    builder.cbranch(builder.icmp_signed("<", following, count), body, after)
    builder.position_at_end(after)
    for (s, t, r), total in finished.items():
        place = ((s * tokens + t) * lanes + registers[r][0]) * 4
        store(builder, total, moved(builder, sums, integer(place)))


def _wide(builder: ir.IRBuilder, address: ir.Value, length: int, half: bool) -> ir.Value:
    if not half:
        return load(builder, address, vector(FLOAT, length))
    bits = load(builder, address, vector(INT16, length))
    return builder.fpext(builder.bitcast(bits, vector(HALF, length)), vector(FLOAT, length))
