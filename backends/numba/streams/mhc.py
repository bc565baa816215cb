"""This file holds the kernels of residual streams (mHC): how they are opened, read, mixed, written and closed.

A task is one token. Coefficients have one row for all tokens (a static site) or one for each token. A site has 32
logits at most: `LANES` holds them all, and the n x n matrix of a site is one vector, in which sums along rows or
columns are sums with the vector itself, its numbers moved: no loop, and no number leaves a register. Two and four
streams are mixed in one pass, in which every number is loaded and stored once; results may take the place of the
streams.

Legend: N tokens, n streams, C width, J chunks of the projection's sums, L rows of the projection with padding, M mixing
logits.
"""

from collections.abc import Callable
from typing import cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from nanochat.backends.numba.runtime.compilation import fused_kernel, kernel, sum_kernel
from nanochat.backends.numba.runtime.isa import cpu_features
from nanochat.backends.numba.runtime.vectors import (
    FLOAT,
    INT32,
    INT64,
    LANES,
    call,
    exp,
    float32_lanes,
    integer,
    load,
    moved,
    pointer,
    splat,
    store,
    vector,
)

__all__ = ["add", "blend", "blend_2", "blend_4", "blend_row", "close", "coefficients", "mix"]
__all__ += ["open_streams", "sinkhorn_2", "sinkhorn_4", "static_coefficients"]

_Array = NDArray[np.float32]
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
    width: ir.Value,
    streams: ir.Value,
    y: ir.Value,
    write: ir.Value,
    mixing: ir.Value,
    mixed: ir.Value,
) -> None:
    def number(array: ir.Value, place: int) -> ir.Value:
        return load(builder, moved(builder, array, integer(4 * place)), FLOAT)

    shares = [number(write, i) for i in range(n)]
    weights = [[number(mixing, i * n + j) for j in range(n)] for i in range(n)]
    size = builder.mul(width, integer(4))

    def columns(offset: ir.Value, count: int) -> None:
        kind = vector(FLOAT, count)

        def at(array: ir.Value, row: int) -> ir.Value:
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
    first: ir.Value,
    last: ir.Value,
    step: int,
    body: Callable[[ir.Value], None],
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


@kernel
def coefficients(
    sums: _Array,
    squares: _Array,
    bias: _Array,
    gates: _Array,
    features: int,
    eps: float,
    matrices: _Array,
    iterations: int,
    read: _Array,
    write: _Array,
    mixing: _Array,
    first: int,
    last: int,
) -> None:
    """Compute the coefficients of `Ops.mhc_read` for a dynamic site; a task is one token.

    Parameters
    ----------
    sums, squares : float32 arrays, shapes (N, J, L) and (N, J)
        From `mhc_projection`, over `features` numbers of a token.
    bias, gates : float32 arrays, shape (2 n + M,)
    matrices : float32 array, shape (n!, n * n)
        The permutations, for the lite mixer; if it is empty, the mixer is Sinkhorn with `iterations`.
    read, write : float32 arrays, shape (N, n)
        Results, as `mixing`, (N, n, n); that is (N, 0, 0) for the identity.
    """
    logits = float32_lanes()
    for token in range(first, last):
        square = _total(squares[token])
        root = np.sqrt(square / np.float32(features) + np.float32(eps))
        for r in range(LANES):
            logits[r] = 0
        for j in range(sums.shape[1]):
            sums_j = sums[token, j]
            for r in range(sums_j.shape[0]):
                logits[r] += sums_j[r]
        for r in range(bias.shape[0]):
            logits[r] = bias[r] + gates[r] * (logits[r] / root)
        _coefficients(
            logits, bias.shape[0], matrices, iterations, read[token], write[token], mixing[token]
        )


@kernel
def static_coefficients(
    bias: _Array, matrices: _Array, iterations: int, read: _Array, write: _Array, mixing: _Array
) -> None:
    """As `coefficients` for a static site, whose results are those of one token."""
    logits = float32_lanes()
    for r in range(bias.shape[0]):
        logits[r] = bias[r]
    _coefficients(logits, bias.shape[0], matrices, iterations, read[0], write[0], mixing[0])


@kernel
def _coefficients(
    logits: _Array,
    count: int,
    matrices: _Array,
    iterations: int,
    read: _Array,
    write: _Array,
    mixing: _Array,
) -> None:
    n = read.shape[0]
    # NaN is never larger, and stays NaN below.
    largest = logits[2 * n]
    for r in range(2 * n, count):
        largest = logits[r] if logits[r] > largest else largest
    for r in range(2 * n):
        logits[r] = -logits[r]
    for r in range(2 * n, count):
        logits[r] -= largest
    for r in range(count, LANES):
        logits[r] = 0
    for r in range(LANES):
        logits[r] = exp(logits[r])
    for i in range(n):
        # Sigmoids.
        read[i] = np.float32(1) / (np.float32(1) + logits[i])
        write[i] = np.float32(2) / (np.float32(1) + logits[n + i])
    if count > 2 * n:
        shares = logits[2 * n : count]
        if matrices.shape[0] == 0:
            if n == 2:
                sinkhorn_2(shares, matrices, iterations, mixing)
            else:
                sinkhorn_4(shares, matrices, iterations, mixing)
        elif n == 2:
            blend_2(shares, matrices, iterations, mixing)
        else:
            blend_4(shares, matrices, iterations, mixing)


