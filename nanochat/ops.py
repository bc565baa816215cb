"""This file holds the operations that the model is written in: their names, shapes and exact meaning.

A backend implements `Ops` on its own arrays. The model passes those arrays around without looking inside; only
`tokens`, `array`, `numpy`, `prepare` and `new_state` know NumPy. `nanochat.backends.reference.ops` is the plain
implementation.

Legend: B sequences, T tokens, C width, F any number of features, H query heads, G key and value heads, K head
features, V value features, n residual streams, E experts, R rows of a linear. All arithmetic is float32 unless an
operation says otherwise; a leading ``...`` is any number of dimensions.

Without a state, the axes (B, T) are whole sequences. With one, they are (1, N): the flat tokens of the state's step,
those of its first row, then those of the next (`nanochat.rows.Step`); each row is a sequence of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from nanochat.config import Activation, Mixer
from nanochat.draws import Drawn, Draws
from nanochat.rotary import Rotation
from nanochat.weights import FeedForward, Mhc, Stored, Weights

__all__ = ["Described", "Ops", "Repeats", "Slot", "Storage", "feed_forward", "leaving_loop"]

Array = TypeVar("Array")
Leaf = TypeVar("Leaf")
State = TypeVar("State")
Continued = TypeVar("Continued", contravariant=True)
Result = TypeVar("Result")

Storage = Literal["float32", "float16", "int8", "int4"]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """What one mixer must remember between calls, for every row.

    ``kind="attention"``: keys and values, each (positions, heads, key_dim). ``kind="conv"``: the last `taps` - 1 inputs
    of `features` channels. ``kind="delta"``: one float32 matrix (key_dim, value_dim) per head, at first zero.

    Keys and values are rounded when they are appended, as `storage` says, and attention computes in float32 with what
    the rounded ones stand for:

    * *float32*: not rounded.
    * *float16*: half to even; magnitudes from 65520 on become infinite.
    * *int8*: each vector of key_dim numbers as `ternary.quantize_activations` rounds a block, to codes and one float32
      scale, which the vector's other bytes make cheap and which cannot overflow. A vector that is not finite is NaN.
    * *int4*: each vector as `ternary.quantize_kv` rounds it, to codes of 4 bits and one bfloat16 scale for each 32
      numbers: 4.5 bits a number. A block of them that is not finite is NaN.

    What is kept is rounded, not what is computed: attention without a state is that of float32, and with one, a prompt
    read at once and token by token give the same, since every query sees rounded keys and values, its own included.
    """

    kind: str
    heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    taps: int = 0
    features: int = 0
    storage: Storage = "float32"


class Described(Protocol):
    """What computes, as it says of itself: a backend, or a model at work on one."""

    @property
    def name(self) -> str:
        """The backend's, by which it can be chosen if it is one of `nanochat.backends`."""
        ...

    @property
    def device(self) -> str:
        """Where it computes, for people; begins with cpu, gpu, cuda or mps."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether what a sequence gives depends on its own tokens alone, to the last bit.

        Then it depends neither on the sequences beside it, nor on how its tokens were cut into steps, nor on who shares
        its memory.
        """
        ...

    @property
    def details(self) -> Mapping[str, object]:
        """Plain values, ready for JSON.

        Some have a meaning for `nanochat.backends.describe`: `threads` that share an operation, and `cores`, for which
        it would start threads; `instructions` of its kernels, and those that are `available`, the fastest first.
        """
        ...


