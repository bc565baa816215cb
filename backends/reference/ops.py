"""This file holds the reference backend: every operation in plain NumPy, and therefore its specification in code."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.config import Mixer
from nanochat.errors import ContextLengthError
from nanochat.ops import Slot, Storage
from nanochat.weights import Dense, Int8, Latent, Mhc, Stored, Ternary, Weights, map_leaves

__all__ = ["IntegerLinear", "ReferenceOps", "ReferenceState", "check_room", "permutation_matrices"]


# Token ids (int64) and masks (bool) are arrays, too, and go by the same type.
Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegerLinear:
    """Unpacked codes (R, C) with scales (R, blocks), from a ternary matrix or an 8-bit table."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float16]
    activation_block: int


Leaf = IntegerLinear | Array


class ReferenceState:
    """Lengths of the sequences (B,), and the arrays of every slot, each with B in front.

    Keys and values are float32, rounded to what the slot's storage can hold.
    """

    def __init__(self, slots: Sequence[Slot], batch: int, capacity: int) -> None:
        self.slots = tuple(slots)
        self.capacity = capacity
        self.lengths = np.zeros(batch, np.int64)
        self.arrays: list[list[Array]] = []
        for slot in slots:
            shape: tuple[int, ...]
            if slot.kind == "attention":
                shape = (batch, capacity, slot.heads, slot.key_dim)
                self.arrays.append([np.zeros(shape, np.float32), np.zeros(shape, np.float32)])
            elif slot.kind == "conv":
                self.arrays.append([np.zeros((batch, slot.taps - 1, slot.features), np.float32)])
            else:
                shape = (batch, slot.heads, slot.key_dim, slot.value_dim)
                self.arrays.append([np.zeros(shape, np.float32)])


