"""This file holds the MLX backend, for the GPU of Apple silicon; it also runs on the CPU of any machine.

Lengths of sequences and rotation angles are kept on the host, so that nothing waits for the GPU but `numpy`, `every`
and `experts`.

From the M5 on, MLX rounds the factors of float32 products to 11 bits unless ``MLX_ENABLE_TF32=0`` is set when it starts
(github.com/ml-explore/mlx, issue 3860). Set it where results must equal other backends' to more than three digits.

Legend: see `nanochat.ops`.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from nanochat.backends.mlx.delta import chunked_delta_rule, stepwise_delta_rule
from nanochat.backends.mlx.linears import (
    Leaf,
    PackedLinear,
    WideLinear,
    packed_product,
    prepare_leaf,
    round_blocks,
)
from nanochat.backends.mlx.mixing import mixing_matrix
from nanochat.backends.mlx.rotation import turned
from nanochat.backends.mlx.state import MlxState
from nanochat.backends.reference.ops import pieces
from nanochat.config import Activation, Mixer
from nanochat.draws import Drawn, Draws, sample
from nanochat.ops import Slot, feed_forward, leaving_loop
from nanochat.rotary import Rotation
from nanochat.rows import Group, Step
from nanochat.weights import FeedForward, Mhc, Stored, Weights, map_leaves, replace_leaf

__all__ = ["MlxOps"]

# MLX's CPU kernel adds up all columns in one float32 number: from 5,000 on its error exceeds 1e-6. Its GPU kernels add
# in 32 lanes or more.
_MOST_COLUMNS_ON_CPU = 2048
# Below this many tokens one step after another is less work than a chunk.
_FEW_TOKENS = 8

_Elementwise = Callable[..., mx.array]
_DeltaRule = Callable[..., tuple[mx.array, mx.array]]


class MlxOps:
    """MLX implementation of `nanochat.ops.Ops`, where every method is specified."""

    name = "mlx"
    is_exact = True

    def __init__(self) -> None:
        on_gpu = mx.default_device().type == mx.DeviceType.gpu
        # In the words of MLX.
        self.device = "gpu" if on_gpu else "cpu"
        # Elementwise functions become one GPU kernel each; on a CPU that would call a C++ compiler.
        fused: Callable[[_Elementwise], _Elementwise] = mx.compile if on_gpu else _unchanged
        self._most_columns = 1 << 30 if on_gpu else _MOST_COLUMNS_ON_CPU
        self._angles: dict[Rotation, tuple[mx.array, mx.array]] = {}
        self._sites: dict[int, tuple[Leaf, mx.array, mx.array, mx.array | None]] = {}
        self._round = fused(round_blocks)
        self._swiglu = fused(_swiglu)
        self._relu2_gated = fused(_relu2_gated)
        self._gate = fused(_gate)

    @property
    def details(self) -> dict[str, object]:
        return {}

    @property
    def free_bytes(self) -> int | None:
        """None: the GPU of a Mac has the machine's memory."""
        return None

    def prepare(self, weights: Weights[Stored]) -> Weights[Leaf]:
        """Pack all codes for MLX; round latent weights."""
        self._sites.clear()
        return map_leaves(prepare_leaf, weights)

    def tokens(self, ids: NDArray[np.int64]) -> mx.array:
        return mx.array(np.asarray(ids, np.int32))

    def array(self, values: NDArray[np.float32]) -> mx.array:
        return mx.array(np.asarray(values, np.float32))

    def numpy(self, x: mx.array) -> NDArray[np.float32]:
        return np.array(x.astype(mx.float32))

    def new_state(
        self, slots: Sequence[Slot], *, rows: int, capacity: int, pages: int | None = None
    ) -> MlxState:
        return MlxState(slots, rows=rows, capacity=capacity, pages=pages)

    def embed(self, tokens: mx.array, table: Leaf) -> mx.array:
        if isinstance(table, WideLinear):
            return table.values[tokens]
        if not isinstance(table, PackedLinear):
            return table[tokens].astype(mx.float32)
        rows = mx.dequantize(
            table.words[tokens],
            table.scales[tokens],
            table.biases[tokens],
            group_size=table.group,
            bits=table.bits,
        )
        return rows[..., : table.columns]

    def rms_norm(self, x: mx.array, gain: Leaf, *, eps: float) -> mx.array:
        return mx.fast.rms_norm(x, _dense(gain), eps)

    def project(self, x: mx.array, *linears: Leaf) -> tuple[mx.array, ...]:
        rounded: dict[int, mx.array] = {}
        results = []
        for linear in linears:
            if isinstance(linear, mx.array):
                results.append(x @ linear.T.astype(mx.float32))
                continue
            block = linear.activation_block
            if block not in rounded:
                blocks = x.reshape(*x.shape[:-1], -1, block)
                rounded[block] = self._round(blocks).reshape(x.shape)
            if isinstance(linear, WideLinear):
                results.append(rounded[block] @ linear.values.T)
                continue
            results.append(packed_product(rounded[block], linear, most_columns=self._most_columns))
        return tuple(results)

    def rotate(self, x: mx.array, signs: Leaf, *, block: int, inverse: bool) -> mx.array:
        return turned(x, _dense(signs), block=block, inverse=inverse)

    def scale(self, x: mx.array, factor: float) -> mx.array:
        return x * float(np.float32(factor))

    def add(self, x: mx.array, y: mx.array) -> mx.array:
        return x + y

    def parameter(self, leaf: Leaf) -> mx.array:
        return _dense(leaf)

    def last(self, x: mx.array, *, state: MlxState | None) -> mx.array:
        if state is None:
            return x[:, -1:]
        step = _step(state)
        return x[:, mx.array(step.last_tokens)] if len(step.rows) < x.shape[1] else x

    def split_heads(self, x: mx.array, heads: int) -> mx.array:
        return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)

    def merge_heads(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])

    def rope(
        self,
        x: mx.array,
        *,
        rotation: Rotation,
        state: MlxState | None,
        segments: mx.array | None = None,
    ) -> mx.array:
        cos, sin = self._rotations(rotation, x.shape[1], state)
        if segments is not None:
            index = mx.arange(x.shape[1])[None]
            starts = mx.cummax(mx.where(_begins(segments), index, 0), axis=1)
            cos, sin = (table[0, :, 0][index - starts][:, :, None] for table in (cos, sin))
        half, dims = rotation.dims // 2, rotation.dims
        first, second, rest = x[..., :half], x[..., half:dims], x[..., dims:]
        turned = [first * cos - second * sin, second * cos + first * sin]
        return mx.concatenate([*turned, rest], axis=-1)

    def attention(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        *,
        state: MlxState | None,
        slot: int,
        segments: mx.array | None = None,
    ) -> mx.array:
        scale = q.shape[-1] ** -0.5
        if state is None:
            mask: str | mx.array | None = "causal" if q.shape[1] > 1 else None
            if segments is not None:
                same = segments[:, :, None] == segments[:, None, :]
                mask = mx.logical_and(same, mx.tri(q.shape[1], dtype=mx.bool_))[:, None]
            given = (x.swapaxes(1, 2) for x in (q, k, v))
            y = mx.fast.scaled_dot_product_attention(*given, scale=scale, mask=mask)
            return y.swapaxes(1, 2)
        self.append_kv(k, v, state=state, slot=slot)

        def attend(group: Group, queries: mx.array) -> mx.array:
            # Whole pages, so that a row is added up in one order however long the rows beside it are.
            keys, values = state.kept(slot, group)
            seen = group.starts[:, None] + np.arange(group.count)
            mask = mx.array((np.arange(keys.shape[2]) <= seen[:, :, None])[:, None])
            return mx.fast.scaled_dot_product_attention(
                queries.swapaxes(1, 2), keys, values, scale=scale, mask=mask
            ).swapaxes(1, 2)

        return _by_group(state, attend, q)

    def append_kv(self, k: mx.array, v: mx.array, *, state: MlxState, slot: int) -> None:
        state.append_kv(slot, k[0], v[0])

    def short_conv(
        self,
        x: mx.array,
        kernel: Leaf,
        *,
        state: MlxState | None,
        slot: int,
        segments: mx.array | None = None,
    ) -> mx.array:
        weight = _dense(kernel)
        taps = weight.shape[1]

        def convolve(padded: mx.array, length: int) -> mx.array:
            y = sum(
                (weight[:, j] * padded[:, j : j + length] for j in range(1, taps)),
                start=weight[:, 0] * padded[:, :length],
            )
            return y * mx.sigmoid(y)

        if segments is not None:
            y = weight[:, -1] * x
            for back in range(1, min(taps, x.shape[1])):
                same = segments[:, back:] == segments[:, :-back]
                part = weight[:, -1 - back] * x[:, :-back] * same[:, :, None]
                y = y + mx.pad(part, [(0, 0), (back, 0), (0, 0)])
            return y * mx.sigmoid(y)
        if state is None:
            return convolve(mx.pad(x, [(0, 0), (taps - 1, 0), (0, 0)]), x.shape[1])

        def of_group(group: Group, x: mx.array) -> mx.array:
            rows, (before,) = mx.array(group.rows), state.arrays[slot]
            # MLX divides by zero where it writes to no elements.
            if taps == 1:
                return convolve(x, x.shape[1])
            padded = mx.concatenate([before[rows], x], axis=1)
            before[rows] = padded[:, x.shape[1] :]
            return convolve(padded, x.shape[1])

        return _by_group(state, of_group, x)

    def delta_rule(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        beta: mx.array,
        decay: mx.array,
        log_rate: Leaf,
        time_bias: Leaf,
        *,
        state: MlxState | None,
        slot: int,
        segments: mx.array | None = None,
    ) -> mx.array:
        q = _unit(q) * q.shape[-1] ** -0.5
        k, share = _unit(k), v.shape[2] // k.shape[2]
        if share > 1:
            q, k = (mx.repeat(x, share, axis=2) for x in (q, k))
        step = mx.sigmoid(beta)
        time = mx.logaddexp(decay + _dense(time_bias), mx.array(0.0))
        log_keep = -mx.exp(_dense(log_rate)) * time

        def run(rule: _DeltaRule, memory: mx.array, *given: mx.array) -> tuple[mx.array, mx.array]:
            # Heads in front of tokens, so that products are over the last two axes.
            q, k, v, step, log_keep = (x.swapaxes(1, 2) for x in given)
            y, memory = rule(q, k, v, step[..., None], log_keep, memory)
            return y.swapaxes(1, 2), memory

        if segments is not None:
            # A document begins with nothing of what was remembered before.
            log_keep = mx.where(_begins(segments)[:, :, None], -mx.inf, log_keep)
        if state is None:
            memory = mx.zeros((q.shape[0], q.shape[2], q.shape[3], v.shape[3]))
            rule = stepwise_delta_rule if q.shape[1] < _FEW_TOKENS else chunked_delta_rule
            return run(rule, memory, q, k, v, step, log_keep)[0]

        def of_group(group: Group, *given: mx.array) -> mx.array:
            rows, (memory,) = mx.array(group.rows), state.arrays[slot]
            # In chunks, the numbers would depend on where the tokens were cut.
            y, memory[rows] = run(stepwise_delta_rule, memory[rows], *given)
            return y

        return _by_group(state, of_group, q, k, v, step, log_keep)

    def swiglu(self, gate: mx.array, up: mx.array) -> mx.array:
        return self._swiglu(gate, up)

    def relu2(self, x: mx.array, up: mx.array | None) -> mx.array:
        return mx.square(mx.maximum(x, 0)) if up is None else self._relu2_gated(x, up)

    def gate(self, x: mx.array, logits: mx.array) -> mx.array:
        return self._gate(x, logits)

    def experts(
        self,
        x: mx.array,
        logits: mx.array,
        networks: Sequence[FeedForward[Leaf]],
        *,
        top_k: int,
        activation: Activation,
        eps: float,
    ) -> mx.array:
        """See :meth:`nanochat.ops.Ops.experts`; waits once for the logits, to run only what was chosen."""
        rows = x.reshape(-1, x.shape[-1])
        scores = self.numpy(logits).reshape(-1, logits.shape[-1])
        chosen = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        best = np.take_along_axis(scores, chosen, axis=1)
        shares = np.exp(best - best[:, :1])
        shares /= shares.sum(axis=1, keepdims=True)
        out = mx.zeros_like(rows)
        for e, network in enumerate(networks):
            token, rank = np.nonzero(chosen == e)
            if token.size:
                index = mx.array(token)
                share = mx.array(shares[token, rank, None])
                y = feed_forward(rows[index], network, self, activation=activation, eps=eps)
                out = out.at[index].add(share * y)
        return out.reshape(x.shape)

    def mhc_open(self, x: mx.array, num_streams: int) -> mx.array:
        return mx.repeat(x[:, :, None], num_streams, axis=2)

    def mhc_read(
        self, streams: mx.array, site: Mhc[Leaf], *, mixer: Mixer, iterations: int, eps: float
    ) -> tuple[mx.array, mx.array, mx.array | None]:
        n = streams.shape[2]
        if site.projection is None or site.gates is None:
            pre, post, mix = self._static_coefficients(site, n, mixer, iterations)
        else:
            flat = mx.fast.rms_norm(streams.flatten(2), None, eps)
            found = flat @ _dense(site.projection).T
            gates = _dense(site.gates)
            pre = mx.sigmoid(_dense(site.read) + gates[0] * found[..., :n])
            post = 2 * mx.sigmoid(_dense(site.write) + gates[1] * found[..., n : 2 * n])
            mix = None
            if site.mix is not None:
                logits = _dense(site.mix) + gates[2] * found[..., 2 * n :]
                mix = mixing_matrix(logits, n, mixer, iterations)
        # A product and a sum, since a matrix product may round its factors.
        return (pre[..., None] * streams).sum(axis=2), post, mix

    def mhc_write(
        self, streams: mx.array, y: mx.array, post: mx.array, mix: mx.array | None
    ) -> mx.array:
        mixed = streams if mix is None else mix @ streams
        return mixed + post[..., None] * y[..., None, :]

    def mhc_close(self, streams: mx.array) -> mx.array:
        return streams.mean(axis=2)

    def survival(self, previous: mx.array | None, logits: mx.array) -> mx.array:
        stay = mx.sigmoid(logits)
        return stay if previous is None else previous * stay

    def loop(
        self,
        x: mx.array,
        step: Callable[[mx.array, mx.array | None], mx.array],
        survive: Callable[[mx.array, mx.array | None], mx.array],
        finish: Callable[[int], None],
        *,
        steps: int,
        threshold: float,
    ) -> mx.array:
        def leave(survival: mx.array) -> tuple[mx.array, bool]:
            left = survival <= 1.0 - threshold
            return left, bool(left.all().item())

        return leaving_loop(x, step, survive, finish, self, steps=steps, leave=leave)

    def select(self, mask: mx.array, yes: mx.array, no: mx.array) -> mx.array:
        return mx.where(mask.reshape(*mask.shape, *(1,) * (yes.ndim - mask.ndim)), yes, no)

    def sample(self, logits: mx.array, draws: Draws) -> Drawn:
        # On the host: a step there has one row of logits for each sequence and waits for its token anyway, since text
        # and stop strings are the host's; and a draw by MLX's own functions would be another definition.
        return sample(self.numpy(logits), draws)

    # Loss.

    def cross_entropy(
        self, x: mx.array, table: Leaf, targets: mx.array, weights: mx.array | None = None
    ) -> mx.array:
        """See :meth:`nanochat.ops.Ops.cross_entropy`; packed tables have no gradient."""
        rows, ids = x.flatten(0, 1), mx.maximum(targets.flatten(), 0)
        vocabulary = len(table) if isinstance(table, mx.array) else table.rows
        losses = []
        for part in pieces(len(rows), vocabulary):
            (logits,) = self.project(rows[part], table)
            chosen = mx.take_along_axis(logits, ids[part, None], axis=-1)[:, 0]
            losses.append(mx.logsumexp(logits, axis=-1) - chosen)
        factors = mx.ones(targets.shape) if weights is None else weights
        counts = mx.logical_and(targets >= 0, factors != 0)
        return mx.where(counts, mx.concatenate(losses).reshape(targets.shape), 0.0) * factors

    # Weights that move.

    def replace(self, weights: Weights[Leaf], name: str, leaf: Stored) -> Weights[Leaf]:
        # A site's coefficients are found by one of the leaves that they come from.
        self._sites.clear()
        return replace_leaf(weights, name, prepare_leaf(name, leaf))

    def _rotations(
        self, rotation: Rotation, length: int, state: MlxState | None
    ) -> tuple[mx.array, mx.array]:
        """Cosines and sines of the angles of `length` tokens, (1, T, 1, half)."""
        step = None if state is None else _step(state)
        end = length if step is None else int(step.positions.max()) + 1
        whole = self._angles.get(rotation)
        if whole is None or whole[0].shape[0] < end:
            # Powers of two: a growing sequence fills few tables.
            # By NumPy: a GPU's cosines are less exact at large angles.
            places = np.arange(1 << end.bit_length(), dtype=np.float32)
            cosines, sines = rotation.tables(places)
            whole = self._angles[rotation] = mx.array(cosines), mx.array(sines)
        if step is None:
            cos, sin = (table[None, :length, None] for table in whole)
            return cos, sin
        positions = mx.array(step.positions)
        cos, sin = (table[positions][None, :, None] for table in whole)
        return cos, sin

    def _static_coefficients(
        self, site: Mhc[Leaf], n: int, mixer: Mixer, iterations: int
    ) -> tuple[mx.array, mx.array, mx.array | None]:
        """Coefficients that no token changes, computed once per site."""
        key = id(site.read)
        # The leaf is held with its results, so that no later leaf can have its address.
        if key not in self._sites:
            mix = None
            if site.mix is not None:
                mix = mixing_matrix(_dense(site.mix), n, mixer, iterations)
            pre, post = mx.sigmoid(_dense(site.read)), 2 * mx.sigmoid(_dense(site.write))
            self._sites[key] = site.read, pre, post, mix
        return self._sites[key][1:]


