"""This file holds the reference backend: every operation in plain NumPy, and therefore its specification in code."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.backends.reference.state import ReferenceState
from nanochat.blocks.plain import plain
from nanochat.config import Activation, Mixer
from nanochat.draws import Drawn, Draws, sample
from nanochat.ops import Slot, feed_forward, leaving_loop
from nanochat.rotary import Rotation
from nanochat.rows import Step, step_of_segments, step_of_sequences
from nanochat.weights import (
    Dense,
    FeedForward,
    Int8,
    Latent,
    Mhc,
    Stored,
    Ternary,
    Weights,
    map_leaves,
    replace_leaf,
)

__all__ = ["IntegerLinear", "ReferenceOps", "permutation_matrices", "pieces", "weighted"]


# Token ids (int64) and masks (bool) are arrays, too, and go by the same type.
Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegerLinear:
    """Unpacked codes (R, C) with scales (R, blocks), from a ternary matrix or an 8-bit table."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float16 | np.float32]
    activation_block: int


Leaf = IntegerLinear | Array


class ReferenceOps:
    """NumPy implementation of `nanochat.ops.Ops`, where every method is specified."""

    name = "reference"
    is_exact = True
    device = "cpu"
    free_bytes = None

    @property
    def details(self) -> dict[str, object]:
        return {}

    def prepare(self, weights: Weights[Stored]) -> Weights[Leaf]:
        """Unpack all codes to int8; round latent weights."""
        return map_leaves(_prepare_leaf, weights)

    def tokens(self, ids: NDArray[np.int64]) -> Array:
        return cast(Array, ids)

    def array(self, values: NDArray[np.float32]) -> Array:
        return np.array(values, np.float32)

    def numpy(self, x: Array) -> NDArray[np.float32]:
        return np.array(x, np.float32)

    def new_state(
        self, slots: Sequence[Slot], *, rows: int, capacity: int, pages: int | None = None
    ) -> ReferenceState:
        return ReferenceState(slots, rows=rows, capacity=capacity, pages=pages)

    def embed(self, tokens: Array, table: Leaf) -> Array:
        ids = cast(NDArray[np.int64], tokens)
        if isinstance(table, IntegerLinear):
            rows = ternary.dequantize(table.codes[ids.ravel()], table.scales[ids.ravel()])
            return rows.reshape(*ids.shape, -1)
        return np.asarray(table[ids], np.float32)

    def rms_norm(self, x: Array, gain: Leaf, *, eps: float) -> Array:
        mean = np.mean(x * x, axis=-1, keepdims=True)
        y: Array = x / np.sqrt(mean + np.float32(eps)) * _dense(gain)
        return y

    def project(self, x: Array, *linears: Leaf) -> tuple[Array, ...]:
        return tuple(_project(x, linear) for linear in linears)

    def rotate(self, x: Array, signs: Leaf, *, block: int, inverse: bool) -> Array:
        y = x if inverse else x * _dense(signs)
        h = 1
        while h < block:
            pairs = y.reshape(*y.shape[:-1], -1, 2, h)
            lower, upper = pairs[..., 0, :], pairs[..., 1, :]
            y = np.stack([lower + upper, lower - upper], axis=-2).reshape(y.shape)
            h *= 2
        y = y * np.float32(1 / np.sqrt(block))
        return y * _dense(signs) if inverse else y

    def scale(self, x: Array, factor: float) -> Array:
        return x * np.float32(factor)

    def add(self, x: Array, y: Array) -> Array:
        return x + y

    def parameter(self, leaf: Leaf) -> Array:
        return _dense(leaf)

    def last(self, x: Array, *, state: ReferenceState | None) -> Array:
        return x[:, -1:] if state is None else x[:, _step(x, state).last_tokens]

    def split_heads(self, x: Array, heads: int) -> Array:
        return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)

    def merge_heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])

    def rope(
        self,
        x: Array,
        *,
        rotation: Rotation,
        state: ReferenceState | None,
        segments: Array | None = None,
    ) -> Array:
        positions = _step(x, state, segments).positions.reshape(x.shape[:2])
        cos, sin = rotation.tables(positions.astype(np.float32)[:, :, None])
        first, second, rest = np.split(x, [rotation.dims // 2, rotation.dims], axis=-1)
        turned = [first * cos - second * sin, second * cos + first * sin]
        return np.concatenate([*turned, rest], axis=-1)

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        *,
        state: ReferenceState | None,
        slot: int,
        segments: Array | None = None,
    ) -> Array:
        heads, features = q.shape[2:]
        share, root = heads // k.shape[2], np.float32(np.sqrt(features))
        if state is not None:
            self.append_kv(k, v, state=state, slot=slot)
        queries, y = _flat(q), np.empty_like(_flat(q))
        for row, start, tokens in _step(q, state, segments).parts():
            if state is None:
                keys, values = _flat(k)[tokens], _flat(v)[tokens]
            else:
                keys, values = state.kept(slot, row, start + tokens.stop - tokens.start)
            keys, values = np.repeat(keys, share, axis=1), np.repeat(values, share, axis=1)
            for t in range(tokens.start, tokens.stop):
                seen = slice(start + t - tokens.start + 1)
                scores = np.einsum("hk,shk->hs", queries[t], keys[seen]) / root
                y[t] = np.einsum("hs,shk->hk", _softmax(scores), values[seen])
        return y.reshape(q.shape)

    def append_kv(self, k: Array, v: Array, *, state: ReferenceState, slot: int) -> None:
        state.append_kv(slot, _flat(k), _flat(v))

    def short_conv(
        self,
        x: Array,
        kernel: Leaf,
        *,
        state: ReferenceState | None,
        slot: int,
        segments: Array | None = None,
    ) -> Array:
        weight = _dense(kernel)
        taps = weight.shape[1]
        y = np.zeros_like(_flat(x))
        for row, _, tokens in _step(x, state, segments).parts():
            before = np.zeros((taps - 1, x.shape[2]), np.float32)
            if state is not None:
                before = state.arrays[slot][0][row]
            padded = np.concatenate([before, _flat(x)[tokens]])
            if state is not None:
                state.arrays[slot][0][row] = padded[len(padded) - (taps - 1) :]
            for j in range(taps):
                y[tokens] += weight[:, j] * padded[j : j + tokens.stop - tokens.start]
        return (y * _sigmoid(y)).reshape(x.shape)

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
        segments: Array | None = None,
    ) -> Array:
        share = v.shape[2] // k.shape[2]
        q, k = np.repeat(q, share, axis=2), np.repeat(k, share, axis=2)
        queries = _flat(_unit(q)) / np.float32(np.sqrt(q.shape[-1]))
        keys, values = _flat(_unit(k)), _flat(v)
        rates = _flat(_sigmoid(beta))
        time = np.logaddexp(np.float32(0), decay + _dense(time_bias))
        keep = _flat(np.exp(-np.exp(_dense(log_rate)) * time))
        y = np.empty_like(values)
        for row, _, tokens in _step(q, state, segments).parts():
            memory = np.zeros((*q.shape[2:], v.shape[3]), np.float32)
            if state is not None:
                memory = state.arrays[slot][0][row]
            for t in range(tokens.start, tokens.stop):
                memory = memory * keep[t, :, None, None]
                error = values[t] - np.einsum("hk,hkv->hv", keys[t], memory)
                memory = memory + np.einsum("hk,hv->hkv", keys[t], error * rates[t, :, None])
                y[t] = np.einsum("hk,hkv->hv", queries[t], memory)
            if state is not None:
                state.arrays[slot][0][row] = memory
        return y.reshape(v.shape)

    def swiglu(self, gate: Array, up: Array) -> Array:
        return gate * _sigmoid(gate) * up

    def relu2(self, x: Array, up: Array | None) -> Array:
        y = np.square(np.maximum(x, np.float32(0)))
        return y if up is None else y * up

    def gate(self, x: Array, logits: Array) -> Array:
        return x * _sigmoid(logits)

    def experts(
        self,
        x: Array,
        logits: Array,
        networks: Sequence[FeedForward[Leaf]],
        *,
        top_k: int,
        activation: Activation,
        eps: float,
    ) -> Array:
        rows = x.reshape(-1, x.shape[-1])
        scores = logits.reshape(-1, logits.shape[-1])
        chosen = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        shares = _softmax(np.take_along_axis(scores, chosen, axis=1))
        out = np.zeros_like(rows)
        for e, network in enumerate(networks):
            token, rank = np.nonzero(chosen == e)
            if token.size:
                given = rows[token][None]
                y = feed_forward(given, network, self, activation=activation, eps=eps)[0]
                out[token] += shares[token, rank, None] * y
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
            found = _dense_product(flat / np.sqrt(mean + np.float32(eps)), _dense(site.projection))
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

    def loop(
        self,
        x: Array,
        step: Callable[[Array, Array | None], Array],
        survive: Callable[[Array, Array | None], Array],
        finish: Callable[[int], None],
        *,
        steps: int,
        threshold: float,
    ) -> Array:
        def leave(survival: Array) -> tuple[Array, bool]:
            left = survival <= np.float32(1.0 - threshold)
            return cast(Array, left), bool(left.all())

        return leaving_loop(x, step, survive, finish, self, steps=steps, leave=leave)

    def select(self, mask: Array, yes: Array, no: Array) -> Array:
        return np.where(mask.reshape(mask.shape + (1,) * (yes.ndim - mask.ndim)), yes, no)

    def sample(self, logits: Array, draws: Draws) -> Drawn:
        return sample(logits, draws)

    # Loss.

    def cross_entropy(
        self, x: Array, table: Leaf, targets: Array, weights: Array | None = None
    ) -> Array:
        ids = cast(NDArray[np.int64], targets)
        (logits,) = self.project(x, table)
        logits = logits - logits.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(logits, np.maximum(ids, 0)[..., None], axis=-1)[..., 0]
        losses = np.log(np.exp(logits).sum(axis=-1)) - chosen
        return weighted(losses, ids, weights)

    # Weights that move.

    def replace(self, weights: Weights[Leaf], name: str, leaf: Stored) -> Weights[Leaf]:
        return replace_leaf(weights, name, _prepare_leaf(name, leaf))