class ReferenceOps:
    """NumPy implementation of `nanochat.ops.Ops`, where every method is specified."""

    name = "reference"

    def prepare(self, weights: Weights[Stored]) -> Weights[Leaf]:
        """Unpack all codes to int8; round latent weights."""
        return map_leaves(_prepare_leaf, weights)

    def tokens(self, ids: NDArray[np.int64]) -> Array:
        return cast(Array, ids)

    def array(self, values: NDArray[np.float32]) -> Array:
        return np.array(values, np.float32)

    def numpy(self, x: Array) -> NDArray[np.float32]:
        return np.array(x, np.float32)

    def new_state(self, slots: Sequence[Slot], *, batch: int, capacity: int) -> ReferenceState:
        return ReferenceState(slots, batch, capacity)

    def stack(self, states: Sequence[ReferenceState]) -> ReferenceState:
        whole = ReferenceState(states[0].slots, 0, states[0].capacity)
        whole.lengths = np.concatenate([state.lengths for state in states])
        whole.arrays = [
            [np.concatenate(parts) for parts in zip(*slot, strict=True)]
            for slot in zip(*(state.arrays for state in states), strict=True)
        ]
        return whole

    def advance(self, state: ReferenceState, tokens: Array) -> None:
        state.lengths += tokens.shape[1]

    def embed(self, tokens: Array, table: Leaf) -> Array:
        ids = cast(NDArray[np.int64], tokens)
        if isinstance(table, IntegerLinear):
            return table.codes[ids].astype(np.float32) * table.scales[ids].astype(np.float32)
        rows: Array = table[ids]
        return rows

    def rms_norm(self, x: Array, gain: Leaf, *, eps: float) -> Array:
        mean = np.mean(x * x, axis=-1, keepdims=True)
        y: Array = x / np.sqrt(mean + np.float32(eps)) * _dense(gain)
        return y

    def project(self, x: Array, *linears: Leaf) -> tuple[Array, ...]:
        return tuple(_project(x, linear) for linear in linears)

    def add(self, x: Array, y: Array) -> Array:
        return x + y

    def parameter(self, leaf: Leaf) -> Array:
        return _dense(leaf)

    def last(self, x: Array) -> Array:
        return x[:, -1:]

    def split_heads(self, x: Array, heads: int) -> Array:
        return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)

    def merge_heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])

    def rope(self, x: Array, *, theta: float, state: ReferenceState | None) -> Array:
        half = x.shape[-1] // 2
        frequency = (theta ** (-np.arange(half) / half)).astype(np.float32)
        positions = np.arange(x.shape[1])[None, :]
        if state is not None:
            positions = positions + state.lengths[:, None]
        angle = positions.astype(np.float32)[:, :, None, None] * frequency
        cos, sin = np.cos(angle), np.sin(angle)
        first, second = x[..., :half], x[..., half:]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def attention(
        self, q: Array, k: Array, v: Array, *, state: ReferenceState | None, slot: int
    ) -> Array:
        batch, length, heads, features = q.shape
        starts = np.zeros(batch, np.int64)
        if state is not None:
            self.append_kv(k, v, state=state, slot=slot)
            starts = state.lengths
            k, v = state.arrays[slot]
        share, root = heads // k.shape[2], np.float32(np.sqrt(features))
        out = np.empty_like(q)
        for b in range(batch):
            keys, values = np.repeat(k[b], share, axis=1), np.repeat(v[b], share, axis=1)
            for t in range(length):
                seen = slice(int(starts[b]) + t + 1)
                scores = np.einsum("hk,shk->hs", q[b, t], keys[seen]) / root
                out[b, t] = np.einsum("hs,shk->hk", _softmax(scores), values[seen])
        return out

    def append_kv(self, k: Array, v: Array, *, state: ReferenceState, slot: int) -> None:
        check_room(int(state.lengths.max()), k.shape[1], state.capacity)
        k, v = (_kept(x, state.slots[slot].storage) for x in (k, v))
        for b, start in enumerate(state.lengths):
            state.arrays[slot][0][b, start : start + k.shape[1]] = k[b]
            state.arrays[slot][1][b, start : start + k.shape[1]] = v[b]

    def short_conv(
        self, x: Array, kernel: Leaf, *, state: ReferenceState | None, slot: int
    ) -> Array:
        weight = _dense(kernel)
        taps = weight.shape[1]
        before = np.zeros((x.shape[0], taps - 1, x.shape[2]), np.float32)
        if state is not None:
            before = state.arrays[slot][0]
        padded = np.concatenate([before, x], axis=1)
        if state is not None:
            state.arrays[slot][0] = padded[:, padded.shape[1] - (taps - 1) :].copy()
        y = np.zeros_like(x)
        for j in range(taps):
            y += weight[:, j] * padded[:, j : j + x.shape[1]]
        return y * _sigmoid(y)

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
        state: ReferenceState | None,
        slot: int,
    ) -> Array:
        q = _unit(q) / np.float32(np.sqrt(q.shape[-1]))
        k = _unit(k)
        step = _sigmoid(beta)
        time = np.logaddexp(np.float32(0), decay + _dense(time_bias))
        keep = np.exp(-np.exp(_dense(log_rate)) * time)
        if state is None:
            memory = np.zeros((q.shape[0], q.shape[2], q.shape[3], v.shape[3]), np.float32)
        else:
            memory = state.arrays[slot][0]
        out = np.empty_like(v)
        for t in range(q.shape[1]):
            memory = memory * keep[:, t, :, None, None]
            error = v[:, t] - np.einsum("bhk,bhkv->bhv", k[:, t], memory)
            memory = memory + np.einsum("bhk,bhv->bhkv", k[:, t], error * step[:, t, :, None])
            out[:, t] = np.einsum("bhk,bhkv->bhv", q[:, t], memory)
        if state is not None:
            state.arrays[slot][0] = memory
        return out

    def swiglu(self, gate: Array, up: Array) -> Array:
        return gate * _sigmoid(gate) * up

    def relu2(self, x: Array, up: Array | None) -> Array:
        y = np.square(np.maximum(x, np.float32(0)))
        return y if up is None else y * up

    def gate(self, x: Array, logits: Array) -> Array:
        return x * _sigmoid(logits)

    def experts(
        self, x: Array, logits: Array, networks: Sequence[Callable[[Array], Array]], *, top_k: int
    ) -> Array:
        rows = x.reshape(-1, x.shape[-1])
        scores = logits.reshape(-1, logits.shape[-1])
        chosen = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        shares = _softmax(np.take_along_axis(scores, chosen, axis=1))
        out = np.zeros_like(rows)
        for e, network in enumerate(networks):
            token, rank = np.nonzero(chosen == e)
            if token.size:
                out[token] += shares[token, rank, None] * network(rows[token])
        return out.reshape(x.shape)

    def mhc_open(self, x: Array, num_streams: int) -> Array:
        return np.repeat(x[:, :, None, :], num_streams, axis=2)

    def mhc_read(
        self, streams: Array, site: Mhc[Leaf], *, mixer: Mixer, iterations: int, eps: float
    ) -> tuple[Array, Array, Array | None]:
        n = streams.shape[2]
        read, write = _dense(site.read), _dense(site.write)
        mix = np.zeros(0, np.float32) if site.mix is None else _dense(site.mix)
        if site.projection is not None and site.gates is not None:
            flat = streams.reshape(*streams.shape[:2], -1)
            mean = np.mean(flat * flat, axis=-1, keepdims=True)
            found = flat / np.sqrt(mean + np.float32(eps)) @ _dense(site.projection).T
            gates = _dense(site.gates)
            read = read + gates[0] * found[..., :n]
            write = write + gates[1] * found[..., n : 2 * n]
            mix = mix + gates[2] * found[..., 2 * n :]
        u = np.einsum("...n,...nc->...c", _sigmoid(read), streams)
        return u, 2 * _sigmoid(write), _mixing_matrix(mix, n, mixer, iterations)

    def mhc_write(self, streams: Array, y: Array, post: Array, mix: Array | None) -> Array:
        mixed = streams if mix is None else np.einsum("...ij,...jc->...ic", mix, streams)
        return mixed + post[..., :, None] * y[..., None, :]

    def mhc_close(self, streams: Array) -> Array:
        mean: Array = streams.mean(axis=2)
        return mean

    def survival(self, previous: Array | None, logits: Array) -> Array:
        stay = _sigmoid(logits)
        return stay if previous is None else previous * stay

    def at_most(self, x: Array, threshold: float) -> Array:
        return cast(Array, x <= np.float32(threshold))

    def every(self, mask: Array) -> bool:
        return bool(mask.all())

    def select(self, mask: Array, yes: Array, no: Array) -> Array:
        return np.where(mask.reshape(mask.shape + (1,) * (yes.ndim - mask.ndim)), yes, no)