class Ops(Described, Protocol[Array, Leaf, State]):
    """The operations of one backend.

    `State` is a `nanochat.rows.RowState` of the backend that made it and is changed in place; ``state=None`` means that
    the sequences start here and nothing is remembered. Operations with a state are called between its `begin`, which
    says which rows get which tokens, and its `end`.

    Without a state, sequences may be packed: `segments`, from ``tokens(nanochat.rows.require_segments(ids))``, has the
    number of each token's document, (B, T). Documents do not see each other, and each counts positions from its own
    start, as if it were a sequence.
    """

    @property
    def free_bytes(self) -> int | None:
        """Bytes that are free of the device's own memory; `None` for a device that has the machine's."""
        ...

    # The border.

    def prepare(self, weights: Weights[Stored]) -> Weights[Leaf]:
        """Weights in the form that this backend is fastest with, made once per model."""
        ...

    def tokens(self, ids: NDArray[np.int64]) -> Array:
        """Token ids, shape (B, T)."""
        ...

    def array(self, values: NDArray[np.float32]) -> Array:
        """Copy a float32 array in: the inverse of `numpy`."""
        ...

    def numpy(self, x: Array) -> NDArray[np.float32]:
        """Copy an array out, as float32."""
        ...

    def new_state(
        self, slots: Sequence[Slot], *, rows: int, capacity: int, pages: int | None = None
    ) -> State:
        """A state that holds no row yet; see `nanochat.rows.RowState`."""
        ...

    # Tables, norms, linears.

    def embed(self, tokens: Array, table: Leaf) -> Array:
        """Rows of the table, (B, T, C), in float32. A table of codes gives codes times the scales of their blocks."""
        ...

    def rms_norm(self, x: Array, gain: Leaf, *, eps: float) -> Array:
        """``x / sqrt(mean(x**2) + eps) * gain`` over the last axis."""
        ...

    def project(self, x: Array, *linears: Leaf) -> tuple[Array, ...]:
        """``x @ w.T`` for each linear w, (..., C) to (..., R); they share one rounding of x.

        Ternary: x is rounded to int8 in blocks of ``activation_block`` columns (`ternary.quantize_activations`), and

            y[r] = sum over activation blocks b of float32(int32 sum of code * q) * s[b] * scale[r, block of b]

        Int8: the same with 8-bit codes, most often of one scale per row. Dense: a float32 product; x is not rounded.
        Latent: as the leaf that it stands for, with straight-through gradients for both roundings.
        """
        ...

    def rotate(self, x: Array, signs: Leaf, *, block: int, inverse: bool) -> Array:
        """Each block of columns of x (..., C) times the Walsh-Hadamard matrix, of which many weights are taken.

        With the signs s, (C,), and H for a block of B columns, ``H[i, j] = (-1)**popcount(i & j) / sqrt(B)``, which is
        symmetric and its own inverse:

            forward: H (s * x)        inverse: s * (H x)

        Sums are formed in butterflies of float32: for h = 1, 2, 4, ... B / 2 the pair (i, i + h), where i has not the
        bit h, becomes ``x[i] + x[i + h]`` and ``x[i] - x[i + h]``. Then all are multiplied by ``float32(1 / sqrt(B))``.
        The reference, numba, torch and MLX give the same bits; a graph multiplies with matrices.

        References
        ----------
        .. [1] S. Ashkboos et al., "QuaRot", 2024, section 3: rotations of the inputs of linears. arXiv:2404.00456
        """
        ...

    def scale(self, x: Array, factor: float) -> Array:
        """``x * float32(factor)``."""
        ...

    def add(self, x: Array, y: Array) -> Array:
        """``x + y``, the last axes aligned."""
        ...

    def parameter(self, leaf: Leaf) -> Array:
        """The numbers of a dense leaf."""
        ...

    def last(self, x: Array, *, state: State | None) -> Array:
        """The last token of each sequence, (B, T, ...) to (B, 1, ...), or row, (1, N, ...) to (1, M, ...)."""
        ...

    # Attention.

    def split_heads(self, x: Array, heads: int) -> Array:
        """(B, T, H K) to (B, T, H, K)."""
        ...

    def merge_heads(self, x: Array) -> Array:
        """(B, T, H, K) to (B, T, H K)."""
        ...

    def rope(
        self, x: Array, *, rotation: Rotation, state: State | None, segments: Array | None = None
    ) -> Array:
        """Rotate the first K features of each head of (B, T, H, ...), the pairs (i, i + K/2) of `Rotation`.

        Positions count from the row's in `state`, or from 0; `Rotation.tables` gives cosine and sine.

        References
        ----------
        .. [1] J. Su et al., "RoFormer", 2021, arXiv:2104.09864; pairs are half-split as in GPT-NeoX.
        """
        ...

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        *,
        state: State | None,
        slot: int,
        segments: Array | None = None,
    ) -> Array:
        """Causal grouped-query attention, ``softmax(q k / sqrt(K)) v``; (B, T, H, K) out.

        Query head h reads key head ``h // (H / G)``. With a state, k and v (1, N, G, K) are first appended to `slot` at
        each token's position, and its query sees its row's positions up to and with this one.
        """
        ...

    def append_kv(self, k: Array, v: Array, *, state: State, slot: int) -> None:
        """Append k and v to `slot` without attending."""
        ...

    # Gated DeltaNet.

    def short_conv(
        self,
        x: Array,
        kernel: Leaf,
        *,
        state: State | None,
        slot: int,
        segments: Array | None = None,
    ) -> Array:
        """Causal depthwise convolution, then SiLU: ``silu(sum_j kernel[f, j] * x[t - taps + 1 + j, f])``, (B, T, F)."""
        ...

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
        state: State | None,
        slot: int,
        segments: Array | None = None,
    ) -> Array:
        """Gated delta rule over q, k (B, T, G, K), v (B, T, H, V), beta and decay (B, T, H); (B, T, H, V) out.

        Head h of v reads head ``h // (H / G)`` of q and k.

        With ``q = q / sqrt(sum(q**2) + 1e-6) / sqrt(K)``, ``k = k / sqrt(sum(k**2) + 1e-6)``, ``b = sigmoid(beta)`` and
        ``a = exp(-exp(log_rate) * softplus(decay + time_bias))``, for each head and token, S being (K, V):

            S = a S;   S = S + k (outer) b (v - k S);   out = q S

        References
        ----------
        .. [1] S. Yang et al., "Gated Delta Networks", ICLR 2025, equation 10. arXiv:2412.06464
        """
        ...

    # Networks.

    def swiglu(self, gate: Array, up: Array) -> Array:
        """``gate * sigmoid(gate) * up``."""
        ...

    def relu2(self, x: Array, up: Array | None) -> Array:
        """``max(x, 0)**2``, times `up` if there is one."""
        ...

    def gate(self, x: Array, logits: Array) -> Array:
        """``x * sigmoid(logits)``."""
        ...

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
        """Each token's `top_k` highest-scoring networks, weighted by the softmax of their logits; x is (B, T, C).

        Logits are (B, T, E), and a network is `feed_forward`. Equal logits are taken in the order of the experts, and
        their results are added in that order.
        """
        ...

    # mHC: manifold-constrained hyper-connections.

    def mhc_open(self, x: Array, num_streams: int) -> Array:
        """Copy x to all streams, (B, T, C) to (B, T, n, C)."""
        ...

    def mhc_read(
        self, streams: Array, site: Mhc[Leaf], *, mixer: Mixer, iterations: int, eps: float
    ) -> tuple[Array, Array, Array | None]:
        """Blend the streams into one input, and give what `mhc_write` needs.

        Logits p, q, r are ``site.read``, ``site.write``, ``site.mix``; a dynamic site adds, per token, its gates times
        the rows of ``projection @ rms_norm(vec(streams))`` (no gain, `eps` inside the root; the projection's numbers
        are float16, the arithmetic is float32). Then

            u = sum_i sigmoid(p)_i streams_i      post = 2 sigmoid(q)

        and the mixing matrix M: *lite*, ``sum_k softmax(r)_k P_k`` over the permutations of n in lexicographic order,
        ``P_k[i, permutation_k[i]] = 1``; *sinkhorn*, exp(r - max r) as an n x n matrix whose columns, then rows, are
        divided by their sums, `iterations` times; *identity*, none.

        Returns
        -------
        u : (B, T, C)
        post : (n,) or (B, T, n)
        mix : (n, n), (B, T, n, n), or None

        References
        ----------
        .. [1] Z. Xie et al., "mHC", 2025, equations 3-9. arXiv:2512.24880
        .. [2] "mHC-lite", 2026, section 3. arXiv:2601.05732
        """
        ...

    def mhc_write(self, streams: Array, y: Array, post: Array, mix: Array | None) -> Array:
        """``x'_i = sum_j mix[i, j] streams_j + post_i y``, (B, T, n, C)."""
        ...

    def mhc_close(self, streams: Array) -> Array:
        """Mean of the streams, (B, T, n, C) to (B, T, C)."""
        ...

    # Adaptive depth.

    def survival(self, previous: Array | None, logits: Array) -> Array:
        """``previous * sigmoid(logits)`` (previous 1 at first): the probability of not having left the loop."""
        ...

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
        """Run ``x = step(x, left)`` up to `steps` times, while there is a token that has not left; see `leaving_loop`.

        A token has left once its survival is at most ``1 - threshold``; what it was then, it stays. A backend may run
        steps in which nobody is left, or call ``finish(number)`` in place of the last so many.
        """
        ...

    def select(self, mask: Array, yes: Array, no: Array) -> Array:
        """`yes` where the mask (B, T, 1) holds, else `no`; further axes of both are broadcast on the right."""
        ...

    # The choice of tokens.

    def sample(self, logits: Array, draws: Draws) -> Drawn:
        """Draw a token for each of M rows of logits, (..., W), as `nanochat.draws.sample` defines.

        All backends pick the same from the same logits. What is given belongs to the backend: where it repeats steps,
        the arrays of `draws` are read, and those of the result written, at each repetition.

        Raises
        ------
        ShapeError
            If there are not as many rows as draws, or too few columns.
        """
        ...

    # Loss.

    def cross_entropy(
        self, x: Array, table: Leaf, targets: Array, weights: Array | None = None
    ) -> Array:
        """Nats that each target token costs where the table (R, C) reads out x, (B, T, C); (B, T) out.

        With ``z = project(x, table)``, less its largest number, and all in float32:

            loss = (log(sum over r of exp(z[r])) - z[target]) * weight

        Targets are token ids (B, T), those below 0 none; weights (B, T) are 1 by default, and may be negative. The loss
        is 0 where there is no target, or the weight is 0.

        The logits of a few tokens exist at once, by `nanochat.backends.reference.ops.pieces`, but on the reference,
        which forms all. In training they are formed again for the gradient, of x, table and weights.
        """
        ...

    # Weights that move.

    def replace(self, weights: Weights[Leaf], name: str, leaf: Stored) -> Weights[Leaf]:
        """The tree of `prepare` with one leaf prepared anew, of the same shape and kind; the given tree stays valid.

        Nothing that the backend keeps of the old leaf is used with the new tree, nor in a step that is repeated.
        """
        ...


