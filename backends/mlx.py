"""This file holds the MLX backend, for the GPU of Apple silicon; it also runs on the CPU of any machine.

Ternary and 8-bit linears stay packed. MLX's affine form ``scale * q + bias`` holds them exactly: in 2 bits with
``q = code + 1`` and ``bias = -scale``, in 8 bits with ``q = code + 128`` and ``bias = -128 * scale``. `mx.quantize` is
never called: it spreads its levels over the range of a group, which is another rounding. The input is rounded to int8
as the contract says and multiplied as float32 numbers, since MLX has no integer products.

Lengths of sequences and rotation angles are kept on the host, so that nothing waits for the GPU but `numpy`, `every`
and `experts`.

From the M5 on, MLX rounds the factors of float32 products to 11 bits unless ``MLX_ENABLE_TF32=0`` is set when it starts
(github.com/ml-explore/mlx, issue 3860). Set it where results must equal other backends' to more than three digits.

Legend: see `nanochat.ops`; N chunks of L tokens in the delta rule.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.backends.reference import check_room, permutation_matrices
from nanochat.config import Mixer
from nanochat.errors import ShapeError
from nanochat.ops import Slot
from nanochat.weights import Dense, Int8, Latent, Mhc, Stored, Ternary, Weights, map_leaves

__all__ = ["MlxOps", "MlxState", "PackedLinear"]

# ruff: noqa: D102 - every operation is specified in `nanochat.ops.Ops`.

_CHUNK = 64
# MLX's CPU kernel adds up all columns in one float32 number: from 5,000 on its error exceeds 1e-6. Its GPU kernels add
# in 32 lanes or more.
_MOST_COLUMNS_ON_CPU = 2048
# Below this many tokens one step after another is less work than a chunk.
_FEW_TOKENS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedLinear:
    """Codes of R rows in uint32 words, with one scale and one bias for each group of columns, (R, groups).

    Rows are padded with zero codes to whole groups; `columns` is the width without them.
    """

    words: mx.array
    scales: mx.array
    biases: mx.array
    bits: int
    group: int
    columns: int
    activation_block: int


Leaf = PackedLinear | mx.array

_Elementwise = Callable[..., mx.array]


class MlxState:
    """Lengths of the sequences (B,), on the host, and the arrays of every slot, each with B in front.

    Keys and values are (B, heads, capacity, features).
    """

    def __init__(self, slots: Sequence[Slot], batch: int, capacity: int) -> None:
        self.capacity = capacity
        self.lengths = np.zeros(batch, np.int64)
        self.arrays: list[list[mx.array]] = []
        for slot in slots:
            if slot.kind == "attention":
                shape: tuple[int, ...] = (batch, slot.heads, capacity, slot.key_dim)
                self.arrays.append([mx.zeros(shape), mx.zeros(shape)])
            elif slot.kind == "conv":
                self.arrays.append([mx.zeros((batch, slot.taps - 1, slot.features))])
            else:
                shape = (batch, slot.heads, slot.key_dim, slot.value_dim)
                self.arrays.append([mx.zeros(shape)])


class MlxOps:
    """MLX implementation of `nanochat.ops.Ops`, where every method is specified."""

    name = "mlx"

    def __init__(self) -> None:
        on_gpu = mx.default_device().type == mx.DeviceType.gpu
        # Elementwise functions become one GPU kernel each; on a CPU that would call a C++ compiler.
        fused: Callable[[_Elementwise], _Elementwise] = mx.compile if on_gpu else _unchanged
        self._most_columns = 1 << 30 if on_gpu else _MOST_COLUMNS_ON_CPU
        self._angles: dict[tuple[int, float], tuple[mx.array, mx.array]] = {}
        self._sites: dict[int, tuple[Leaf, mx.array, mx.array, mx.array | None]] = {}
        self._round = fused(_round_blocks)
        self._swiglu = fused(_swiglu)
        self._relu2_gated = fused(_relu2_gated)
        self._gate = fused(_gate)

    def prepare(self, weights: Weights[Stored]) -> Weights[Leaf]:
        """Pack all codes for MLX; round latent weights."""
        self._sites.clear()
        return map_leaves(_prepare_leaf, weights)

    def tokens(self, ids: NDArray[np.int64]) -> mx.array:
        return mx.array(np.asarray(ids, np.int32))

    def array(self, values: NDArray[np.float32]) -> mx.array:
        return mx.array(np.asarray(values, np.float32))

    def numpy(self, x: mx.array) -> NDArray[np.float32]:
        return np.array(x.astype(mx.float32))

    def new_state(self, slots: Sequence[Slot], *, batch: int, capacity: int) -> MlxState:
        return MlxState(slots, batch, capacity)

    def stack(self, states: Sequence[MlxState]) -> MlxState:
        whole = MlxState((), 0, states[0].capacity)
        whole.lengths = np.concatenate([state.lengths for state in states])
        whole.arrays = [
            [mx.concatenate(list(parts)) for parts in zip(*slot, strict=True)]
            for slot in zip(*(state.arrays for state in states), strict=True)
        ]
        return whole

    def advance(self, state: MlxState, tokens: mx.array) -> None:
        state.lengths += tokens.shape[1]
        # What is remembered but not read in this step would otherwise pile up as a graph of pending writes.
        arrays = [array for slot in state.arrays for array in slot]
        mx.async_eval(arrays)  # type: ignore[no-untyped-call]

    def embed(self, tokens: mx.array, table: Leaf) -> mx.array:
        if not isinstance(table, PackedLinear):
            return table[tokens]
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
            if not isinstance(linear, PackedLinear):
                results.append(x @ linear.T)
                continue
            block = linear.activation_block
            if block not in rounded:
                blocks = x.reshape(*x.shape[:-1], -1, block)
                rounded[block] = self._round(blocks).reshape(x.shape)
            results.append(self._packed_product(rounded[block], linear))
        return tuple(results)

    def add(self, x: mx.array, y: mx.array) -> mx.array:
        return x + y

    def parameter(self, leaf: Leaf) -> mx.array:
        return _dense(leaf)

    def last(self, x: mx.array) -> mx.array:
        return x[:, -1:]

    def split_heads(self, x: mx.array, heads: int) -> mx.array:
        return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)

    def merge_heads(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])

    def rope(self, x: mx.array, *, theta: float, state: MlxState | None) -> mx.array:
        half = x.shape[-1] // 2
        cos, sin = self._rotations(half, theta, x.shape[1], state)
        first, second = x[..., :half], x[..., half:]
        return mx.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def attention(
        self, q: mx.array, k: mx.array, v: mx.array, *, state: MlxState | None, slot: int
    ) -> mx.array:
        length = q.shape[1]
        mask: str | mx.array | None = "causal" if length > 1 else None
        if state is None:
            keys, values = k.swapaxes(1, 2), v.swapaxes(1, 2)
        else:
            self.remember(k, v, state=state, slot=slot)
            end = int(state.lengths.max()) + length
            keys, values = (whole[:, :, :end] for whole in state.arrays[slot])
            if not _are_equal(state.lengths):
                seen = state.lengths[:, None] + np.arange(length)
                mask = mx.array((np.arange(end) <= seen[:, :, None])[:, None])
        # "causal" lines up the last query with the last key, also when there are more keys than queries.
        y = mx.fast.scaled_dot_product_attention(
            q.swapaxes(1, 2), keys, values, scale=q.shape[-1] ** -0.5, mask=mask
        )
        return y.swapaxes(1, 2)

    def remember(self, k: mx.array, v: mx.array, *, state: MlxState, slot: int) -> None:
        length = k.shape[1]
        check_room(int(state.lengths.max()), length, state.capacity)
        keys, values = state.arrays[slot]
        if _are_equal(state.lengths):
            start = int(state.lengths[0])
            keys[:, :, start : start + length] = k.swapaxes(1, 2)
            values[:, :, start : start + length] = v.swapaxes(1, 2)
            return
        rows = mx.arange(k.shape[0])[:, None]
        positions = mx.array(state.lengths[:, None] + np.arange(length))
        keys[rows, :, positions] = k
        values[rows, :, positions] = v

    def short_conv(
        self, x: mx.array, kernel: Leaf, *, state: MlxState | None, slot: int
    ) -> mx.array:
        weight = _dense(kernel)
        taps = weight.shape[1]
        if state is None:
            padded = mx.pad(x, [(0, 0), (taps - 1, 0), (0, 0)])
        else:
            padded = mx.concatenate([state.arrays[slot][0], x], axis=1)
            state.arrays[slot][0] = padded[:, x.shape[1] :]
        y = sum(
            (weight[:, j] * padded[:, j : j + x.shape[1]] for j in range(1, taps)),
            start=weight[:, 0] * padded[:, : x.shape[1]],
        )
        return y * mx.sigmoid(y)

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
    ) -> mx.array:
        q = _unit(q) * q.shape[-1] ** -0.5
        k = _unit(k)
        step = mx.sigmoid(beta)
        time = mx.logaddexp(decay + _dense(time_bias), mx.array(0.0))
        log_keep = -mx.exp(_dense(log_rate)) * time
        memory = mx.zeros((q.shape[0], q.shape[2], q.shape[3], v.shape[3]))
        if state is not None:
            memory = state.arrays[slot][0]
        run = _delta_steps if q.shape[1] < _FEW_TOKENS else _delta_chunks
        # Heads in front of tokens, so that products are over the last two axes.
        out, memory = run(
            q.swapaxes(1, 2),
            k.swapaxes(1, 2),
            v.swapaxes(1, 2),
            step.swapaxes(1, 2)[..., None],
            log_keep.swapaxes(1, 2),
            memory,
        )
        if state is not None:
            state.arrays[slot][0] = memory
        return out.swapaxes(1, 2)

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
        networks: Sequence[Callable[[mx.array], mx.array]],
        *,
        top_k: int,
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
                out = out.at[index].add(share * network(rows[index]))
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
                mix = _mixing_matrix(logits, n, mixer, iterations)
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

    def at_most(self, x: mx.array, threshold: float) -> mx.array:
        return x <= threshold

    def every(self, mask: mx.array) -> bool:
        return bool(mask.all().item())

    def select(self, mask: mx.array, yes: mx.array, no: mx.array) -> mx.array:
        return mx.where(mask.reshape(*mask.shape, *(1,) * (yes.ndim - mask.ndim)), yes, no)

    def _packed_product(self, x: mx.array, linear: PackedLinear) -> mx.array:
        width = linear.scales.shape[1] * linear.group
        if width > linear.columns:
            x = mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - linear.columns)])
        products = []
        for start in range(0, width, self._most_columns):
            end = min(start + self._most_columns, width)
            words = slice(start * linear.bits // 32, end * linear.bits // 32)
            groups = slice(start // linear.group, end // linear.group)
            products.append(
                mx.quantized_matmul(
                    x[..., start:end],
                    linear.words[:, words],
                    linear.scales[:, groups],
                    linear.biases[:, groups],
                    transpose=True,
                    group_size=linear.group,
                    bits=linear.bits,
                )
            )
        return sum(products[1:], start=products[0])

    def _rotations(
        self, half: int, theta: float, length: int, state: MlxState | None
    ) -> tuple[mx.array, mx.array]:
        """Cosines and sines of the angles of `length` tokens, (1 or B, T, 1, half)."""
        start = 0 if state is None else int(state.lengths.max())
        whole = self._angles.get((half, theta))
        if whole is None or whole[0].shape[0] < start + length:
            # Powers of two: a growing sequence fills few tables.
            whole = _angle_table(half, theta, 1 << (start + length).bit_length())
            self._angles[half, theta] = whole
        if state is None or _are_equal(state.lengths):
            cos, sin = (table[None, start : start + length, None] for table in whole)
            return cos, sin
        positions = mx.array(state.lengths[:, None] + np.arange(length))
        cos, sin = (table[positions][:, :, None] for table in whole)
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
                mix = _mixing_matrix(_dense(site.mix), n, mixer, iterations)
            pre, post = mx.sigmoid(_dense(site.read)), 2 * mx.sigmoid(_dense(site.write))
            self._sites[key] = site.read, pre, post, mix
        return self._sites[key][1:]


def _unchanged(function: _Elementwise) -> _Elementwise:
    return function


def _round_blocks(blocks: mx.array) -> mx.array:
    """Each block, the last axis, rounded to int8 codes times their scale; see `ternary.quantize_activations`."""
    largest = mx.abs(blocks).max(axis=-1, keepdims=True)
    # A subnormal maximum would make 127 / largest infinite; such a block counts as zeros.
    largest = mx.where(largest < float(np.finfo(np.float32).tiny) * 128, 0.0, largest)
    inverse = mx.where(largest > 0, 127.0 / largest, 0.0)
    # No clip: two roundings cannot carry |x| * (127 / largest) from 127 to 127.5.
    return mx.round(blocks * inverse) * (largest / 127.0)


def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return gate * mx.sigmoid(gate) * up


def _relu2_gated(x: mx.array, up: mx.array) -> mx.array:
    return mx.square(mx.maximum(x, 0)) * up


def _gate(x: mx.array, logits: mx.array) -> mx.array:
    return x * mx.sigmoid(logits)


def _prepare_leaf(name: str, leaf: Stored) -> Leaf:
    if isinstance(leaf, Dense):
        return mx.array(leaf.values.astype(np.float32))
    if isinstance(leaf, Int8):
        return _pack_bytes(name, leaf.codes, leaf.scales, leaf.activation_block)
    if isinstance(leaf, Ternary):
        return _pack_ternary(name, leaf)
    return _round_latent(name, leaf)


def _round_latent(name: str, leaf: Latent) -> PackedLinear:
    if leaf.kind == "int8":
        codes, scales = ternary.quantize_rows(leaf.values, name=name)
        return _pack_bytes(name, codes, scales, leaf.activation_block)
    codes, scales = ternary.quantize(leaf.values, block=leaf.weight_block, name=name)
    packed = Ternary(
        packed=ternary.pack(codes, name=name),
        scales=scales,
        columns=codes.shape[1],
        activation_block=leaf.activation_block,
    )
    return _pack_ternary(name, packed)


def _pack_ternary(name: str, leaf: Ternary) -> PackedLinear:
    ternary.require_legal(leaf.packed, name)
    # Both layouts put four codes into a byte, lowest bits first; 0b01_01_01_01 is four zero codes.
    return _grouped(
        name,
        leaf.packed,
        leaf.scales,
        columns=leaf.columns,
        activation_block=leaf.activation_block,
        bits=2,
        filling=0b01_01_01_01,
        zero=1,
    )


def _pack_bytes(
    name: str, codes: NDArray[np.int8], scales: NDArray[np.float16], activation_block: int
) -> PackedLinear:
    return _grouped(
        name,
        (codes.astype(np.int16) + 128).astype(np.uint8),
        scales[:, None],
        columns=codes.shape[1],
        activation_block=activation_block,
        bits=8,
        filling=128,
        zero=128,
    )


def _grouped(
    name: str,
    packed: NDArray[np.uint8],
    scales: NDArray[np.float16],
    *,
    columns: int,
    activation_block: int,
    bits: int,
    filling: int,
    zero: int,
) -> PackedLinear:
    """Split rows into the largest groups that MLX has and that lie inside one block of weights.

    Parameters
    ----------
    packed : uint8 array, shape (R, bytes)
    scales : float16 array, shape (R, blocks)
    filling : int
        A byte of zero codes.
    zero : int
        What stands for code 0.
    """
    block = columns // scales.shape[1]
    group = next((size for size in (128, 64, 32) if block % size == 0), 32)
    if block % group and block != columns:
        raise ShapeError(
            f"{name} has blocks of {block} columns, which MLX cannot group: use a weight_block of 128, 256 or row"
        )
    groups = -(-columns // group)
    words = np.full((packed.shape[0], groups * group * bits // 8), filling, np.uint8)
    words[:, : packed.shape[1]] = packed
    repeated = np.repeat(scales.astype(np.float32), groups // scales.shape[1], axis=1)
    return PackedLinear(
        words=mx.array(words.view(np.uint32)),
        scales=mx.array(repeated),
        biases=mx.array(repeated * np.float32(-zero)),
        bits=bits,
        group=group,
        columns=columns,
        activation_block=activation_block,
    )


def _dense(leaf: Leaf) -> mx.array:
    assert not isinstance(leaf, PackedLinear)
    return leaf


def _are_equal(lengths: NDArray[np.int64]) -> bool:
    return bool((lengths == lengths[0]).all())


def _angle_table(half: int, theta: float, count: int) -> tuple[mx.array, mx.array]:
    """Cosines and sines, (positions, half), made by NumPy: a GPU's are less exact at large angles."""
    frequency = (theta ** (-np.arange(half) / half)).astype(np.float32)
    angle = np.arange(count, dtype=np.float32)[:, None] * frequency
    return mx.array(np.cos(angle)), mx.array(np.sin(angle))


