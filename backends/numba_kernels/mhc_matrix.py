"""This file holds the two ways to a mixing matrix, with all n x n numbers of one in a vector.

Sums along rows or columns are sums with the vector itself, its numbers moved: no loop, and no number leaves a register.
"""

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nanochat.backends.numba_kernels.vectors import (
    FLOAT,
    INT32,
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

__all__ = ["blend_2", "blend_4", "sinkhorn_2", "sinkhorn_4"]

# llvmlite has no types.
Value = Any
_Generate = Callable[[ir.IRBuilder, Value, Value, Value, Value], None]


def _blend(n: int) -> _Generate:
    """``sum_k shares_k * matrices_k / sum_k shares_k`` of shares (n!,) and matrices (n!, n * n), into result (n, n)."""

    def generate(
        builder: ir.IRBuilder, shares: Value, matrices: Value, _: Value, result: Value
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
        builder: ir.IRBuilder, numbers: Value, _: Value, iterations: Value, result: Value
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


def _divided(builder: ir.IRBuilder, matrix: Value, steps: list[int]) -> Value:
    """The matrix divided by the sums of its numbers whose places differ in these bits."""
    total = matrix
    for step in steps:
        places = ir.Constant(
            vector(INT32, matrix.type.count), [i ^ step for i in range(matrix.type.count)]
        )
        total = builder.fadd(total, builder.shuffle_vector(total, total, places))
    return builder.fdiv(matrix, total)


def _tree(builder: ir.IRBuilder, terms: list[Value]) -> Value:
    while len(terms) > 1:
        terms = [builder.fadd(a, b) for a, b in zip(terms[::2], terms[1::2], strict=True)]
    return terms[0]


# Numba's code generation has no types.
def _compiled(generate: _Generate) -> Callable[..., None]:
    def typed(_typing, shares, matrices, _iterations, result):  # type: ignore[no-untyped-def]
        def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            def data(place: int) -> Value:
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