def leaving_loop(
    x: Array,
    step: Callable[[Array, Array | None], Array],
    survive: Callable[[Array, Array | None], Array],
    finish: Callable[[int], None],
    ops: Ops[Array, Any, Any],
    *,
    steps: int,
    leave: Callable[[Array], tuple[Array, bool]],
) -> Array:
    """`Ops.loop` for a backend that says who has left and whether all have, of the survival of each token.

    ``step(x, left)`` gets the mask of those that have left before, None at first; ``survive(x, survival)`` what
    `survival` gave last.
    """
    left: Array | None = None
    survival: Array | None = None
    for number in range(steps):
        made = step(x, left)
        x = made if left is None else ops.select(left, x, made)
        if number < steps - 1:
            survival = survive(x, survival)
            left, is_over = leave(survival)
            if is_over:
                finish(steps - number - 1)
                break
    return x


def feed_forward(
    x: Array,
    w: FeedForward[Leaf],
    ops: Ops[Array, Leaf, Any],
    *,
    activation: Activation,
    eps: float,
    turn: Callable[[Array], Array] | None = None,
) -> Array:
    """A network over the features of each token: ``down(act(gate x) * (up x))``, or ``down(act(up x))``.

    `turn` is what the input of the last linear goes through, if it is rotated.
    """
    if w.gate is None:
        y = ops.relu2(ops.project(x, w.up)[0], None)
    else:
        gate, up = ops.project(x, w.gate, w.up)
        y = ops.swiglu(gate, up) if activation == "swiglu" else ops.relu2(gate, up)
    if w.sub_norm is not None:
        y = ops.rms_norm(y, w.sub_norm, eps=eps)
    return ops.project(y if turn is None else turn(y), w.down)[0]


@runtime_checkable
class Repeats(Protocol[Array, Continued]):
    """A backend that can repeat a step of generation faster than by running the model's code again."""

    def num_repeated(self, rows: int, tokens: int) -> int:
        """The tokens of the step that is repeated for so many of so many rows: as many, or a few more; 0 if none is."""
        ...

    def repeat(
        self, step: Callable[[Array], Result], tokens: Array, state: Continued, *, kind: str
    ) -> Result:
        """``step(tokens)`` for the tokens (1, N) of the state's step, each of which it gives something for.

        For one state, kind and number of tokens that are repeated, `step` must do the same in every call but for the
        tokens, which fit the model, and for what is in the state and in the arrays that it reads. The result is for
        `num_repeated` tokens, of which the first are the step's, and is overwritten by the next call with that state.
        """
        ...
