"""This file holds tables, norms and linears: see `nanochat.ops.Ops`."""

import functools
import math
from typing import cast

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba_kernels import activation, dense, fused, linear
from nanochat.backends.numba_kernels.quantize import padded_width, quantize
from nanochat.backends.numba_kernels.team import Call
from nanochat.backends.numba_kernels.tiles import Leaf, TiledLinear
from nanochat.backends.numba_ops.base import ELEMENT, FLOAT, INTEGER, KernelOps, dense_values
from nanochat.backends.numba_ops.pending import Array, Pending, Rounded, Values, now
from nanochat.errors import InputError

__all__ = ["LinearOps"]


class LinearOps(KernelOps):
    """Linears on activations that are rounded once for all of them."""

    def embed(self, tokens: Array, table: Leaf) -> Array:
        ids = cast(NDArray[np.int64], tokens)
        rows, columns = table.shape
        self.each_time(functools.partial(_check_ids, ids, rows))
        y = self.launch.empty((*ids.shape, columns))
        result, flat = y.reshape(-1, columns), ids.reshape(-1)
        launch = functools.partial(self.launch, tasks=ids.size, nanoseconds=y.size * ELEMENT)
        if isinstance(table, TiledLinear):
            launch(linear.embed, table.codes, table.scales, flat, table.activation_block, result)
        else:
            launch(dense.gather, dense_values(table), flat, result)
        return y

    def rms_norm(self, x: Array, gain: Leaf, *, eps: float) -> Array:
        # A kernel has one signature, and a configuration may say 1.
        gains, eps = dense_values(gain), float(eps)
        if isinstance(x, Pending) and x.norm is not None and x.values is None:
            return x.norm(x, gains, eps)
        values = now(x)
        rows = values.reshape(-1, values.shape[-1])
        launch = functools.partial(self.launch, tasks=len(rows), nanoseconds=values.size * ELEMENT)

        def compute() -> Values:
            y = self.like(values)
            launch(dense.rms_norm, rows, gains, eps, y.reshape(rows.shape))
            return y

        def fusion(y: Values, block: int, rounded: Rounded) -> None:
            out = rounded.codes, rounded.sums, rounded.scales
            launch(fused.norm_round, rows, gains, eps, y, block, *out)

        return Pending(shape=values.shape, compute=compute, fusion=fusion)

    def project(self, x: Array, *linears: Leaf) -> tuple[Array, ...]:
        if not isinstance(x, Pending):
            x = Pending(shape=x.shape, compute=functools.partial(now, x), values=x)
        calls, results = [], []
        for leaf in linears:
            if isinstance(leaf, TiledLinear):
                call, y = self._integer_product(self.rounded(x, leaf.activation_block), leaf)
            else:
                call, y = self._dense_product(x.array(), dense_values(leaf))
            calls.append(call)
            results.append(y.reshape(*x.shape[:-1], y.shape[1]))
        self.launch.together(calls)
        return tuple(results)

    def rounded(self, x: Pending, block: int) -> Rounded:
        """X rounded in blocks of so many columns, once."""
        if block in x.roundings:
            return x.roundings[block]
        columns = x.shape[-1]
        tokens, blocks = math.prod(x.shape[:-1]), columns // block
        rounded = x.roundings[block] = Rounded(
            codes=self.launch.empty((tokens, blocks, padded_width(block)), np.int8),
            sums=self.launch.empty((tokens, blocks), np.int32),
            scales=self.launch.empty((tokens, blocks)),
        )
        if x.values is None and x.fusion is not None:
            y = self.launch.empty((tokens, columns))
            x.fusion(y, block, rounded)
            x.values = y.reshape(x.shape)
            return rounded
        self.launch(
            quantize,
            x.array().reshape(tokens, columns),
            block,
            rounded.codes,
            rounded.sums,
            rounded.scales,
            tasks=tokens,
            nanoseconds=tokens * columns * ELEMENT,
        )
        return rounded

    def _integer_product(self, x: Rounded, leaf: TiledLinear) -> tuple[Call, Values]:
        tokens = len(x.codes)
        # A kernel checks no bound.
        assert x.scales.shape[1] * leaf.activation_block == leaf.columns
        y = cast(Values, self.launch.empty((tokens, leaf.rows)))
        choice = self.tuner.choice(leaf, tokens)
        nanoseconds = tokens * leaf.rows * leaf.columns * INTEGER
        call = Call(
            linear.integer_product(choice.isa, leaf.layout),
            (leaf.codes, leaf.scales, x.codes, x.sums, x.scales, y, choice.variant),
            tasks=linear.num_tasks(leaf.codes, tokens),
            nanoseconds=0.0 if choice.alone else nanoseconds,
        )
        return call, y

    def _dense_product(self, x: Values, weight: Values) -> tuple[Call, Values]:
        rows = x.reshape(-1, x.shape[-1])
        assert rows.shape[1] == weight.shape[1]
        y = cast(Values, self.launch.empty((len(rows), len(weight))))
        call = Call(
            dense.dense_product,
            (weight, rows, y),
            tasks=len(weight),
            nanoseconds=rows.size * len(weight) * FLOAT,
        )
        return call, y

    def add(self, x: Array, y: Array) -> Array:
        left, right = now(x), now(y)
        if left.shape == right.shape:
            return self.elementwise(activation.add, left, right)
        self.needs_python()
        return left + right

    def parameter(self, leaf: Leaf) -> Array:
        return dense_values(leaf)

    def last(self, x: Array) -> Array:
        values = now(x)
        if values.shape[1] == 1:
            return values
        self.needs_python()
        return np.ascontiguousarray(values[:, -1:])


def _check_ids(ids: NDArray[np.int64], rows: int) -> None:
    if ids.size and not 0 <= ids.min() <= ids.max() < rows:
        raise InputError(
            f"token ids from {ids.min()} to {ids.max()} do not fit a table of {rows} rows: use the tokenizer of this "
            "model"
        )
