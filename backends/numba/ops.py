"""This file holds the Numba backend: compiled CPU kernels, with ternary weights of two bits or less in memory.

Arrays are float32 NumPy arrays in C order, or stand for one that nobody has needed yet. Operations say what is launched
on what; the memory and the cost of a launch are in the folder of its kernels. What depends on tokens is computed by
kernels alone, so that a step of generation can be noted once and then repeated without Python. An operation that uses
NumPy on activations says so with `_needs_python`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.host import num_cores
from nanochat.backends.numba.attention import launching as attention
from nanochat.backends.numba.experts import launching as experts
from nanochat.backends.numba.pending import Array, Pending, realize
from nanochat.backends.numba.products import activation, turning
from nanochat.backends.numba.products import launching as products
from nanochat.backends.numba.products.layouts import WantedLayout, layout_of, require_layout
from nanochat.backends.numba.products.packing import (
    Leaf,
    TiledLinear,
    dense,
    num_ternary,
    prepare_leaf,
    require_trits_fit,
)
from nanochat.backends.numba.products.trit_codes import CodeLayout
from nanochat.backends.numba.runtime import compilation
from nanochat.backends.numba.runtime.compilation import end_wait
from nanochat.backends.numba.runtime.costs import INTEGER
from nanochat.backends.numba.runtime.isa import available, chosen, rivals
from nanochat.backends.numba.runtime.launch import Launcher
from nanochat.backends.numba.runtime.memory import WeightMemory, spread_over_nodes
from nanochat.backends.numba.runtime.threads import Program, run_program
from nanochat.backends.numba.sampling import launching as sampling
from nanochat.backends.numba.state import NumbaState, Repeated, kept, spans_of
from nanochat.backends.numba.steps import bucket
from nanochat.backends.numba.streams import launching as mhc
from nanochat.backends.numba.streams import leaving
from nanochat.backends.numba.streams.sites import Sites
from nanochat.backends.numba.tuning.tuner import Tuner
from nanochat.backends.reference.ops import pieces, weighted
from nanochat.config import Activation, Mixer
from nanochat.draws import Drawn, Draws, require_rows
from nanochat.ops import Slot, leaving_loop
from nanochat.rotary import Rotation
from nanochat.weights import (
    FeedForward,
    Mhc,
    Stored,
    Weights,
    map_leaves,
    named_leaves,
    replace_leaf,
)

__all__ = ["NumbaOps"]

Result = TypeVar("Result")


class NumbaOps:
    """Compiled implementation of `nanochat.ops.Ops`, where every method is specified.

    Parameters
    ----------
    num_threads : int, optional
        Threads that share a large operation; by default one for each physical core.
    layout : {"auto", "two_bits", "five_trits"}
        How ternary codes lie in memory: in two bits each, or five to a byte, for which activation blocks must have 128
        columns, and rows pairs of them; other matrices are kept in two bits. By default five to a byte where that is
        faster, which is so with AVX-512 VBMI if weights come from memory, or where memory is too short for two bits.

    Raises
    ------
    BackendError
        If five codes to a byte are asked for, and this CPU lacks the instructions; or if Numba may not compile.
    """

    name = "numba"
    is_exact = True

    def __init__(
        self,
        *,
        num_threads: int | None = None,
        layout: WantedLayout = "auto",
    ) -> None:
        self.isa = chosen()
        require_layout(layout, self.isa)
        self.layout = layout
        self.launch = Launcher(num_cores() if num_threads is None else num_threads)
        self.tuner = Tuner(rivals(), threads=self.launch.threads, cost=INTEGER)
        self._rotations = attention.Rotations()
        self._sites = Sites()
        self._groups = experts.Groups()
        # Of leaves that are replaced: one piece of memory takes many.
        self._memory = WeightMemory()
        self._num_replaced = 0

    @property
    def device(self) -> str:
        return f"cpu, {self.launch.threads} threads"

    @property
    def details(self) -> dict[str, object]:
        folder = compilation.folder(activation.add)
        return {
            "instructions": self.isa,
            "available": list(available()),
            "threads": self.launch.threads,
            "cores": num_cores(),
            "measured_products": self.tuner.num_known,
            "kernel_cache": None if folder is None else str(folder),
        }

    @property
    def free_bytes(self) -> int | None:
        return None

    # The border.

    def prepare(self, weights: Weights[Stored]) -> Weights[Leaf]:
        """Lay all codes out in tiles; round latent weights.

        Raises
        ------
        InputError
            If five codes to a byte are asked for, and a matrix does not fit.
        """
        # What was computed for the sites and experts of earlier weights.
        self._sites.clear()
        self._groups.clear()
        leaves = list(named_leaves(weights))
        if self.layout == "five_trits":
            for name, leaf in leaves:
                require_trits_fit(name, leaf)
        num_bytes = sum(num_ternary(leaf) for _, leaf in leaves) // 4
        layout, memory = self.layout_of(num_bytes), WeightMemory(num_bytes)
        with spread_over_nodes():
            prepared = map_leaves(
                lambda name, leaf: prepare_leaf(
                    name, leaf, memory, layout, threads=self.launch.threads
                ),
                weights,
            )
        self.tuner.adopt(
            leaf
            for name, leaf in named_leaves(prepared)
            # A table that is no head is only looked up.
            if isinstance(leaf, TiledLinear) and (name != "embedding" or weights.head is None)
        )
        return prepared

    def layout_of(self, nbytes: int) -> CodeLayout:
        """How a model is laid out whose ternary codes take so many bytes in two bits each."""
        return layout_of(self.layout, self.isa, nbytes)

    def tokens(self, ids: NDArray[np.int64]) -> Array:
        # A read-only array would have every kernel compiled once more.
        return cast(Array, np.require(ids, np.int64, ["C", "W"]))

    def array(self, values: NDArray[np.float32]) -> Array:
        return np.array(values, np.float32, order="C")

    def numpy(self, x: Array) -> NDArray[np.float32]:
        values = np.array(realize(x), np.float32)
        end_wait()
        return values

    def new_state(
        self, slots: Sequence[Slot], *, rows: int, capacity: int, pages: int | None = None
    ) -> NumbaState:
        # A list of no calls: what runs lists is compiled now, and not between the first tokens of a text.
        run_program(Program([], threads=self.launch.threads))
        return NumbaState(slots, rows=rows, capacity=capacity, pages=pages)

    # A step that is repeated.

    def num_repeated(self, rows: int, tokens: int) -> int:
        """See `nanochat.ops.Repeats`."""
        return bucket(rows, tokens)

    def repeat(
        self, step: Callable[[Array], Result], tokens: Array, state: NumbaState, *, kind: str
    ) -> Result:
        """See `nanochat.ops.Repeats`: noted at the first step of so many tokens, and then run without Python."""
        number = tokens.shape[1]
        assert state.step is not None
        key = kind, len(state.step.spans)
        repeated = state.repeated.get(key)
        # The calls read the weights of then.
        if repeated is None or repeated.num_replaced != self._num_replaced:
            ids = np.zeros((1, key[1]), np.int64)
            ids[0, :number] = realize(tokens)[0]
            result, notes = self.launch.note(lambda: step(cast(Array, ids)), state.pool)
            state.repeated[key] = Repeated(
                notes=notes, ids=ids, result=result, num_replaced=self._num_replaced
            )
            return cast(Result, result)
        repeated.ids[0, :number] = realize(tokens)[0]
        if not repeated.notes.complete:
            return step(cast(Array, repeated.ids))
        repeated.notes.repeat(self.launch.threads, positions=state.longest)
        return cast(Result, repeated.result)

    def _needs_python(self) -> None:
        """Give up repeating the step that is being noted: its kernels alone would not give the result."""
        if self.launch.notes is not None:
            self.launch.notes.complete = False

    # Tables, norms, linears.

    def embed(self, tokens: Array, table: Leaf) -> Array:
        return products.embed(self.launch, cast(NDArray[np.int64], tokens), table)

    def rms_norm(self, x: Array, gain: Leaf, *, eps: float) -> Array:
        # A kernel has one signature, and a configuration may say 1.
        gains, eps = dense(gain), float(eps)
        if isinstance(x, Pending) and x.norm is not None and x.values is None:
            return x.norm(x, gains, eps)
        return products.rms_norm(self.launch, realize(x), gains, eps)

    def project(self, x: Array, *linears: Leaf) -> tuple[Array, ...]:
        x, made = Pending.of(x), []
        for leaf in linears:
            if isinstance(leaf, TiledLinear):
                rounded = products.rounded(self.launch, x, leaf.activation_block)
                made.append(products.integer_product(self.launch, self.tuner, rounded, leaf))
            else:
                made.append(products.dense_product(self.launch, x.array(), leaf))
        self.launch.together([call for call, _ in made])
        return tuple(y.reshape(*x.shape[:-1], y.shape[1]) for _, y in made)

    def rotate(self, x: Array, signs: Leaf, *, block: int, inverse: bool) -> Array:
        if inverse:
            return turning.turn_back(self.launch, realize(x), dense(signs), block)
        return turning.turn(self.launch, Pending.of(x), dense(signs), block)

    def scale(self, x: Array, factor: float) -> Array:
        return products.scale(self.launch, realize(x), float(factor))

    def add(self, x: Array, y: Array) -> Array:
        left, right = realize(x), realize(y)
        if left.shape == right.shape:
            return products.elementwise(self.launch, activation.add, left, right)
        return leaving.add_bias(self.launch, left, right)

    def parameter(self, leaf: Leaf) -> Array:
        return dense(leaf)

    def last(self, x: Array, *, state: NumbaState | None) -> Array:
        values = realize(x)
        spans = spans_of(x, state)
        are_there = spans.step.counts[: spans.number] > 0
        if spans.number == x.shape[0] * x.shape[1] and are_there.all():
            return values
        self._needs_python()
        flat = values.reshape(-1, *values.shape[2:])
        last = flat[spans.step.last_tokens[: spans.number][are_there]]
        return last[:, None] if state is None else last[None]

    # Attention.

    def split_heads(self, x: Array, heads: int) -> Array:
        return realize(x).reshape(*x.shape[:-1], heads, x.shape[-1] // heads)

    def merge_heads(self, x: Array) -> Array:
        return realize(x).reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])

    def rope(
        self,
        x: Array,
        *,
        rotation: Rotation,
        state: NumbaState | None,
        segments: Array | None = None,
    ) -> Array:
        x = realize(x)
        # A step that is repeated comes to the last position some time.
        positions = x.shape[1] if state is None else state.capacity
        tables = self._rotations.of(rotation, positions=positions)
        return attention.rotate(self.launch, x, tables, spans_of(x, state, segments))

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        *,
        state: NumbaState | None,
        slot: int,
        segments: Array | None = None,
    ) -> Array:
        q, k, v = realize(q), realize(k), realize(v)
        spans = spans_of(q, state, segments)
        alone = Slot(kind="attention", heads=k.shape[2], key_dim=k.shape[3])
        kind, pages = kept(state, slot, alone, spans)
        attention.append(self.launch, k, v, kind.storage, pages, spans)
        return attention.attend(self.launch, q, kind.storage, pages, spans)

    def append_kv(self, k: Array, v: Array, *, state: NumbaState, slot: int) -> None:
        kept = state.slots[slot].storage, state.arrays[slot], spans_of(k, state)
        attention.append(self.launch, realize(k), realize(v), *kept)

    # Gated DeltaNet.

    def short_conv(
        self,
        x: Array,
        kernel: Leaf,
        *,
        state: NumbaState | None,
        slot: int,
        segments: Array | None = None,
    ) -> Array:
        x = realize(x)
        weight = np.ascontiguousarray(dense(kernel).T)
        spans = spans_of(x, state, segments)
        alone = Slot(kind="conv", taps=len(weight), features=x.shape[2])
        _, (before,) = kept(state, slot, alone, spans)
        y = attention.convolve(self.launch, x, before, weight, spans)
        if state is not None:
            attention.keep(self.launch, x, before, spans)
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
        segments: Array | None = None,
    ) -> Array:
        alone = Slot(kind="delta", heads=v.shape[2], key_dim=k.shape[3], value_dim=v.shape[3])
        spans = spans_of(k, state, segments)
        _, (memory,) = kept(state, slot, alone, spans)
        given = *map(realize, (q, k, beta, decay)), dense(log_rate), dense(time_bias)
        inputs = attention.delta_inputs(self.launch, *given, features=memory.shape[3])
        return attention.delta_rule(self.launch, *inputs, realize(v), memory, spans)

    # Networks.

    def swiglu(self, gate: Array, up: Array) -> Array:
        return products.swiglu(self.launch, realize(gate), realize(up))

    def relu2(self, x: Array, up: Array | None) -> Array:
        return products.relu2(self.launch, realize(x), None if up is None else realize(up))

    def gate(self, x: Array, logits: Array) -> Array:
        return products.elementwise(self.launch, activation.gate, realize(x), realize(logits))

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
        group = self._groups.of(networks)
        rounded = products.rounded(self.launch, Pending.of(x), group.up.leaves[0].activation_block)
        visits = experts.route(self.launch, realize(logits).reshape(-1, len(networks)), top_k)
        own = experts.collect(self.launch, rounded, visits)
        if group.gate is None:
            (up,) = experts.project(self.launch, self.tuner, own, visits, group.up)
            hidden = self.relu2(up, None)
        else:
            gate, up = experts.project(self.launch, self.tuner, own, visits, group.gate, group.up)
            hidden = self.swiglu(gate, up) if activation == "swiglu" else self.relu2(gate, up)
        if group.gains is not None:
            hidden = experts.norm(self.launch, realize(hidden), group.gains, visits, float(eps))
        block = group.down.leaves[0].activation_block
        own = products.rounded(self.launch, Pending.of(hidden), block)
        (made,) = experts.project(self.launch, self.tuner, own, visits, group.down)
        return experts.combine(self.launch, made, visits).reshape(x.shape)

    # mHC: manifold-constrained hyper-connections.

    def mhc_open(self, x: Array, num_streams: int) -> Array:
        return mhc.open_streams(self.launch, realize(x), num_streams)

    def mhc_read(
        self, streams: Array, site: Mhc[Leaf], *, mixer: Mixer, iterations: int, eps: float
    ) -> tuple[Array, Array, Array | None]:
        streams = realize(streams)
        n = streams.shape[2]
        known = self._sites.of(site, n, mixer, iterations)
        shape: tuple[int, ...] = ()
        found = known.static
        if known.projection is not None:
            shape = streams.shape[:2]
            found = mhc.coefficients(
                self.launch, streams, known, iterations=iterations, eps=float(eps)
            )
        u = mhc.blend(self.launch, streams, found.read)
        post = found.write.reshape(*shape, n)
        return u, post, None if mixer == "identity" else found.mixing.reshape(*shape, n, n)

    def mhc_write(self, streams: Array, y: Array, post: Array, mix: Array | None) -> Array:
        mixing = None if mix is None else realize(mix)
        return mhc.write(self.launch, realize(streams), realize(y), realize(post), mixing)

    def mhc_close(self, streams: Array) -> Array:
        return mhc.close(self.launch, realize(streams))

    # Adaptive depth.

    def survival(self, previous: Array | None, logits: Array) -> Array:
        before = np.ones_like(realize(logits)) if previous is None else previous
        return self.gate(before, logits)

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
        leave = functools.partial(self._leave, threshold=1.0 - threshold)
        with leaving.skipping(self.launch):
            return leaving_loop(x, step, survive, finish, self, steps=steps, leave=leave)

    def _leave(self, survival: Array, *, threshold: float) -> tuple[Array, bool]:
        mask, everyone = leaving.leave(self.launch, realize(survival), threshold=threshold)
        return cast(Array, mask), everyone

    def select(self, mask: Array, yes: Array, no: Array) -> Array:
        left = cast(NDArray[np.bool_], realize(mask))
        return leaving.select(self.launch, left, realize(yes), realize(no))

    # The choice of tokens.

    def sample(self, logits: Array, draws: Draws) -> Drawn:
        values = realize(logits)
        require_rows(values.shape, draws)
        drawn = sampling.draw(self.launch, values.reshape(draws.rows, -1), draws)
        end_wait()
        return drawn

    # Loss.

    def cross_entropy(
        self, x: Array, table: Leaf, targets: Array, weights: Array | None = None
    ) -> Array:
        self._needs_python()
        rows, ids = realize(x).reshape(-1, x.shape[-1]), cast(NDArray[np.int64], targets)
        chosen = np.maximum(ids, 0).reshape(-1, 1)
        losses = np.empty(len(rows), np.float32)
        for part in pieces(len(rows), table.shape[0]):
            logits = realize(self.project(rows[part], table)[0])
            logits -= logits.max(axis=1, keepdims=True)
            targeted = np.take_along_axis(logits, chosen[part], axis=1)[:, 0]
            losses[part] = np.log(np.exp(logits, out=logits).sum(axis=1)) - targeted
        return weighted(
            losses.reshape(ids.shape), ids, None if weights is None else realize(weights)
        )

    # Weights that move.

    def replace(self, weights: Weights[Leaf], name: str, leaf: Stored) -> Weights[Leaf]:
        old = dict(named_leaves(weights))[name]
        with spread_over_nodes():
            new = prepare_leaf(
                name,
                leaf,
                self._memory,
                old.layout if isinstance(old, TiledLinear) else "two_bits",
                threads=self.launch.threads,
            )
        if isinstance(old, TiledLinear) and isinstance(new, TiledLinear):
            self.tuner.replace(old, new)
        # What was computed for sites and experts, and the arrays that noted steps read, are those of the old leaf.
        self._sites.clear()
        self._groups.clear()
        self._num_replaced += 1
        return replace_leaf(weights, name, new)
