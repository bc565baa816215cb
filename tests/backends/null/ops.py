"""This file holds the operations of a backend that computes nothing: shapes, calls, and the bytes that are read.

It shows what a model asks of any backend. An array is its shape; a state holds rows, and nothing of them.

Legend: see `nanochat.ops`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanochat.config import Activation, Mixer
from nanochat.cost import vector_bytes
from nanochat.draws import Drawn, Draws
from nanochat.ops import Slot, feed_forward, leaving_loop
from nanochat.rotary import Rotation
from nanochat.rows import RowState
from nanochat.weights import FeedForward, Mhc, Stored, Ternary, Weights, map_leaves, replace_leaf

__all__ = ["Array", "Leaf", "NullOps", "NullState"]

# ruff: noqa: ARG002 - every operation is specified in `nanochat.ops.Ops`; few arguments change a shape.

Array = tuple[int, ...]


@dataclass(frozen=True)
class Leaf:
    """What is left of a leaf."""

    shape: tuple[int, ...]
    nbytes: int


class NullState(RowState[None]):
    """Rows without memory."""

    def _clear(self, row: int) -> None:
        """See `RowState`."""

    def _save(self, row: int) -> None:
        """See `RowState`."""

    def _restore(self, row: int, recurrent: None) -> None:
        """See `RowState`."""

    def _copy_page(self, source: int, target: int) -> None:
        """See `RowState`."""


class NullOps:
    """`nanochat.ops.Ops` on shapes.

    Attributes
    ----------
    calls : Counter
        How often each operation has run.
    read_bytes : int
        Bytes of weights, and of what a state remembers, that operations have read. Of an embedding these are the rows
        of the tokens; every other leaf is read whole at every use.
    """

    name = "null"
    is_exact = True
    device = "cpu"
    free_bytes = None

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.read_bytes = 0

    @property
    def details(self) -> dict[str, object]:
        return {"calls": self.calls.total()}

    def prepare(self, weights: Weights[Stored]) -> Weights[Leaf]:
        return map_leaves(_prepare_leaf, weights)

    def tokens(self, ids: NDArray[np.int64]) -> Array:
        return ids.shape

    def array(self, values: NDArray[np.float32]) -> Array:
        return values.shape

    def numpy(self, x: Array) -> NDArray[np.float32]:
        return np.zeros(x, np.float32)

    def new_state(
        self, slots: Sequence[Slot], *, rows: int, capacity: int, pages: int | None = None
    ) -> NullState:
        return NullState(slots, rows=rows, capacity=capacity, pages=pages)

    def embed(self, tokens: Array, table: Leaf) -> Array:
        rows, width = table.shape
        self._use("embed")
        self.read_bytes += tokens[0] * tokens[1] * table.nbytes // rows
        return (*tokens, width)

    def rms_norm(self, x: Array, gain: Leaf, *, eps: float) -> Array:
        self._use("rms_norm", gain)
        assert gain.shape == x[-1:]
        return x

    def project(self, x: Array, *linears: Leaf) -> tuple[Array, ...]:
        self._use("project", *linears)
        assert all(linear.shape[1] == x[-1] for linear in linears)
        return tuple((*x[:-1], linear.shape[0]) for linear in linears)

    def rotate(self, x: Array, signs: Leaf, *, block: int, inverse: bool) -> Array:
        self._use("rotate")
        return x

    def scale(self, x: Array, factor: float) -> Array:
        self._use("scale")
        return x

    def add(self, x: Array, y: Array) -> Array:
        self._use("add")
        return np.broadcast_shapes(x, y)

    def parameter(self, leaf: Leaf) -> Array:
        self._use("parameter", leaf)
        return leaf.shape

    def last(self, x: Array, *, state: NullState | None) -> Array:
        self._use("last")
        if state is None:
            return (x[0], 1, *x[2:])
        assert state.step is not None
        return (1, len(state.step.rows), *x[2:])

    def split_heads(self, x: Array, heads: int) -> Array:
        self._use("split_heads")
        return (*x[:-1], heads, x[-1] // heads)

    def merge_heads(self, x: Array) -> Array:
        self._use("merge_heads")
        return (*x[:-2], x[-2] * x[-1])

    def rope(
        self,
        x: Array,
        *,
        rotation: Rotation,
        state: NullState | None,
        segments: Array | None = None,
    ) -> Array:
        self._use("rope")
        return x

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        *,
        state: NullState | None,
        slot: int,
        segments: Array | None = None,
    ) -> Array:
        self._use("attention")
        self._remember(state, slot)
        assert k == v
        assert (q[:2], q[3]) == (k[:2], k[3])
        return q

    def append_kv(self, k: Array, v: Array, *, state: NullState, slot: int) -> None:
        self._use("append_kv")

    def short_conv(
        self,
        x: Array,
        kernel: Leaf,
        *,
        state: NullState | None,
        slot: int,
        segments: Array | None = None,
    ) -> Array:
        self._use("short_conv", kernel)
        self._remember(state, slot)
        assert kernel.shape[0] == x[-1]
        return x

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
        state: NullState | None,
        slot: int,
        segments: Array | None = None,
    ) -> Array:
        self._use("delta_rule", log_rate, time_bias)
        self._remember(state, slot)
        assert beta == decay == v[:3]
        assert q[:3] == k[:3] == (*v[:2], k[2])
        assert v[2] % k[2] == 0
        return v

    def swiglu(self, gate: Array, up: Array) -> Array:
        self._use("swiglu")
        return np.broadcast_shapes(gate, up)

    def relu2(self, x: Array, up: Array | None) -> Array:
        self._use("relu2")
        assert up in (None, x)
        return x

    def gate(self, x: Array, logits: Array) -> Array:
        self._use("gate")
        assert x == logits
        return x

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
        self._use("experts")
        # The first get every token.
        for network in networks[:top_k]:
            feed_forward(x, network, self, activation=activation, eps=eps)
        return x

    def mhc_open(self, x: Array, num_streams: int) -> Array:
        self._use("mhc_open")
        return (*x[:2], num_streams, x[2])

    def mhc_read(
        self, streams: Array, site: Mhc[Leaf], *, mixer: Mixer, iterations: int, eps: float
    ) -> tuple[Array, Array, Array | None]:
        self._use("mhc_read", site.read, site.write, site.mix, site.projection, site.gates)
        n = streams[2]
        tokens = () if site.projection is None else streams[:2]
        mix = None if mixer == "identity" else (*tokens, n, n)
        return (*streams[:2], streams[3]), (*tokens, n), mix

    def mhc_write(self, streams: Array, y: Array, post: Array, mix: Array | None) -> Array:
        self._use("mhc_write")
        assert y == (*streams[:2], streams[3])
        return streams

    def mhc_close(self, streams: Array) -> Array:
        self._use("mhc_close")
        return (*streams[:2], streams[3])

    def survival(self, previous: Array | None, logits: Array) -> Array:
        self._use("survival")
        return logits

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
        """No token ever leaves."""
        self._use("loop")

        def leave(survival: Array) -> tuple[Array, bool]:
            return survival, False

        return leaving_loop(x, step, survive, finish, self, steps=steps, leave=leave)

    def select(self, mask: Array, yes: Array, no: Array) -> Array:
        self._use("select")
        assert yes == no
        return yes

    def sample(self, logits: Array, draws: Draws) -> Drawn:
        self._use("sample")
        nothing = np.full(draws.rows, np.nan)
        return Drawn(tokens=np.zeros(draws.rows, np.int64), logprobs=nothing, normalizers=nothing)

    def cross_entropy(
        self, x: Array, table: Leaf, targets: Array, weights: Array | None = None
    ) -> Array:
        self._use("cross_entropy", table)
        return targets

    def replace(self, weights: Weights[Leaf], name: str, leaf: Stored) -> Weights[Leaf]:
        return replace_leaf(weights, name, _prepare_leaf(name, leaf))

    def _use(self, operation: str, *leaves: Leaf | None) -> None:
        self.calls[operation] += 1
        self.read_bytes += sum(leaf.nbytes for leaf in leaves if leaf is not None)

    def _remember(self, state: NullState | None, number: int) -> None:
        """Read what a slot remembers of the rows of the step."""
        if state is None:
            return
        assert state.step is not None
        slot = state.slots[number]
        for _, start, tokens in state.step.parts():
            if slot.kind == "attention":
                size = vector_bytes(slot.key_dim, slot.storage)
                positions = start + tokens.stop - tokens.start
                self.read_bytes += 2 * slot.heads * size * positions
            elif slot.kind == "conv":
                self.read_bytes += 4 * (slot.taps - 1) * slot.features
            else:
                self.read_bytes += 4 * slot.heads * slot.key_dim * slot.value_dim


def _prepare_leaf(name: str, leaf: Stored) -> Leaf:
    del name
    arrays = [value for value in vars(leaf).values() if isinstance(value, np.ndarray)]
    first = arrays[0].shape
    shape = (len(leaf.packed), leaf.columns) if isinstance(leaf, Ternary) else first
    return Leaf(shape, sum(array.nbytes for array in arrays))