@sum_kernel
def _total(x: _Array) -> np.float32:
    total = np.float32(0)
    for i in range(x.shape[0]):
        total += x[i]
    return total


_Generate = Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value, ir.Value], None]


def _blend(n: int) -> _Generate:
    """``sum_k shares_k * matrices_k / sum_k shares_k`` of shares (n!,) and matrices (n!, n * n), into result (n, n)."""

    def generate(
        builder: ir.IRBuilder, shares: ir.Value, matrices: ir.Value, _: ir.Value, result: ir.Value
    ) -> None:
        kind, size = vector(FLOAT, n * n), 4 * n * n
        name = f"llvm.fmuladd.v{n * n}f32"
        count = 2 if n == 2 else 24
        # Four sums at once: each addition waits for the one before.
        sums = [ir.Constant(kind, None)] * min(4, count)
        totals = list(sums)
        for k in range(count):
            share = splat(
                builder, load(builder, moved(builder, shares, integer(4 * k)), FLOAT), n * n
            )
            matrix = load(builder, moved(builder, matrices, integer(size * k)), kind)
            place = k % len(sums)
            sums[place] = call(builder, name, kind, [share, matrix, sums[place]])
            totals[place] = builder.fadd(totals[place], share)
        whole, total = (_tree(builder, terms) for terms in (sums, totals))
        store(builder, builder.fdiv(whole, total), result)

    return generate


def _sinkhorn(n: int) -> _Generate:
    """Divide columns, then rows, of the numbers (n * n,) by their sums, `iterations` times, into result (n, n)."""
    steps = [1 << bit for bit in range((n * n).bit_length() - 1)]
    along_rows, along_columns = steps[: len(steps) // 2], steps[len(steps) // 2 :]

    def generate(
        builder: ir.IRBuilder,
        numbers: ir.Value,
        _: ir.Value,
        iterations: ir.Value,
        result: ir.Value,
    ) -> None:
        kind = vector(FLOAT, n * n)
        start = load(builder, numbers, kind)
        before, body = builder.block, builder.append_basic_block("iteration")
        after = builder.append_basic_block("balanced")
        builder.branch(body)
        builder.position_at_end(body)
        i, matrix = builder.phi(INT64), builder.phi(kind)
        balanced = _divided(builder, _divided(builder, matrix, along_columns), along_rows)
        following = builder.add(i, integer(1))
        for value, first, next_ in ((i, integer(0), following), (matrix, start, balanced)):
            value.add_incoming(first, before)
            value.add_incoming(next_, body)
        builder.cbranch(builder.icmp_signed("<", following, iterations), body, after)
        builder.position_at_end(after)
        store(builder, balanced, result)

    return generate


def _divided(builder: ir.IRBuilder, matrix: ir.Value, steps: list[int]) -> ir.Value:
    """The matrix divided by the sums of its numbers whose places differ in these bits."""
    total = matrix
    for step in steps:
        places = ir.Constant(
            vector(INT32, matrix.type.count), [i ^ step for i in range(matrix.type.count)]
        )
        total = builder.fadd(total, builder.shuffle_vector(total, total, places))
    return builder.fdiv(matrix, total)


def _tree(builder: ir.IRBuilder, terms: list[ir.Value]) -> ir.Value:
    while len(terms) > 1:
        terms = [builder.fadd(a, b) for a, b in zip(terms[::2], terms[1::2], strict=True)]
    return terms[0]


# Numba's code generation has no types.
def _compiled(generate: _Generate) -> Callable[..., None]:
    def typed(_typing, shares, matrices, _iterations, result):  # type: ignore[no-untyped-def]
        def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            def data(place: int) -> ir.Value:
                kind = signature.args[place]
                return pointer(
                    builder, context.make_array(kind)(context, builder, arguments[place]).data
                )

            generate(builder, data(0), data(1), arguments[2], data(3))
            return context.get_dummy_value()

        return types.void(shares, matrices, types.int64, result), code

    return cast(Callable[..., None], intrinsic(typed))


blend_2, blend_4 = _compiled(_blend(2)), _compiled(_blend(4))
sinkhorn_2, sinkhorn_4 = _compiled(_sinkhorn(2)), _compiled(_sinkhorn(4))
