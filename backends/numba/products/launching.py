"""This file holds how products are launched, and what happens to activations between them: memory, kernel and cost.

A product is given back as a call, so that those of one input are run together. Norms and activations are not launched
before somebody needs them, as floats or rounded; see `Pending`.

Legend: N tokens, C columns, R rows.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba.pending import Pending, Rounded, Values
from nanochat.backends.numba.products import activation, linear, turning
from nanochat.backends.numba.products.packing import Leaf, NarrowMatrix, TiledLinear, dense
from nanochat.backends.numba.products.trit_codes import codes_of
from nanochat.backends.numba.products.trits import embed_trits
from nanochat.backends.numba.runtime.costs import ELEMENT, FLOAT, INTEGER
from nanochat.backends.numba.runtime.launch import Launcher
from nanochat.backends.numba.runtime.threads import Call
from nanochat.backends.numba.tuning.tuner import Tuner
from nanochat.errors import InputError

__all__ = ["dense_product", "elementwise", "embed", "integer_product", "relu2", "rms_norm"]
__all__ += ["rounded", "scale", "swiglu"]


def embed(launch: Launcher, ids: NDArray[np.int64], table: Leaf) -> Values:
    """Rows of a table, one for each of the ids.

    Raises
    ------
    InputError
        If the table lacks one.
    """
    rows, columns = table.shape
    # A kernel checks no bound.
    if ids.size and not 0 <= ids.min() <= ids.max() < rows:
        raise InputError(
            f"token ids from {ids.min()} to {ids.max()} do not fit a table of {rows} rows: use the tokenizer of this "
            "model"
        )
    y = launch.empty((*ids.shape, columns))
    result, flat = y.reshape(-1, columns), ids.reshape(-1)
    run = functools.partial(launch, tasks=ids.size, nanoseconds=y.size * ELEMENT)
    if isinstance(table, NarrowMatrix):
        run(linear.gather_narrow(brain=table.brain), table.bits, flat, result)
    elif isinstance(table, TiledLinear) and table.layout != "two_bits":
        run(embed_trits, table.codes, table.scales, flat, codes_of(table.layout), result)
    elif isinstance(table, TiledLinear):
        run(
            linear.embed(wide=table.is_wide),
            table.codes,
            table.scales,
            flat,
            table.activation_block,
            result,
        )
    else:
        run(linear.gather, dense(table), flat, result)
    return y


def rms_norm(launch: Launcher, x: Values, gains: Values, eps: float) -> Pending:
    """The norm of each row of x (..., C), computed or rounded when it is needed."""
    rows = x.reshape(-1, x.shape[-1])
    run = functools.partial(launch, tasks=len(rows), nanoseconds=x.size * ELEMENT)

    def compute() -> Values:
        y = launch.like(x)
        run(activation.rms_norm, rows, gains, eps, y.reshape(rows.shape))
        return y

    def fusion(y: Values, block: int, rounded: Rounded) -> None:
        out = rounded.codes, rounded.sums, rounded.scales
        run(activation.norm_round, rows, gains, eps, y, block, *out)

    turned = functools.partial(turning.norm_turn, launch, rows, gains, eps)
    return Pending(shape=x.shape, compute=compute, fusion=fusion, turn=turned)


def rounded(launch: Launcher, x: Pending, block: int) -> Rounded:
    """X rounded in blocks of so many columns, once for all linears."""
    if block in x.roundings:
        return x.roundings[block]
    columns = x.shape[-1]
    tokens, blocks = math.prod(x.shape[:-1]), columns // block
    result = x.roundings[block] = Rounded(
        codes=launch.empty((tokens, blocks, activation.padded_width(block)), np.int8),
        sums=launch.empty((tokens, blocks), np.int32),
        scales=launch.empty((tokens, blocks)),
    )
    if x.values is None and x.fusion is not None:
        y = launch.empty((tokens, columns))
        x.fusion(y, block, result)
        x.values = y.reshape(x.shape)
        return result
    rows = x.array().reshape(tokens, columns)
    out = result.codes, result.sums, result.scales
    nanoseconds = tokens * columns * ELEMENT
    launch(activation.quantize, rows, block, *out, tasks=tokens, nanoseconds=nanoseconds)
    return result


def integer_product(
    launch: Launcher, tuner: Tuner, x: Rounded, leaf: TiledLinear
) -> tuple[Call, Values]:
    """The call that multiplies x with a matrix of codes, and its result (N, R)."""
    tokens = len(x.codes)
    assert x.scales.shape[1] * leaf.activation_block == leaf.columns
    y = launch.empty((tokens, leaf.rows))
    choice = tuner.choice(leaf, tokens)
    nanoseconds = tokens * leaf.rows * leaf.columns * INTEGER
    call = Call(
        linear.integer_product(choice.isa, leaf.layout, wide=leaf.is_wide),
        (leaf.codes, leaf.scales, x.codes, x.sums, x.scales, y, choice.variant),
        tasks=linear.num_tasks(leaf.codes, tokens),
        nanoseconds=0.0 if choice.alone else nanoseconds,
    )
    return call, y


def dense_product(launch: Launcher, x: Values, weight: Leaf) -> tuple[Call, Values]:
    """The call that multiplies x (..., C) with a dense weight (R, C) in float32, and its result (N, R)."""
    rows = x.reshape(-1, x.shape[-1])
    count, columns = weight.shape
    assert rows.shape[1] == columns
    y = launch.empty((len(rows), count))
    nanoseconds = rows.size * count * FLOAT
    if isinstance(weight, NarrowMatrix):
        kernel, numbers = linear.narrow_product(brain=weight.brain), weight.bits
        return Call(kernel, (numbers, rows, y), count, nanoseconds), y
    return Call(linear.dense_product, (dense(weight), rows, y), count, nanoseconds), y


def elementwise(launch: Launcher, kernel: Callable[..., None], *inputs: Values) -> Values:
    """What ``kernel(*inputs, y)`` writes, on flat arrays of one size."""
    y = launch.like(inputs[0])
    assert all(array.size == y.size for array in inputs)
    flat = [array.reshape(-1) for array in (*inputs, y)]
    launch(kernel, *flat, tasks=y.size, nanoseconds=y.size * ELEMENT)
    return y


def scale(launch: Launcher, x: Values, factor: float) -> Values:
    """X times a number."""
    y = launch.like(x)
    told = x.reshape(-1), factor, y.reshape(-1)
    launch(activation.scale, *told, tasks=y.size, nanoseconds=y.size * ELEMENT)
    return y


def swiglu(launch: Launcher, gate: Values, up: Values) -> Pending:
    """``gate * sigmoid(gate) * up``, computed or rounded when it is needed."""
    made = _activated(launch, activation.swiglu, activation.swiglu_round, gate, up)
    made.turn = functools.partial(turning.swiglu_turn, launch, gate, up)
    return made


def relu2(launch: Launcher, x: Values, up: Values | None) -> Pending:
    """``max(x, 0)**2``, times `up` if there is one, computed or rounded when it is needed."""
    if up is None:
        return _activated(launch, activation.relu2, activation.relu2_round, x)
    return _activated(launch, activation.relu2_glu, activation.relu2_glu_round, x, up)


def _activated(
    launch: Launcher,
    kernel: Callable[..., None],
    fused_kernel: Callable[..., None],
    *inputs: Values,
) -> Pending:
    shape, size = inputs[0].shape, inputs[0].size

    def fusion(y: Values, block: int, rounded: Rounded) -> None:
        # A block is rounded for itself: it may be a row, and a task.
        rows, out = turning.units([*inputs, y], rounded, block)
        tasks, nanoseconds = size // block, 2 * size * ELEMENT
        launch(fused_kernel, *rows, block, *out, tasks=tasks, nanoseconds=nanoseconds)

    compute = functools.partial(elementwise, launch, kernel, *inputs)
    return Pending(shape=shape, compute=compute, fusion=fusion)
