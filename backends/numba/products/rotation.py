"""This file holds rotations: signed Walsh-Hadamard transforms of activations, alone or between a norm and its rounding.

Butterflies of neighbours go lane by lane within registers, those of 16 numbers and more between registers, two rounds
at a time. All add in the order that `nanochat.ops.Ops.rotate` says.

Legend: N tokens, C columns, U columns of a unit: the larger of the blocks that are rotated and rounded. Others as in
`activation`.
"""

from collections.abc import Callable
from typing import cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from nanochat.backends.numba.products import activation
from nanochat.backends.numba.runtime.compilation import kernel
from nanochat.backends.numba.runtime.vectors import (
    FLOAT,
    INT32,
    filled,
    integer,
    load,
    moved,
    pointer,
    store,
    vector,
)

__all__ = ["norm_turn_round", "swiglu_turn_round", "turn", "turn_back", "turn_round"]

_Array = NDArray[np.float32]
_Codes = NDArray[np.int8]
_Sums = NDArray[np.int32]

_NUMBERS = 16


# Numba's code generation has no types.
def _typed(_context, x, start):  # type: ignore[no-untyped-def]
    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        array = context.make_array(x)(context, builder, arguments[0])
        offset = builder.mul(arguments[1], integer(4))
        place = moved(builder, pointer(builder, array.data), offset)
        kind = vector(FLOAT, _NUMBERS)
        numbers = load(builder, place, kind)
        for h in (1, 2, 4, 8):
            order = ir.Constant(vector(INT32, _NUMBERS), [i ^ h for i in range(_NUMBERS)])
            others = builder.shuffle_vector(numbers, filled(kind, 0.0), order)
            # The lower of a pair gets the sum, the upper what is left of the lower one.
            signs = ir.Constant(kind, [-1.0 if i & h else 1.0 for i in range(_NUMBERS)])
            numbers = builder.fadd(others, builder.fmul(numbers, signs))
        store(builder, numbers, place)
        return context.get_dummy_value()

    return types.void(x, start), generate


# _turn_sixteen(x, start) does the first four rounds for 16 numbers.
_turn_sixteen = cast(Callable[[_Array, int], None], intrinsic(_typed))


@kernel
def _butterflies(x: _Array) -> None:
    """Transform x, as many numbers as a block has."""
    size = x.shape[0]
    h = 1
    if size >= _NUMBERS:
        for start in range(0, size, _NUMBERS):
            _turn_sixteen(x, start)
        h = _NUMBERS
    while h < size:
        if 4 * h <= size:
            for start in range(0, size, 4 * h):
                x_0, x_1 = x[start : start + h], x[start + h : start + 2 * h]
                x_2, x_3 = x[start + 2 * h : start + 3 * h], x[start + 3 * h : start + 4 * h]
                for i in range(h):
                    low, high = x_0[i] + x_1[i], x_2[i] + x_3[i]
                    low_rest, high_rest = x_0[i] - x_1[i], x_2[i] - x_3[i]
                    x_0[i], x_2[i] = low + high, low - high
                    x_1[i], x_3[i] = low_rest + high_rest, low_rest - high_rest
            h *= 4
        else:
            for start in range(0, size, 2 * h):
                x_0, x_1 = x[start : start + h], x[start + h : start + 2 * h]
                for i in range(h):
                    x_0[i], x_1[i] = x_0[i] + x_1[i], x_0[i] - x_1[i]
            h *= 2


@kernel
def _turn_row(x: _Array, signs: _Array, block: int, factor: float, y: _Array) -> None:
    """Rotate a row, or a part of one that has whole blocks."""
    for c in range(y.shape[0]):
        y[c] = x[c] * signs[c]
    root = np.float32(factor)
    for start in range(0, y.shape[0], block):
        y_b = y[start : start + block]
        _butterflies(y_b)
        for c in range(block):
            y_b[c] *= root


@kernel
def turn(
    x: _Array, signs: _Array, block: int, factor: float, y: _Array, first: int, last: int
) -> None:
    """Rotate blocks of x, (N C / block, block), by signs (C,); one task a block."""
    of_row = signs.shape[0] // block
    for task in range(first, last):
        start = task % of_row * block
        _turn_row(x[task], signs[start : start + block], block, factor, y[task])


@kernel
def turn_back(
    x: _Array, signs: _Array, block: int, factor: float, y: _Array, first: int, last: int
) -> None:
    """Undo `turn`."""
    of_row = signs.shape[0] // block
    root = np.float32(factor)
    for task in range(first, last):
        x_b, y_b = x[task], y[task]
        signs_b = signs[task % of_row * block : (task % of_row + 1) * block]
        y_b[:] = x_b
        _butterflies(y_b)
        for c in range(block):
            y_b[c] = y_b[c] * root * signs_b[c]


@kernel
def turn_round(
    x: _Array,
    signs: _Array,
    turned: int,
    factor: float,
    y: _Array,
    block: int,
    codes: _Codes,
    sums: _Sums,
    scales: _Array,
    first: int,
    last: int,
) -> None:
    """Round what `turn` makes, in blocks of `turned` columns, of units x (N C / U, U); y takes it; one task a unit."""
    unit = x.shape[1]
    of_row = signs.shape[0] // unit
    for task in range(first, last):
        start = task % of_row * unit
        _turn_row(x[task], signs[start : start + unit], turned, factor, y[task])
        activation.quantize(y, block, codes, sums, scales, task, task + 1)


@kernel
def swiglu_turn_round(
    x: _Array,
    up: _Array,
    signs: _Array,
    turned: int,
    factor: float,
    y: _Array,
    block: int,
    codes: _Codes,
    sums: _Sums,
    scales: _Array,
    first: int,
    last: int,
) -> None:
    """`turn_round` of `swiglu` of units x and up."""
    unit = x.shape[1]
    of_row = signs.shape[0] // unit
    # Not y itself: a loop whose result takes the place of its input is not vectorised.
    made = np.empty(unit, np.float32)
    for task in range(first, last):
        activation.swiglu(x[task], up[task], made, 0, unit)
        start = task % of_row * unit
        _turn_row(made, signs[start : start + unit], turned, factor, y[task])
        activation.quantize(y, block, codes, sums, scales, task, task + 1)


@kernel
def norm_turn_round(
    x: _Array,
    gain: _Array,
    eps: float,
    signs: _Array,
    turned: int,
    factor: float,
    y: _Array,
    block: int,
    codes: _Codes,
    sums: _Sums,
    scales: _Array,
    first: int,
    last: int,
) -> None:
    """Round what `turn` makes of `rms_norm` of x (N, C), which y (N, C) takes; one task a row."""
    made = np.empty((1, x.shape[1]), np.float32)
    for task in range(first, last):
        activation.rms_norm(x[task : task + 1], gain, eps, made, 0, 1)
        _turn_row(made[0], signs, turned, factor, y[task])
        activation.quantize(y, block, codes, sums, scales, task, task + 1)