def _step(state: MlxState) -> Step:
    assert state.step is not None, "call `begin` of the state first"
    return state.step


def _by_group(state: MlxState, compute: Callable[..., mx.array], *given: mx.array) -> mx.array:
    """What `compute` gives for each group of the step, from arrays (M, T, ...), put where the group's tokens are."""
    groups = _step(state).groups()
    if groups[0].tokens is None:
        shape = len(groups[0].rows), groups[0].count
        y = compute(groups[0], *(x.reshape(*shape, *x.shape[2:]) for x in given))
        return y.reshape(1, -1, *y.shape[2:])
    parts, places = [], []
    for group in groups:
        assert group.tokens is not None
        tokens = mx.array(group.tokens)
        part = compute(group, *(x[0, tokens] for x in given))
        parts.append(part.reshape(-1, *part.shape[2:]))
        places.append(group.tokens.reshape(-1))
    order = mx.array(np.argsort(np.concatenate(places)))
    return mx.concatenate(parts)[order][None]


def _begins(segments: mx.array) -> mx.array:
    """Where a document begins, (B, T)."""
    first = mx.ones((segments.shape[0], 1), mx.bool_)
    return mx.concatenate([first, segments[:, 1:] != segments[:, :-1]], axis=1)


def _unchanged(function: _Elementwise) -> _Elementwise:
    return function


def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return gate * mx.sigmoid(gate) * up


def _relu2_gated(x: mx.array, up: mx.array) -> mx.array:
    return mx.square(mx.maximum(x, 0)) * up


def _gate(x: mx.array, logits: mx.array) -> mx.array:
    return x * mx.sigmoid(logits)


def _dense(leaf: Leaf) -> mx.array:
    assert isinstance(leaf, mx.array)
    return leaf


def _unit(x: mx.array) -> mx.array:
    return x * mx.rsqrt((x * x).sum(axis=-1, keepdims=True) + 1e-6)
