"""This file holds the operations that mix tokens: attention, the short convolution, the gated delta rule.

See `nanochat.ops.Ops`.
"""

import math
import weakref
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba_kernels import attention, delta, remember, rope
from nanochat.backends.numba_kernels.tiles import Leaf
from nanochat.backends.numba_ops.base import ELEMENT, FLOAT, KernelOps, LayoutChoice, dense_values
from nanochat.backends.numba_ops.pending import Array, Values, now
from nanochat.backends.numba_ops.state import NumbaState, buffers
from nanochat.backends.reference import check_room
from nanochat.ops import Slot

__all__ = ["MixerOps"]

# By what keys and values are kept in.
_APPEND: dict[np.dtype[np.generic], Callable[..., object]] = {
    np.dtype(np.float32): remember.append_float32,
    np.dtype(np.uint16): remember.append_float16,
    np.dtype(np.int8): remember.append_int8,
}
_ATTEND: dict[np.dtype[np.generic], Callable[..., object]] = {
    np.dtype(np.float32): attention.attend_float32,
    np.dtype(np.uint16): attention.attend_float16,
    np.dtype(np.int8): attention.attend_int8,
}


class MixerOps(KernelOps):
    """Operations on what the model remembers."""

    def __init__(self, *, num_threads: int | None = None, layout: LayoutChoice = "auto") -> None:
        super().__init__(num_threads=num_threads, layout=layout)
        self._rotations: dict[tuple[float, int], tuple[Values, Values]] = {}

    def split_heads(self, x: Array, heads: int) -> Array:
        return now(x).reshape(*x.shape[:-1], heads, x.shape[-1] // heads)

    def merge_heads(self, x: Array) -> Array:
        return now(x).reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])

    def rope(self, x: Array, *, theta: float, state: NumbaState | None) -> Array:
        x = now(x)
        batch, length, _, features = x.shape
        if state is not None:
            self._check_room(state, length)
        # A step that is repeated comes to the last position some time.
        positions = length if state is None else state.capacity
        cosines, sines = self._rotation(theta, features // 2, positions)
        y = self.like(x)
        self.launch(
            rope.rotate,
            x,
            cosines,
            sines,
            _starts(state, batch),
            y,
            tasks=batch * length,
            nanoseconds=x.size * ELEMENT,
        )
        return y

    def attention(
        self, q: Array, k: Array, v: Array, *, state: NumbaState | None, slot: int
    ) -> Array:
        q, k, v = now(q), now(k), now(v)
        batch, length, groups, features = k.shape
        if state is None:
            shape = Slot(kind="attention", heads=groups, key_dim=features)
            kept = buffers(shape, batch, length)
            self._append(k, v, _starts(state, batch), kept)
        else:
            self.remember(k, v, state=state, slot=slot)
            kept = state.arrays[slot]
        seen = length / 2 if state is None else state.longest + length / 2
        if state is not None and self.launch.notes is not None:
            # What is noted at the first position is repeated until the last.
            seen = state.capacity
        y = self.like(q)
        self.launch(
            _ATTEND[kept[0].dtype],
            q,
            *kept,
            _starts(state, batch),
            y,
            tasks=batch * groups * -(-length * q.shape[2] // groups // attention.ROWS),
            nanoseconds=2 * q.size * seen * FLOAT,
        )
        return y

    def remember(self, k: Array, v: Array, *, state: NumbaState, slot: int) -> None:
        self._check_room(state, k.shape[1])
        self._append(now(k), now(v), state.lengths, state.arrays[slot])

    def _check_room(self, state: NumbaState, length: int) -> None:
        # The state has the notes, which have this: with the state itself it would be a cycle, freed late.
        same = weakref.proxy(state)
        self.each_time(lambda: check_room(same.longest, length, same.capacity))

    def _append(self, k: Values, v: Values, starts: NDArray[np.int64], kept: list[Values]) -> None:
        self.launch(
            _APPEND[kept[0].dtype],
            k,
            v,
            starts,
            *kept,
            tasks=math.prod(k.shape[:3]),
            nanoseconds=k.size * ELEMENT,
        )

    def _rotation(self, theta: float, half: int, positions: int) -> tuple[Values, Values]:
        """Cosines and sines of at least that many positions, (positions, half)."""
        tables = self._rotations.get((theta, half))
        if tables is None or len(tables[0]) < positions:
            count = max(256, 1 << (positions - 1).bit_length())
            frequency = (theta ** (-np.arange(half) / half)).astype(np.float32)
            angle = np.arange(count, dtype=np.float32)[:, None] * frequency
            tables = np.cos(angle), np.sin(angle)
            self._rotations[theta, half] = tables
        return tables

    def short_conv(self, x: Array, kernel: Leaf, *, state: NumbaState | None, slot: int) -> Array:
        x = now(x)
        weight = np.ascontiguousarray(dense_values(kernel).T)
        batch, length, features = x.shape
        if state is None:
            before = np.zeros((batch, len(weight) - 1, features), np.float32)
        else:
            (before,) = state.arrays[slot]
        y = self.like(x)
        self.launch(
            delta.convolve,
            x,
            before,
            weight,
            y,
            tasks=batch * length,
            nanoseconds=len(weight) * x.size * ELEMENT,
        )
        if state is not None:
            self.launch(delta.keep, x, before, tasks=batch, nanoseconds=before.size * ELEMENT)
        return y

    def delta_rule(
        self,
        q: Array,
        k: Array,
        v: Array,
        beta: Array,
        decay: Array,
        log_rate: Leaf,
        time_bias: Leaf,
        *,
        state: NumbaState | None,
        slot: int,
    ) -> Array:
        values = now(v)
        batch, length, heads, features = k.shape
        shape = Slot(kind="delta", heads=heads, key_dim=features, value_dim=values.shape[3])
        (memory,) = buffers(shape, batch, 0) if state is None else state.arrays[slot]
        groups, padded = memory.shape[2:4]
        queries = self.launch.empty((batch, length, heads, padded))
        keys = self.like(queries)
        steps, keeps = self.like(now(beta)), self.like(now(decay))
        self.launch(
            delta.delta_inputs,
            now(q),
            now(k),
            now(beta),
            now(decay),
            dense_values(log_rate),
            dense_values(time_bias),
            queries,
            keys,
            steps,
            keeps,
            tasks=batch * length,
            nanoseconds=2 * queries.size * ELEMENT,
        )
        y = self.like(values)
        self.launch(
            delta.delta_rule,
            queries,
            keys,
            values,
            steps,
            keeps,
            memory,
            y,
            tasks=batch * heads * groups,
            nanoseconds=4 * y.size * padded * FLOAT,
        )
        return y


def _starts(state: NumbaState | None, batch: int) -> NDArray[np.int64]:
    return np.zeros(batch, np.int64) if state is None else state.lengths
