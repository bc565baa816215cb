"""This file holds how the mixers of positions are launched: attention, convolutions, and the gated delta rule.

Legend: B sequences, T tokens, H query heads, G key heads, K and V key and value features, F channels.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba.attention import attention, delta, four_bits
from nanochat.backends.numba.pending import Values
from nanochat.backends.numba.runtime.costs import ELEMENT, FLOAT
from nanochat.backends.numba.runtime.launch import Launcher
from nanochat.backends.numba.state import Spans
from nanochat.ops import Storage
from nanochat.rotary import Rotation

__all__ = ["Rotations", "append", "attend", "convolve", "delta_inputs", "delta_rule", "keep"]
__all__ += ["rotate"]

# Nanoseconds to keep a number of a key, which has a line of memory of its own.
_NUMBER = 10


class Rotations:
    """Cosines and sines of positions, which are kept."""

    def __init__(self) -> None:
        self._tables: dict[Rotation, tuple[Values, Values]] = {}

    def of(self, rotation: Rotation, *, positions: int) -> tuple[Values, Values]:
        """Tables of at least so many positions, (positions, K / 2)."""
        tables = self._tables.get(rotation)
        if tables is None or len(tables[0]) < positions:
            count = max(256, 1 << (positions - 1).bit_length())
            tables = rotation.tables(np.arange(count, dtype=np.float32))
            self._tables[rotation] = tables
        return tables


def rotate(launch: Launcher, x: Values, tables: tuple[Values, Values], spans: Spans) -> Values:
    """X (B, T, H, K), rotated by the positions of its tokens."""
    y = launch.like(x)
    flat = [array.reshape(-1, *x.shape[2:]) for array in (x, y)]
    arguments = flat[0], *tables, spans.step.positions, flat[1]
    tasks, nanoseconds = len(flat[0]), x.size * ELEMENT
    launch(attention.rotate, *arguments, tasks=tasks, nanoseconds=nanoseconds)
    return y


def append(
    launch: Launcher, k: Values, v: Values, storage: Storage, pages: list[Values], spans: Spans
) -> None:
    """Keep k and v (B, T, G, K) in pages, as `state.buffers` makes them."""
    flat = [x.reshape(-1, *x.shape[2:]) for x in (k, v)]
    step, groups = spans.step, k.shape[2]
    told: tuple[NDArray[np.int64], ...]
    if storage == "int4":
        append_kernel: Callable[..., None] = four_bits.append
        told = spans.table, step.rows, step.starts, step.counts, step.offsets
        tasks = spans.number * groups
    else:
        append_kernel = attention.append_kernel(storage)
        told = spans.table, step.rows, step.spans, step.positions
        tasks = len(flat[0]) * groups
    # Also of tokens that have left a loop: later ones look at them.
    with launch.always():
        launch(
            append_kernel,
            *(*flat, *told, *pages),
            tasks=tasks,
            nanoseconds=_NUMBER * k.size,
        )


def attend(
    launch: Launcher, q: Values, storage: Storage, pages: list[Values], spans: Spans
) -> Values:
    """What queries (B, T, H, K) see in pages."""
    heads, features = q.shape[2:]
    groups, step = pages[0].shape[1], spans.step
    y = launch.like(q)
    parts = step.parts_of(groups, heads // groups)
    if spans.number < len(step.rows):
        # Those of the other tokens come last.
        parts = parts[: spans.number * (len(parts) // len(step.rows))]
    # For each position that a query sees.
    nanoseconds = 2 * q.size * FLOAT
    noted = launch.notes is not None
    seen = 0.0 if noted else float((step.starts + step.counts / 2)[: spans.number].mean())
    launch(
        attention.attention_kernel(storage),
        *(q.reshape(-1, heads, features), *pages, spans.table),
        *(step.rows, step.starts, step.counts, step.offsets, parts),
        y.reshape(-1, heads, features),
        tasks=len(parts),
        nanoseconds=nanoseconds * seen,
        nanoseconds_per_position=nanoseconds if noted else 0.0,
    )
    return y


def convolve(launch: Launcher, x: Values, before: Values, weight: Values, spans: Spans) -> Values:
    """The convolution of x (B, T, F) with weight (taps, F), after the inputs before, (rows, taps - 1, F)."""
    step = spans.step
    y = launch.like(x)
    flat, result = (array.reshape(-1, x.shape[2]) for array in (x, y))
    arguments = flat, before, weight, step.rows, step.offsets, step.spans, result
    tasks, nanoseconds = len(flat), len(weight) * x.size * ELEMENT
    launch(delta.convolve, *arguments, tasks=tasks, nanoseconds=nanoseconds)
    return y


def keep(launch: Launcher, x: Values, before: Values, spans: Spans) -> None:
    """Replace the inputs before x (B, T, F) by its last ones."""
    step, features = spans.step, x.shape[2]
    told = step.rows, step.offsets, step.counts
    tasks, nanoseconds = spans.number, spans.number * (before.shape[1] + 1) * features * ELEMENT
    arguments = x.reshape(-1, features), before, *told
    launch(delta.keep, *arguments, tasks=tasks, nanoseconds=nanoseconds)


def delta_inputs(
    launch: Launcher,
    q: Values,
    k: Values,
    beta: Values,
    decay: Values,
    log_rate: Values,
    time_bias: Values,
    *,
    features: int,
) -> tuple[Values, Values, Values, Values]:
    """Queries and keys (B, T, G, features) of unit length, padded, and how much is learned and kept (B, T, H)."""
    queries = launch.empty((*k.shape[:3], features))
    keys = launch.like(queries)
    steps, keeps = launch.like(beta), launch.like(decay)
    launch(
        delta.delta_inputs,
        *(q, k, beta, decay, log_rate, time_bias),
        *(queries, keys, steps, keeps),
        tasks=math.prod(k.shape[:2]),
        nanoseconds=2 * queries.size * ELEMENT,
    )
    return queries, keys, steps, keeps


def delta_rule(
    launch: Launcher,
    queries: Values,
    keys: Values,
    steps: Values,
    keeps: Values,
    values: Values,
    memory: Values,
    spans: Spans,
) -> Values:
    """What is recalled for `delta_inputs` and values (B, T, H, V), while the memory learns them."""
    step = spans.step
    heads, groups, features = memory.shape[1:4]
    y = launch.like(values)
    launch(
        delta.delta_rule,
        *(x.reshape(-1, *x.shape[2:]) for x in (queries, keys, values, steps, keeps)),
        *(memory, step.rows, step.offsets, step.counts),
        y.reshape(-1, *y.shape[2:]),
        tasks=spans.number * heads * groups,
        nanoseconds=4 * y.size * features * FLOAT,
    )
    return y
