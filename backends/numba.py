"""This file holds the Numba backend: compiled CPU kernels, with ternary weights packed to two bits in memory.

Arrays are float32 NumPy arrays in C order. Work that is done sooner than the threads wake stays on the calling thread.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba_kernels import activation, attention, delta, dense, linear, mhc
from nanochat.backends.numba_kernels.lanes import LANES
from nanochat.backends.numba_kernels.quantize import chunk_width, quantize, quantize_parallel
from nanochat.backends.numba_kernels.threads import num_threads, run, start_threads
from nanochat.backends.numba_kernels.tiles import Leaf, TiledLinear, prepare_leaf
from nanochat.backends.reference import check_room, permutation_matrices
from nanochat.config import Mixer
from nanochat.errors import InputError
from nanochat.ops import Slot
from nanochat.weights import Mhc, Stored, Weights, map_leaves

__all__ = ["NumbaOps", "NumbaState"]

# Token ids (int64) and masks (bool) are arrays, too, and go by the same type.
Array = NDArray[np.float32]

# Nanoseconds on one thread of a Zen 4 core: a multiply-add of integers and of float32, and an element that is moved
# through a few operations.
_INTEGER, _FLOAT, _ELEMENT = 1 / 60, 1 / 20, 0.5


class NumbaState:
    """Lengths of the sequences (B,), and the buffers of every slot, in the layouts of the kernels, with B in front."""

    def __init__(self, slots: Sequence[Slot], batch: int, capacity: int) -> None:
        self.capacity = capacity
        self.lengths = np.zeros(batch, np.int64)
        self.longest = 0
        self.arrays = [_buffers(slot, batch, capacity) for slot in slots]


class NumbaOps:
    """Compiled implementation of `nanochat.ops.Ops`, where every method is specified."""

    name = "numba"

    def __init__(self) -> None:
        self._rotations: dict[tuple[float, int], tuple[Array, Array]] = {}

    @property
    def device(self) -> str:
        """The processor's threads and what runs them, for people."""
        return f"cpu, {num_threads()} threads by {start_threads()}"

    # The border.

    def prepare(self, weights: Weights[Stored]) -> Weights[Leaf]:
        """Lay all codes out in tiles; round latent weights."""
        return map_leaves(prepare_leaf, weights)

    def tokens(self, ids: NDArray[np.int64]) -> Array:
        # A read-only array would have every kernel compiled once more.
        return cast(Array, np.require(ids, np.int64, ["C", "W"]))

    def array(self, values: NDArray[np.float32]) -> Array:
        return np.array(values, np.float32, order="C")

    def numpy(self, x: Array) -> NDArray[np.float32]:
        return np.array(x, np.float32)

    def new_state(self, slots: Sequence[Slot], *, batch: int, capacity: int) -> NumbaState:
        return NumbaState(slots, batch, capacity)

    def stack(self, states: Sequence[NumbaState]) -> NumbaState:
        whole = NumbaState((), 0, states[0].capacity)
        whole.lengths = np.concatenate([state.lengths for state in states])
        whole.longest = max(state.longest for state in states)
        whole.arrays = [
            [np.concatenate(parts) for parts in zip(*slot, strict=True)]
            for slot in zip(*(state.arrays for state in states), strict=True)
        ]
        return whole

    def advance(self, state: NumbaState, tokens: Array) -> None:
        state.lengths += tokens.shape[1]
        state.longest += tokens.shape[1]

    # Tables, norms, linears.

    def embed(self, tokens: Array, table: Leaf) -> Array:
        ids = cast(NDArray[np.int64], tokens)
        if not isinstance(table, TiledLinear):
            found: Array = table[ids]
            return found
        y = np.empty((*ids.shape, table.columns), np.float32)
        rows = y.reshape(-1, table.columns)
        block = table.activation_block
        if not linear.embed(table.codes, table.scales, ids.reshape(-1), table.rows, block, rows):
            raise InputError(
                f"token ids from {ids.min()} to {ids.max()} do not fit a table of {table.rows} rows: use the tokenizer "
                "of this model"
            )
        return y

    def rms_norm(self, x: Array, gain: Leaf, *, eps: float) -> Array:
        y = np.empty_like(x)
        rows, result, gains = x.reshape(-1, x.shape[-1]), y.reshape(-1, x.shape[-1]), _dense(gain)
        run(
            dense.rms_norm,
            dense.rms_norm_parallel,
            (rows, gains, eps, result),
            tasks=len(rows),
            nanoseconds=x.size * _ELEMENT,
        )
        return y

    def project(self, x: Array, *linears: Leaf) -> tuple[Array, ...]:
        rows = x.reshape(-1, x.shape[-1])
        rounded: dict[int, _Rounded] = {}
        results = []
        for leaf in linears:
            if not isinstance(leaf, TiledLinear):
                y = _dense_product(rows, leaf)
            else:
                block = leaf.activation_block
                if block not in rounded:
                    rounded[block] = _round(rows, block)
                y = _integer_product(rounded[block], leaf)
            results.append(y.reshape(*x.shape[:-1], y.shape[1]))
        return tuple(results)

    def add(self, x: Array, y: Array) -> Array:
        return x + y

    def parameter(self, leaf: Leaf) -> Array:
        return _dense(leaf)

    def last(self, x: Array) -> Array:
        return np.ascontiguousarray(x[:, -1:])

    # Attention.

    def split_heads(self, x: Array, heads: int) -> Array:
        return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)

    def merge_heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])

    def rope(self, x: Array, *, theta: float, state: NumbaState | None) -> Array:
        batch, length, _, features = x.shape
        positions = length if state is None else state.longest + length
        cosines, sines = self._rotation(theta, features // 2, positions)
        y = np.empty_like(x)
        run(
            attention.rotate,
            attention.rotate_parallel,
            (x, cosines, sines, _starts(state, batch), y),
            tasks=batch * length,
            nanoseconds=x.size * _ELEMENT,
        )
        return y

    def attention(
        self, q: Array, k: Array, v: Array, *, state: NumbaState | None, slot: int
    ) -> Array:
        batch, length, groups, features = k.shape
        starts = _starts(state, batch)
        if state is None:
            whole = Slot(kind="attention", heads=groups, key_dim=features)
            keys, values = _buffers(whole, batch, length)
            attention.append(k, v, starts, keys, values)
        else:
            self.remember(k, v, state=state, slot=slot)
            keys, values = state.arrays[slot]
        seen = length / 2 + (0 if state is None else state.longest)
        y = np.empty_like(q)
        run(
            attention.attend,
            attention.attend_parallel,
            (q, keys, values, starts, y),
            tasks=batch * groups * -(-length * q.shape[2] // groups // 4),
            nanoseconds=2 * q.size * seen * _FLOAT,
        )
        return y

    def remember(self, k: Array, v: Array, *, state: NumbaState, slot: int) -> None:
        check_room(state.longest, k.shape[1], state.capacity)
        attention.append(k, v, state.lengths, *state.arrays[slot])

    def _rotation(self, theta: float, half: int, positions: int) -> tuple[Array, Array]:
        """Cosines and sines of at least that many positions, (positions, half)."""
        tables = self._rotations.get((theta, half))
        if tables is None or len(tables[0]) < positions:
            count = max(256, 1 << (positions - 1).bit_length())
            frequency = (theta ** (-np.arange(half) / half)).astype(np.float32)
            angle = np.arange(count, dtype=np.float32)[:, None] * frequency
            tables = np.cos(angle), np.sin(angle)
            self._rotations[theta, half] = tables
        return tables

    # Gated DeltaNet.

    def short_conv(self, x: Array, kernel: Leaf, *, state: NumbaState | None, slot: int) -> Array:
        weight = np.ascontiguousarray(_dense(kernel).T)
        memory = len(weight) - 1
        batch, length, features = x.shape
        before = np.zeros((batch, memory, features), np.float32)
        if state is not None:
            before = state.arrays[slot][0]
        y = np.empty_like(x)
        run(
            delta.convolve,
            delta.convolve_parallel,
            (x, before, weight, y),
            tasks=batch * length,
            nanoseconds=len(weight) * x.size * _ELEMENT,
        )
        if state is not None:
            seen = np.concatenate([before, x[:, max(0, length - memory) :]], axis=1)
            state.arrays[slot][0] = np.ascontiguousarray(seen[:, seen.shape[1] - memory :])
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
        batch, length, heads, features = k.shape
        shape = Slot(kind="delta", heads=heads, key_dim=features, value_dim=v.shape[3])
        (memory,) = _buffers(shape, batch, 0) if state is None else state.arrays[slot]
        groups, padded = memory.shape[2:4]
        queries = np.empty((batch, length, heads, padded), np.float32)
        keys = np.empty_like(queries)
        steps, keeps = np.empty_like(beta), np.empty_like(beta)
        gates = beta, decay, _dense(log_rate), _dense(time_bias)
        delta.delta_inputs(q, k, *gates, queries, keys, steps, keeps)
        values = _padded(v, groups * LANES)
        y = np.empty_like(values)
        run(
            delta.delta_rule,
            delta.delta_rule_parallel,
            (queries, keys, values, steps, keeps, memory, y),
            tasks=batch * heads * groups,
            nanoseconds=4 * y.size * padded * _FLOAT,
        )
        return np.ascontiguousarray(y[..., : v.shape[3]])

    # Networks.

    def swiglu(self, gate: Array, up: Array) -> Array:
        return _elementwise(activation.swiglu, activation.swiglu_parallel, gate, up)

    def relu2(self, x: Array, up: Array | None) -> Array:
        if up is None:
            return _elementwise(activation.relu2, activation.relu2_parallel, x)
        return _elementwise(activation.relu2_glu, activation.relu2_glu_parallel, x, up)

    def gate(self, x: Array, logits: Array) -> Array:
        return _elementwise(activation.gate, activation.gate_parallel, x, logits)

    def experts(
        self,
        x: Array,
        logits: Array,
        networks: Sequence[Callable[[Array], Array]],
        *,
        top_k: int,
    ) -> Array:
        rows = x.reshape(-1, x.shape[-1])
        scores = logits.reshape(-1, logits.shape[-1])
        chosen = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        shares = np.take_along_axis(scores, chosen, axis=1)
        shares = np.exp(shares - shares.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        out = np.zeros_like(rows)
        for e in np.unique(chosen):
            token, rank = np.nonzero(chosen == e)
            out[token] += shares[token, rank, None] * networks[e](rows[token])
        return out.reshape(x.shape)

    # mHC: manifold-constrained hyper-connections.

    def mhc_open(self, x: Array, num_streams: int) -> Array:
        return np.repeat(x[:, :, None, :], num_streams, axis=2)

    def mhc_read(
        self, streams: Array, site: Mhc[Leaf], *, mixer: Mixer, iterations: int, eps: float
    ) -> tuple[Array, Array, Array | None]:
        batch, length, n, width = streams.shape
        logits = self._mhc_logits(streams, site, eps)
        read = np.empty((len(logits), n), np.float32)
        post = np.empty_like(read)
        mix = np.empty((len(logits), n, n), np.float32)
        permutations = _permutations(n) if mixer == "lite" else _NO_PERMUTATIONS
        mhc.coefficients(logits, permutations, iterations, read, post, mix)
        u = np.empty((batch, length, width), np.float32)
        run(
            mhc.blend,
            mhc.blend_parallel,
            (streams.reshape(-1, n, width), read, u.reshape(-1, width)),
            tasks=batch * length,
            nanoseconds=streams.size * _ELEMENT,
        )
        shape = () if site.projection is None else (batch, length)
        post = post.reshape(*shape, n)
        return u, post, None if mixer == "identity" else mix.reshape(*shape, n, n)

    def _mhc_logits(self, streams: Array, site: Mhc[Leaf], eps: float) -> Array:
        """One row for all tokens of a static site, else one for each."""
        parts = [_dense(site.read), _dense(site.write)]
        if site.mix is not None:
            parts.append(_dense(site.mix))
        bias = np.concatenate(parts)
        if site.projection is None or site.gates is None:
            return bias[None]
        flat = streams.reshape(-1, streams.shape[2] * streams.shape[3])
        normed = self.rms_norm(flat, np.ones(flat.shape[1], np.float32), eps=eps)
        gates = np.repeat(_dense(site.gates)[: len(parts)], [part.size for part in parts])
        logits: Array = bias + gates * _dense_product(normed, _dense(site.projection))
        return logits

    def mhc_write(self, streams: Array, y: Array, post: Array, mix: Array | None) -> Array:
        if mix is None:
            identity: Array = streams + post[..., :, None] * y[..., None, :]
            return identity
        batch, length, n, width = streams.shape
        mixed = np.empty_like(streams)
        run(
            mhc.mix,
            mhc.mix_parallel,
            (
                streams.reshape(-1, n, width),
                y.reshape(-1, width),
                post.reshape(-1, n),
                mix.reshape(-1, n, n),
                mixed.reshape(-1, n, width),
            ),
            tasks=batch * length,
            nanoseconds=n * streams.size * _ELEMENT,
        )
        return mixed

    def mhc_close(self, streams: Array) -> Array:
        mean: Array = streams.mean(axis=2)
        return mean

    # Adaptive depth.

    def survival(self, previous: Array | None, logits: Array) -> Array:
        return self.gate(np.ones_like(logits) if previous is None else previous, logits)

    def at_most(self, x: Array, threshold: float) -> Array:
        return cast(Array, x <= np.float32(threshold))

    def every(self, mask: Array) -> bool:
        return bool(mask.all())

    def select(self, mask: Array, yes: Array, no: Array) -> Array:
        return np.where(mask.reshape(mask.shape + (1,) * (yes.ndim - mask.ndim)), yes, no)


_NO_PERMUTATIONS = np.empty((0, 0), np.int64)


@dataclass(frozen=True, kw_only=True)
class _Rounded:
    """What `quantize` makes of activations: codes (N, chunks, width), their sums, and scales (N, blocks)."""

    codes: NDArray[np.int16]
    sums: NDArray[np.int16]
    scales: Array


def _round(x: Array, block: int) -> _Rounded:
    tokens, columns = x.shape
    blocks = columns // block
    width = chunk_width(block)
    chunks = blocks * -(-block // width)
    codes = np.empty((tokens, chunks, width), np.int16)
    sums = np.empty((tokens, chunks), np.int16)
    scales = np.empty((tokens, blocks), np.float32)
    run(
        quantize,
        quantize_parallel,
        (x, block, codes, sums, scales),
        tasks=tokens,
        nanoseconds=x.size * _ELEMENT,
    )
    return _Rounded(codes=codes, sums=sums, scales=scales)


def _integer_product(x: _Rounded, leaf: TiledLinear) -> Array:
    tokens = len(x.codes)
    # A kernel checks no bound.
    assert x.scales.shape[1] * leaf.activation_block == leaf.columns
    y = np.empty((tokens, leaf.rows), np.float32)
    run(
        linear.integer_product,
        linear.integer_product_parallel,
        (leaf.codes, leaf.scales, x.codes, x.sums, x.scales, y),
        tasks=len(leaf.codes) * -(-tokens // linear.TOKENS),
        nanoseconds=tokens * leaf.rows * leaf.columns * _INTEGER,
    )
    return y


def _dense_product(x: Array, weight: Array) -> Array:
    assert x.shape[1] == weight.shape[1]
    y = np.empty((len(x), len(weight)), np.float32)
    run(
        dense.dense_product,
        dense.dense_product_parallel,
        (weight, x, y),
        tasks=len(weight),
        nanoseconds=x.size * len(weight) * _FLOAT,
    )
    return y


def _elementwise(
    kernel: Callable[..., None], parallel: Callable[..., None], x: Array, *others: Array
) -> Array:
    assert all(other.size == x.size for other in others)
    y = np.empty_like(x)
    run(
        kernel,
        parallel,
        tuple(array.reshape(-1) for array in (x, *others, y)),
        tasks=x.size,
        nanoseconds=x.size * _ELEMENT,
    )
    return y


def _dense(leaf: Leaf) -> Array:
    assert not isinstance(leaf, TiledLinear)
    return leaf


def _starts(state: NumbaState | None, batch: int) -> NDArray[np.int64]:
    return np.zeros(batch, np.int64) if state is None else state.lengths


def _padded(x: Array, features: int) -> Array:
    if x.shape[-1] == features:
        return x
    padded = np.zeros((*x.shape[:-1], features), np.float32)
    padded[..., : x.shape[-1]] = x
    return padded


@functools.cache
def _permutations(n: int) -> NDArray[np.int64]:
    """Column of the 1 in every row of every permutation matrix, (n!, n)."""
    columns: NDArray[np.int64] = permutation_matrices(n).argmax(axis=2)
    return columns


def _buffers(slot: Slot, batch: int, capacity: int) -> list[Array]:
    if slot.kind == "conv":
        return [np.zeros((batch, slot.taps - 1, slot.features), np.float32)]
    features = -(-slot.key_dim // 4) * 4
    if slot.kind == "delta":
        groups = -(-slot.value_dim // LANES)
        return [np.zeros((batch, slot.heads, groups, features, LANES), np.float32)]
    tiles, groups = -(-capacity // LANES), -(-slot.key_dim // LANES)
    # Memory is taken from the system when a position is first written.
    return [
        np.zeros((batch, slot.heads, tiles, features, LANES), np.float32),
        np.zeros((batch, slot.heads, groups, capacity, LANES), np.float32),
    ]