def check_room(length: int, count: int, capacity: int) -> None:
    """Refuse to remember more tokens than a state has room for."""
    if length + count > capacity:
        raise ContextLengthError(
            f"{length} tokens seen and {count} more do not fit into a state of {capacity}: shorten the prompt, ask for "
            "fewer tokens, or make the state larger"
        )


def permutation_matrices(n: int) -> NDArray[np.float32]:
    """The n! permutation matrices in lexicographic order, (n!, n, n); the first is the identity."""
    order = list(itertools.permutations(range(n)))
    return np.eye(n, dtype=np.float32)[order]


def _prepare_leaf(name: str, leaf: Stored) -> Leaf:
    if isinstance(leaf, Dense):
        return leaf.values.astype(np.float32)
    if isinstance(leaf, Int8):
        return IntegerLinear(
            codes=leaf.codes, scales=leaf.scales[:, None], activation_block=leaf.activation_block
        )
    if isinstance(leaf, Ternary):
        codes = ternary.unpack(leaf.packed, columns=leaf.columns, name=name)
        return IntegerLinear(
            codes=codes, scales=leaf.scales, activation_block=leaf.activation_block
        )
    return _round_latent(name, leaf)


def _round_latent(name: str, leaf: Latent) -> IntegerLinear:
    if leaf.kind == "ternary":
        codes, scales = ternary.quantize(leaf.values, block=leaf.weight_block, name=name)
    else:
        codes, row_scales = ternary.quantize_rows(leaf.values, name=name)
        scales = row_scales[:, None]
    return IntegerLinear(codes=codes, scales=scales, activation_block=leaf.activation_block)


def _dense(leaf: Leaf) -> Array:
    assert not isinstance(leaf, IntegerLinear)
    return leaf


def _project(x: Array, linear: Leaf) -> Array:
    if not isinstance(linear, IntegerLinear):
        return x @ linear.T
    rows = x.reshape(-1, x.shape[-1])
    x_codes, x_scales = ternary.quantize_activations(rows, block=linear.activation_block)
    sums = ternary.block_products(x_codes, linear.codes, block=linear.activation_block)
    share = sums.shape[0] // linear.scales.shape[1]
    y = np.zeros((rows.shape[0], linear.codes.shape[0]), np.float32)
    for b in range(sums.shape[0]):
        scale = linear.scales[:, b // share].astype(np.float32)
        y += sums[b].astype(np.float32) * x_scales[:, b, None] * scale[None, :]
    return y.reshape(*x.shape[:-1], -1)


def _mixing_matrix(logits: Array, n: int, mixer: Mixer, iterations: int) -> Array | None:
    if mixer == "identity":
        return None
    matrix: Array
    if mixer == "lite":
        matrix = np.einsum("...k,kij->...ij", _softmax(logits), permutation_matrices(n))
        return matrix
    matrix = np.exp(logits - logits.max(axis=-1, keepdims=True))
    matrix = matrix.reshape(*logits.shape[:-1], n, n)
    for _ in range(iterations):
        matrix = matrix / matrix.sum(axis=-2, keepdims=True)
        matrix = matrix / matrix.sum(axis=-1, keepdims=True)
    return matrix


def _kept(x: Array, storage: Storage) -> Array:
    """What vectors along the last axis are after they have been stored."""
    if storage == "float32":
        return x
    if storage == "float16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(np.float32)
    rows = x.reshape(-1, x.shape[-1])
    with np.errstate(invalid="ignore"):
        codes, scales = ternary.quantize_activations(rows, block=x.shape[-1])
    scales = np.where(np.isfinite(scales), scales, np.float32(np.nan))
    return (codes * scales).reshape(x.shape)


def _sigmoid(x: Array) -> Array:
    # exp(-x) overflows where x is very negative, and tanh is inaccurate there.
    y: Array = np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))
    return y


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    shares: Array = e / e.sum(axis=-1, keepdims=True)
    return shares


def _unit(x: Array) -> Array:
    unit: Array = x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + np.float32(1e-6))
    return unit