def weighted(losses: Array, targets: NDArray[np.int64], weights: Array | None) -> Array:
    """Losses times weights, 0 where there is no target or the weight is 0; see `nanochat.ops.Ops.cross_entropy`."""
    factors = np.ones_like(losses) if weights is None else weights
    counts = (targets >= 0) & (factors != 0)
    return np.where(counts, losses, np.float32(0)) * factors


def pieces(tokens: int, vocabulary: int) -> list[slice]:
    """Parts of so many tokens whose logits may exist at once: about 16 MB, or 128 rows of a very large vocabulary.

    That is what the caches of most processors hold, in enough rows for a fast product.
    """
    count = max(128, 2**22 // vocabulary)
    return [slice(start, start + count) for start in range(0, tokens, count)]


def permutation_matrices(n: int) -> NDArray[np.float32]:
    """The n! permutation matrices in lexicographic order, (n!, n, n); the first is the identity."""
    order = list(itertools.permutations(range(n)))
    return np.eye(n, dtype=np.float32)[order]


def _prepare_leaf(name: str, leaf: Stored) -> Leaf:
    leaf = plain(leaf)
    if isinstance(leaf, Dense):
        return leaf.values.astype(np.float32)
    if isinstance(leaf, Int8):
        return IntegerLinear(
            codes=leaf.codes, scales=leaf.scales, activation_block=leaf.activation_block
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
        codes, scales = ternary.quantize_table(leaf.values, block=leaf.weight_block, name=name)
    return IntegerLinear(codes=codes, scales=scales, activation_block=leaf.activation_block)


def _step(x: Array, state: ReferenceState | None, segments: Array | None = None) -> Step:
    """Which tokens of x (B, T, ...) are whose."""
    if segments is not None:
        assert state is None, "what is packed has no state"
        return step_of_segments(cast(NDArray[np.int64], segments))
    if state is None:
        return step_of_sequences(*x.shape[:2])
    assert state.step is not None, "call `begin` of the state first"
    return state.step


def _flat(x: Array) -> Array:
    """Tokens in one axis, (B, T, ...) to (N, ...)."""
    return x.reshape(-1, *x.shape[2:])


def _dense(leaf: Leaf) -> Array:
    assert not isinstance(leaf, IntegerLinear)
    return leaf


def _project(x: Array, linear: Leaf) -> Array:
    if not isinstance(linear, IntegerLinear):
        return _dense_product(x, linear)
    rows = x.reshape(-1, x.shape[-1])
    x_codes, x_scales = ternary.quantize_activations(rows, block=linear.activation_block)
    sums = ternary.block_products(x_codes, linear.codes, block=linear.activation_block)
    share = sums.shape[0] // linear.scales.shape[1]
    y = np.zeros((rows.shape[0], linear.codes.shape[0]), np.float32)
    for b in range(sums.shape[0]):
        scale = linear.scales[:, b // share].astype(np.float32)
        y += sums[b].astype(np.float32) * x_scales[:, b, None] * scale[None, :]
    return y.reshape(*x.shape[:-1], -1)


def _dense_product(x: Array, weight: Array) -> Array:
    """``x @ weight.T``, a token at a time: for many, a library may add in another order than for one."""
    rows = [weight @ row for row in x.reshape(-1, x.shape[-1])]
    return np.array(rows, np.float32).reshape(*x.shape[:-1], len(weight))


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
