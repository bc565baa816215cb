"""This file holds how rotations are launched, alone or with what is done before and after them.

Legend: see `rotation`.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba.pending import Pending, Rounded, Values
from nanochat.backends.numba.products import rotation
from nanochat.backends.numba.runtime.costs import ELEMENT
from nanochat.backends.numba.runtime.launch import Launcher

__all__ = ["norm_turn", "swiglu_turn", "turn", "turn_back"]

# Of a number that is rotated, beside what is done to each once.
_TURNED = 2 * ELEMENT


def turn(launch: Launcher, x: Pending, signs: Values, turned: int) -> Pending:
    """X (..., C), rotated in blocks of so many columns; computed, or rounded, when it is needed."""
    size = math.prod(x.shape)
    told = signs, turned, _root(turned)

    def compute() -> Values:
        y = launch.like(x.array())
        values, result = (array.reshape(-1, turned) for array in (x.array(), y))
        launch(rotation.turn, values, *told, result, tasks=len(values), nanoseconds=size * _TURNED)
        return y

    def fusion(y: Values, block: int, rounded: Rounded) -> None:
        # Where x is there already, it need not be computed again.
        if x.values is None and x.turn is not None:
            x.turn(y, block, rounded, signs, turned)
            return
        (values, result), out = units([x.array(), y], rounded, max(turned, block))
        arguments = values, *told, result, block, *out
        launch(rotation.turn_round, *arguments, tasks=len(values), nanoseconds=size * _TURNED)

    return Pending(shape=x.shape, compute=compute, fusion=fusion)


def turn_back(launch: Launcher, x: Values, signs: Values, turned: int) -> Values:
    """Undo `turn`."""
    y = launch.like(x)
    values, result = (array.reshape(-1, turned) for array in (x, y))
    told = signs, turned, _root(turned)
    arguments = values, *told, result
    launch(rotation.turn_back, *arguments, tasks=len(values), nanoseconds=x.size * _TURNED)
    return y


def norm_turn(
    launch: Launcher,
    rows: Values,
    gains: Values,
    eps: float,
    y: Values,
    block: int,
    rounded: Rounded,
    signs: Values,
    turned: int,
) -> None:
    """The norm of rows (N, C), rotated and rounded."""
    out = rounded.codes, rounded.sums, rounded.scales
    arguments = rows, gains, eps, signs, turned, _root(turned), y, block, *out
    nanoseconds = rows.size * (ELEMENT + _TURNED)
    launch(rotation.norm_turn_round, *arguments, tasks=len(rows), nanoseconds=nanoseconds)


def swiglu_turn(
    launch: Launcher,
    gate: Values,
    up: Values,
    y: Values,
    block: int,
    rounded: Rounded,
    signs: Values,
    turned: int,
) -> None:
    """``gate * sigmoid(gate) * up``, rotated and rounded."""
    (*inputs, result), out = units([gate, up, y], rounded, max(turned, block))
    arguments = *inputs, signs, turned, _root(turned), result, block, *out
    nanoseconds = y.size * (2 * ELEMENT + _TURNED)
    launch(rotation.swiglu_turn_round, *arguments, tasks=len(result), nanoseconds=nanoseconds)


def units(
    arrays: Sequence[Values], rounded: Rounded, unit: int
) -> tuple[list[Values], tuple[NDArray[np.int8], NDArray[np.int32], Values]]:
    """Arrays, and what they are rounded to, in rows of so many columns: more tasks than rows of tokens."""
    rows = [array.reshape(-1, unit) for array in arrays]
    count = len(rows[0])
    codes = rounded.codes.reshape(count, -1, rounded.codes.shape[2])
    return rows, (codes, rounded.sums.reshape(count, -1), rounded.scales.reshape(count, -1))


def _root(block: int) -> float:
    return float(np.float32(block**-0.5))