def _mixing_matrix(logits: mx.array, n: int, mixer: Mixer, iterations: int) -> mx.array | None:
    if mixer == "identity":
        return None
    if mixer == "lite":
        shares = mx.softmax(logits, axis=-1)
        matrices = mx.array(permutation_matrices(n).reshape(-1, n * n))
        # A product and a sum, since a matrix product may round its factors.
        mixed = (shares[..., None] * matrices).sum(axis=-2)
        return mixed.reshape(*logits.shape[:-1], n, n)
    matrix = mx.exp(logits - logits.max(axis=-1, keepdims=True))
    matrix = matrix.reshape(*logits.shape[:-1], n, n)
    for _ in range(iterations):
        matrix = matrix / matrix.sum(axis=-2, keepdims=True)
        matrix = matrix / matrix.sum(axis=-1, keepdims=True)
    return matrix


def _unit(x: mx.array) -> mx.array:
    return x * mx.rsqrt((x * x).sum(axis=-1, keepdims=True) + 1e-6)


def _delta_steps(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    step: mx.array,
    log_keep: mx.array,
    memory: mx.array,
) -> tuple[mx.array, mx.array]:
    """One token after another; q, k (B, H, T, K), v (B, H, T, V), step (B, H, T, 1), log_keep (B, H, T)."""
    keep = mx.exp(log_keep)[..., None, None]
    out = []
    for t in range(q.shape[2]):
        now = slice(t, t + 1)
        memory = memory * keep[:, :, t]
        error = (v[:, :, now] - k[:, :, now] @ memory) * step[:, :, now]
        memory = memory + k[:, :, now].swapaxes(2, 3) * error
        out.append(q[:, :, now] @ memory)
    return mx.concatenate(out, axis=2), memory


