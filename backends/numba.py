"""This file holds the Numba backend: compiled CPU kernels, with ternary weights of two bits or less in memory.

Arrays are float32 NumPy arrays in C order, or stand for one that nobody has needed yet.
"""

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.host import num_cores
from nanochat.backends.numba_kernels import activation, cache, fused
from nanochat.backends.numba_kernels.isa import available
from nanochat.backends.numba_kernels.memory import WeightMemory, spread_over_nodes
from nanochat.backends.numba_kernels.progress import end_wait
from nanochat.backends.numba_kernels.team import Program, run_program
from nanochat.backends.numba_kernels.tiles import (
    Leaf,
    TiledLinear,
    num_ternary,
    prepare_leaf,
    require_trits_fit,
)
from nanochat.backends.numba_ops.base import ELEMENT
from nanochat.backends.numba_ops.linears import LinearOps
from nanochat.backends.numba_ops.mixers import MixerOps
from nanochat.backends.numba_ops.pending import Array, Pending, Rounded, Values, now
from nanochat.backends.numba_ops.state import NumbaState
from nanochat.backends.numba_ops.streams import StreamOps
from nanochat.ops import Slot
from nanochat.weights import Stored, Weights, map_leaves, named_leaves

__all__ = ["NumbaOps"]


class NumbaOps(LinearOps, MixerOps, StreamOps):
    """Compiled implementation of `nanochat.ops.Ops`, where every method is specified.

    Parameters
    ----------
    num_threads : int, optional
        Threads that share a large operation; by default one for each physical core.
    layout : {"auto", "two_bits", "five_trits"}
        How ternary codes lie in memory; see `KernelOps`.
    """

    name = "numba"

    @property
    def device(self) -> str:
        """The processor's threads, for people."""
        return f"cpu, {self.launch.threads} threads"

    @property
    def details(self) -> dict[str, object]:
        """See `nanochat.backends.choice.Detailed`."""
        folder = cache.folder(activation.add)
        return {
            "instructions": self.isa,
            "available": list(available()),
            "threads": self.launch.threads,
            "cores": num_cores(),
            "measured_products": self.tuner.num_known,
            "kernel_cache": None if folder is None else str(folder),
        }

    # The border.

    def prepare(self, weights: Weights[Stored]) -> Weights[Leaf]:
        """Lay all codes out in tiles; round latent weights.

        Raises
        ------
        InputError
            If five codes to a byte are asked for, and a matrix does not fit.
        """
        self.forget_sites()
        memory = WeightMemory()
        leaves = list(named_leaves(weights))
        if self.layout == "five_trits":
            for name, leaf in leaves:
                require_trits_fit(name, leaf)
        layout = self.layout_of(sum(num_ternary(leaf) for _, leaf in leaves) // 4)
        with spread_over_nodes():
            prepared = map_leaves(
                lambda name, leaf: prepare_leaf(name, leaf, memory, layout), weights
            )
        self.tuner.adopt(
            leaf
            for name, leaf in named_leaves(prepared)
            # A table that is no head is only looked up.
            if isinstance(leaf, TiledLinear) and (name != "embedding" or weights.head is None)
        )
        return prepared

    def tokens(self, ids: NDArray[np.int64]) -> Array:
        # A read-only array would have every kernel compiled once more.
        return cast(Array, np.require(ids, np.int64, ["C", "W"]))

    def array(self, values: NDArray[np.float32]) -> Array:
        return np.array(values, np.float32, order="C")

    def numpy(self, x: Array) -> NDArray[np.float32]:
        values = np.array(now(x), np.float32)
        end_wait()
        return values

    def new_state(self, slots: Sequence[Slot], *, batch: int, capacity: int) -> NumbaState:
        # A list of no calls: what runs lists is compiled now, and not between the first tokens of a text.
        run_program(Program([], threads=self.launch.threads))
        return NumbaState(slots, batch, capacity)

    def stack(self, states: Sequence[NumbaState]) -> NumbaState:
        return NumbaState.stack(states)

    def advance(self, state: NumbaState, tokens: Array) -> None:
        length = tokens.shape[1]

        # As in `MixerOps`: the state must not be held by its own notes.
        same = weakref.proxy(state)

        def act() -> None:
            same.lengths += length
            same.longest += length

        self.each_time(act, after=True)

    def repeat(self, step: Callable[[Array], Array], tokens: Array, state: NumbaState) -> Array:
        """See `nanochat.ops.Repeats`: noted at the first step of a state, and then run without Python."""
        if state.step is None:
            ids = now(tokens).copy()
            y, notes = self.launch.note(lambda: now(step(ids)))
            state.step = notes, ids, y
            return cast(Array, y)
        notes, ids, y = state.step
        if not notes.complete or tokens.shape != ids.shape:
            return step(tokens)
        ids[:] = now(tokens)
        notes.repeat(self.launch.threads)
        return y

    # Networks.

    def swiglu(self, gate: Array, up: Array) -> Array:
        return self._activation(activation.swiglu, fused.swiglu_round, gate, up)

    def relu2(self, x: Array, up: Array | None) -> Array:
        if up is None:
            return self._activation(activation.relu2, fused.relu2_round, x)
        return self._activation(activation.relu2_glu, fused.relu2_glu_round, x, up)

    def _activation(
        self, kernel: Callable[..., None], fused_kernel: Callable[..., None], *inputs: Array
    ) -> Array:
        arrays = [now(x) for x in inputs]
        shape, size = arrays[0].shape, arrays[0].size

        def fusion(y: Values, block: int, rounded: Rounded) -> None:
            # A block is rounded for itself: it may be a row, and a task.
            rows = [array.reshape(-1, block) for array in (*arrays, y)]
            codes = rounded.codes.reshape(len(rows[0]), 1, -1)
            out = codes, rounded.sums.reshape(-1, 1), rounded.scales.reshape(-1, 1)
            tasks = size // block
            self.launch(
                fused_kernel, *rows, block, *out, tasks=tasks, nanoseconds=2 * size * ELEMENT
            )

        compute = functools.partial(self.elementwise, kernel, *arrays)
        return Pending(shape=shape, compute=compute, fusion=fusion)

    def gate(self, x: Array, logits: Array) -> Array:
        return self.elementwise(activation.gate, x, logits)

    def experts(
        self,
        x: Array,
        logits: Array,
        networks: Sequence[Callable[[Array], Array]],
        *,
        top_k: int,
    ) -> Array:
        self.needs_python()
        rows = now(x).reshape(-1, x.shape[-1])
        scores = now(logits).reshape(-1, logits.shape[-1])
        chosen = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        shares = np.take_along_axis(scores, chosen, axis=1)
        shares = np.exp(shares - shares.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        out = np.zeros_like(rows)
        for e in np.unique(chosen):
            token, rank = np.nonzero(chosen == e)
            out[token] += shares[token, rank, None] * now(networks[e](rows[token]))
        return out.reshape(x.shape)

    # Adaptive depth.

    def survival(self, previous: Array | None, logits: Array) -> Array:
        before = np.ones_like(now(logits)) if previous is None else previous
        return self.gate(before, logits)

    def at_most(self, x: Array, threshold: float) -> Array:
        self.needs_python()
        return cast(Array, now(x) <= np.float32(threshold))

    def every(self, mask: Array) -> bool:
        self.needs_python()
        return bool(now(mask).all())

    def select(self, mask: Array, yes: Array, no: Array) -> Array:
        self.needs_python()
        chosen, kept, others = now(mask), now(yes), now(no)
        where = chosen.reshape(chosen.shape + (1,) * (kept.ndim - chosen.ndim))
        return np.where(where, kept, others)
