"""This file holds the kernels of residual streams: opened, read, mixed, written, closed. A task is one token.

Coefficients have one row for all tokens (a static site) or one for each token. Two and four streams are mixed in one
pass, in which every number is loaded and stored once; results may take the place of the streams.

Legend: N tokens, n streams, C width.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from nanochat.backends.numba_kernels.compile import fused_kernel, kernel
from nanochat.backends.numba_kernels.isa import cpu_features
from nanochat.backends.numba_kernels.vectors import (
    FLOAT,
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

__all__ = ["add", "blend", "blend_row", "close", "mix", "open_streams"]

_Array = NDArray[np.float32]
# llvmlite has no types.
Value = Any
_Mix = Callable[[_Array, _Array, _Array, _Array, _Array], None]

_VECTOR = 16 if "avx512f" in cpu_features() else 8


@kernel
def open_streams(x: _Array, streams: _Array, first: int, last: int) -> None:
    """Copy x (N, C) to all streams (N, n, C)."""
    for task in range(first, last):
        x_t = x[task]
        for i in range(streams.shape[1]):
            streams_i = streams[task, i]
            for c in range(x_t.shape[0]):
                streams_i[c] = x_t[c]


@kernel
def close(streams: _Array, y: _Array, first: int, last: int) -> None:
    """The mean of the streams (N, n, C), into y (N, C)."""
    n = streams.shape[1]
    share = np.float32(1) / np.float32(n)
    for task in range(first, last):
        y_t, first_t = y[task], streams[task, 0]
        for c in range(y_t.shape[0]):
            y_t[c] = first_t[c]
        for i in range(1, n):
            streams_i = streams[task, i]
            for c in range(y_t.shape[0]):
                y_t[c] += streams_i[c]
        for c in range(y_t.shape[0]):
            y_t[c] *= share


@kernel
def blend(streams: _Array, read: _Array, y: _Array, first: int, last: int) -> None:
    """``y = sum_i read_i streams_i`` for streams (N, n, C) and y (N, C)."""
    for task in range(first, last):
        blend_row(streams[task], read[min(task, read.shape[0] - 1)], y[task])


@fused_kernel
def blend_row(streams: _Array, read: _Array, y: _Array) -> None:
    """`blend` of one token."""
    if streams.shape[0] == 4:
        a, b, c, d = streams[0], streams[1], streams[2], streams[3]
        to_a, to_b, to_c, to_d = read[0], read[1], read[2], read[3]
        for i in range(y.shape[0]):
            total = to_a * a[i]
            total = total + to_b * b[i]
            total = total + to_c * c[i]
            y[i] = total + to_d * d[i]
        return
    y[:] = 0
    for j in range(streams.shape[0]):
        stream, share = streams[j], read[j]
        for i in range(y.shape[0]):
            y[i] += share * stream[i]


@fused_kernel
def add(streams: _Array, y: _Array, write: _Array, written: _Array, first: int, last: int) -> None:
    """``written_i = streams_i + write_i y`` for streams and written (N, n, C)."""
    for task in range(first, last):
        write_t, y_t = write[min(task, write.shape[0] - 1)], y[task]
        for i in range(streams.shape[1]):
            streams_i, written_i, share = streams[task, i], written[task, i], write_t[i]
            for c in range(y_t.shape[0]):
                written_i[c] = streams_i[c] + share * y_t[c]


@kernel
def mix(
    streams: _Array, y: _Array, write: _Array, mixing: _Array, mixed: _Array, first: int, last: int
) -> None:
    """``mixed_i = sum_j mixing_ij streams_j + write_i y`` for streams and mixed (N, n, C), n 2 or 4."""
    n = streams.shape[1]
    for task in range(first, last):
        write_t = write[min(task, write.shape[0] - 1)]
        mixing_t = mixing[min(task, mixing.shape[0] - 1)]
        if n == 4:
            _mix_4(streams[task], y[task], write_t, mixing_t, mixed[task])
        else:
            _mix_2(streams[task], y[task], write_t, mixing_t, mixed[task])


# Numba's code generation has no types.
def _mix(n: int) -> _Mix:
    """Code that mixes one token's n streams."""

    def typed(_typing, streams, y, write, mixing, mixed):  # type: ignore[no-untyped-def]
        kinds = streams, y, write, mixing, mixed

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            arrays = [
                context.make_array(kind)(context, builder, argument)
                for kind, argument in zip(signature.args, arguments, strict=True)
            ]
            width = builder.extract_value(arrays[1].shape, 0)
            _generate(builder, n, width, *(pointer(builder, array.data) for array in arrays))
            return context.get_dummy_value()

        return types.void(*kinds), generate

    return cast(_Mix, intrinsic(typed))


def _generate(
    builder: ir.IRBuilder,
    n: int,
    width: Value,
    streams: Value,
    y: Value,
    write: Value,
    mixing: Value,
    mixed: Value,
) -> None:
    def number(array: Value, place: int) -> Value:
        return load(builder, moved(builder, array, integer(4 * place)), FLOAT)

    shares = [number(write, i) for i in range(n)]
    weights = [[number(mixing, i * n + j) for j in range(n)] for i in range(n)]
    size = builder.mul(width, integer(4))

    def columns(offset: Value, count: int) -> None:
        kind = vector(FLOAT, count)

        def at(array: Value, row: int) -> Value:
            place = builder.add(builder.mul(size, integer(row)), offset)
            return moved(builder, array, place)

        x = [load(builder, at(streams, j), kind) for j in range(n)]
        y_c = load(builder, at(y, 0), kind)
        for i in range(n):
            total = builder.fmul(splat(builder, shares[i], count), y_c)
            for j in range(n):
                operands = [splat(builder, weights[i][j], count), x[j], total]
                total = call(builder, f"llvm.fmuladd.v{count}f32", kind, operands)
            store(builder, total, at(mixed, i))

    whole = builder.mul(builder.udiv(size, integer(4 * _VECTOR)), integer(4 * _VECTOR))
    _loop(builder, integer(0), whole, 4 * _VECTOR, lambda offset: columns(offset, _VECTOR))
    _loop(builder, whole, size, 4, lambda offset: columns(offset, 1))


def _loop(
    builder: ir.IRBuilder,
    first: Value,
    last: Value,
    step: int,
    body: Callable[[Value], None],
) -> None:
    """``for i in range(first, last, step): body(i)``."""
    before, block = builder.block, builder.append_basic_block("columns")
    after = builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("<", first, last), block, after)
    builder.position_at_end(block)
    i = builder.phi(INT64)
    body(i)
    following = builder.add(i, integer(step))
    i.add_incoming(first, before)
    i.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, last), block, after)
    builder.position_at_end(after)


_mix_2, _mix_4 = _mix(2), _mix(4)