def _delta_chunks(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    step: mx.array,
    log_keep: mx.array,
    memory: mx.array,
) -> tuple[mx.array, mx.array]:
    """Chunks of tokens at once, as products of matrices; arguments as in `_delta_steps`.

    With D[i, j] the product of the decays after j up to i, and c[i] that from the chunk's start, the corrections U that
    a chunk writes solve ``(1 + tril(b k k^T * D, -1)) U = b (v - c k S)``, where S is the memory before the chunk.

    References
    ----------
    .. [1] S. Yang et al., "Gated Delta Networks", ICLR 2025, section 3.3. arXiv:2412.06464
    """
    length = q.shape[2]
    size = min(_CHUNK, 1 << (length - 1).bit_length())
    # A token with key 0, step 0 and decay 1 leaves the memory as it is.
    q, k, v, step = (_chunks(x, size) for x in (q, k, v, step))
    log_keep = _chunks(log_keep[..., None], size)[..., 0]
    between = mx.exp(_segment_sums(log_keep))
    since_start = mx.exp(mx.cumsum(log_keep, axis=-1))[..., None]
    lower = mx.tril(between, -1)
    inverse = _inverse_unit_lower((step * k) @ k.swapaxes(-1, -2) * lower)
    wanted = inverse @ (step * v)
    recalled = inverse @ (step * since_start * k)
    read = q * since_start
    scores = (q @ k.swapaxes(-1, -2)) * (lower + mx.eye(size))
    write = (k * between[..., -1, :, None]).swapaxes(-1, -2)
    out = []
    for c in range(q.shape[2]):
        corrections = wanted[:, :, c] - recalled[:, :, c] @ memory
        out.append(read[:, :, c] @ memory + scores[:, :, c] @ corrections)
        memory = memory * since_start[:, :, c, -1:] + write[:, :, c] @ corrections
    return mx.concatenate(out, axis=2)[:, :, :length], memory


