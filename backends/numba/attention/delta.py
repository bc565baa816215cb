"""This file holds the mixers with a fixed-size memory: the short convolution and the gated delta rule.

Memories are (rows, H, V / L, K', L), V / L rounded up and K' a multiple of 4: features of the values lie in lanes, and
each group of lanes is a recurrence of its own, whose 4 K' L bytes stay in the first-level cache.

Legend: N flat tokens in spans, each of one row (`nanochat.rows.Step`), F channels, H heads, K and V key and value
features, L lanes.
"""

import math

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba.runtime.compilation import fused_kernel, inlined, kernel, sum_kernel
from nanochat.backends.numba.runtime.vectors import LANES, float32_lanes, sigmoid

__all__ = ["convolve", "delta_inputs", "delta_rule", "keep"]

_Array = NDArray[np.float32]
_Ints = NDArray[np.int64]


@fused_kernel
def convolve(
    x: _Array,
    before: _Array,
    weight: _Array,
    rows: _Ints,
    offsets: _Ints,
    spans: _Ints,
    y: _Array,
    first: int,
    last: int,
) -> None:
    """Causal depthwise convolution with SiLU of x (N, F) after `before` (rows, taps - 1, F); weight is (taps, F).

    A task is one token.
    """
    taps = weight.shape[0]
    for n in range(first, last):
        row, begin = rows[spans[n]], offsets[spans[n]]
        y_n = y[n]
        y_n[:] = 0
        for j in range(taps):
            place = n - (taps - 1) + j
            x_j = x[place] if place >= begin else before[row, place - begin + taps - 1]
            weight_j = weight[j]
            for f in range(y_n.shape[0]):
                y_n[f] += weight_j[f] * x_j[f]
        for f in range(y_n.shape[0]):
            y_n[f] *= sigmoid(y_n[f])


@kernel
def keep(
    x: _Array,
    before: _Array,
    rows: _Ints,
    offsets: _Ints,
    counts: _Ints,
    first: int,
    last: int,
) -> None:
    """Replace `before` (rows, taps - 1, F) by the last inputs of it and of x (N, F); a task is one span."""
    memory = before.shape[1]
    for span in range(first, last):
        row, count = rows[span], counts[span]
        for j in range(memory):
            if j + count < memory:
                before[row, j] = before[row, j + count]
            else:
                before[row, j] = x[offsets[span] + j + count - memory]


@sum_kernel
def delta_inputs(
    q: _Array,
    k: _Array,
    beta: _Array,
    decay: _Array,
    log_rate: _Array,
    time_bias: _Array,
    queries: _Array,
    keys: _Array,
    steps: _Array,
    keeps: _Array,
    first: int,
    last: int,
) -> None:
    """From the arguments of `Ops.delta_rule`: unit queries and keys (B, T, G, K'), and b and a (B, T, H).

    A task is one token.
    """
    root = np.sqrt(np.float32(q.shape[3]))
    for task in range(first, last):
        b, t = task // q.shape[1], task % q.shape[1]
        for g in range(q.shape[2]):
            _unit(q[b, t, g], root, queries[b, t, g])
            _unit(k[b, t, g], np.float32(1), keys[b, t, g])
        for h in range(beta.shape[2]):
            steps[b, t, h] = sigmoid(beta[b, t, h])
            time = np.float64(decay[b, t, h] + time_bias[h])
            softplus = max(time, 0.0) + math.log1p(math.exp(-abs(time)))
            keeps[b, t, h] = math.exp(-math.exp(log_rate[h]) * softplus)


@sum_kernel
def _unit(x: _Array, divisor: np.float32, y: _Array) -> None:
    total = np.float32(0)
    for i in range(x.shape[0]):
        total += x[i] * x[i]
    root = np.sqrt(total + np.float32(1e-6))
    for i in range(x.shape[0]):
        y[i] = x[i] / root / divisor
    y[x.shape[0] :] = 0


@kernel
def delta_rule(
    queries: _Array,
    keys: _Array,
    values: _Array,
    steps: _Array,
    keeps: _Array,
    memory: _Array,
    rows: _Ints,
    offsets: _Ints,
    counts: _Ints,
    y: _Array,
    first: int,
    last: int,
) -> None:
    """Run the recurrence over all tokens; queries and keys are (N, G, K'), values and y (N, H, V).

    A task is one group of lanes of one head of one span.
    """
    heads, groups = memory.shape[1], memory.shape[2]
    share = heads // keys.shape[1]
    mistake, total = float32_lanes(), float32_lanes()
    for task in range(first, last):
        span, h, low = task // groups // heads, task // groups % heads, task % groups * LANES
        memory_h = memory[rows[span], h, task % groups]
        fours = memory_h.shape[0] // 4
        for n in range(offsets[span], offsets[span] + counts[span]):
            keep, step = keeps[n, h], steps[n, h]
            key, query = keys[n, h // share], queries[n, h // share]
            values_t, y_t = values[n, h, low : low + LANES], y[n, h, low : low + LANES]
            for lane in range(LANES):
                mistake[lane] = total[lane] = 0
            for i in range(fours):
                _add_rows(mistake, key, memory_h, 4 * i)
            # The memory of lanes beyond the last feature is zero and stays so.
            for lane in range(values_t.shape[0]):
                mistake[lane] = step * (values_t[lane] - keep * mistake[lane])
            for i in range(fours):
                _update_rows(total, mistake, query, key, keep, memory_h, 4 * i)
            for lane in range(y_t.shape[0]):
                y_t[lane] = total[lane]


@inlined
def _add_rows(total: _Array, key: _Array, memory: _Array, i: int) -> None:
    k_0, k_1, k_2, k_3 = key[i], key[i + 1], key[i + 2], key[i + 3]
    rows_0, rows_1, rows_2, rows_3 = memory[i], memory[i + 1], memory[i + 2], memory[i + 3]
    for lane in range(LANES):
        low = k_0 * rows_0[lane] + k_1 * rows_1[lane]
        total[lane] += low + k_2 * rows_2[lane] + k_3 * rows_3[lane]


@inlined
def _update_rows(
    total: _Array,
    mistake: _Array,
    query: _Array,
    key: _Array,
    keep: np.float32,
    memory: _Array,
    i: int,
) -> None:
    k_0, k_1, k_2, k_3 = key[i], key[i + 1], key[i + 2], key[i + 3]
    q_0, q_1, q_2, q_3 = query[i], query[i + 1], query[i + 2], query[i + 3]
    rows_0, rows_1, rows_2, rows_3 = memory[i], memory[i + 1], memory[i + 2], memory[i + 3]
    for lane in range(LANES):
        m_0 = keep * rows_0[lane] + k_0 * mistake[lane]
        m_1 = keep * rows_1[lane] + k_1 * mistake[lane]
        m_2 = keep * rows_2[lane] + k_2 * mistake[lane]
        m_3 = keep * rows_3[lane] + k_3 * mistake[lane]
        rows_0[lane], rows_1[lane], rows_2[lane], rows_3[lane] = m_0, m_1, m_2, m_3
        total[lane] += q_0 * m_0 + q_1 * m_1 + q_2 * m_2 + q_3 * m_3