def _chunks(x: mx.array, size: int) -> mx.array:
    """(B, H, T, F) to (B, H, N, L, F), filled with zeros."""
    missing = -x.shape[2] % size
    if missing:
        x = mx.pad(x, [(0, 0), (0, 0), (0, missing), (0, 0)])
    return x.reshape(*x.shape[:2], -1, size, x.shape[3])


def _segment_sums(x: mx.array) -> mx.array:
    """``out[..., i, j] = x[j + 1] + ... + x[i]``, zero on the diagonal and minus infinity above it.

    Differences of one running sum would cancel where the decay is strong.

    References
    ----------
    .. [1] T. Dao, A. Gu, "Transformers are SSMs", 2024, listing 1. arXiv:2405.21060
    """
    size = x.shape[-1]
    rows = mx.broadcast_to(x[..., None], (*x.shape, size))
    sums = mx.cumsum(mx.tril(rows, -1), axis=-2)
    return mx.where(mx.tri(size, dtype=mx.bool_), sums, -mx.inf)


def _inverse_unit_lower(x: mx.array) -> mx.array:
    """Inverse of one plus the strictly lower x, (..., L, L), L a power of two.

    Blocks of 1, 2, 4, ... on the diagonal are inverted in turn: ``inv([[A, 0], [B, C]]) = [[A', 0], [-C' B A', C']]``.
    A geometric series of x has as few products, but cancels when keys are alike.
    """
    size = x.shape[-1]
    inverse = mx.broadcast_to(mx.eye(size), x.shape)
    index = np.arange(size)
    width = 1
    while width < size:
        pair, half = index // (2 * width), index // width % 2
        corner = (pair[:, None] == pair) & (half[:, None] == 1) & (half == 0)
        inverse = inverse - inverse @ (x * mx.array(corner)) @ inverse
        width *= 2
    return inverse
