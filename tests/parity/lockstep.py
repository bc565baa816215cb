"""This file holds the lockstep: two backends run one model side by side, and every result is compared at once.

Two whole models cannot be compared closely. Activations are rounded to int8, so a difference of 1e-7 can turn one
rounding the other way, and every number after it differs by 1e-3. `LockstepOps` is a backend made of two, whose arrays
are pairs. It gives both the same numbers before every operation, or before every rounding, so that what is left is the
error of the operations themselves.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.reference.ops import IntegerLinear, ReferenceOps, ReferenceState
from nanochat.backends.reference.ops import Leaf as ReferenceLeaf
from nanochat.config import Mixer
from nanochat.ops import Ops, Slot
from nanochat.proof.tolerances import TOLERANCES, rms_error
from nanochat.weights import Mhc, Stored, Weights, map_leaves, named_leaves

__all__ = ["LockstepOps", "Pair"]


Array = TypeVar("Array")
Leaf = TypeVar("Leaf")
State = TypeVar("State")
R = TypeVar("R")
X = TypeVar("X")

Values = NDArray[np.float32]

# A row of an expert's input is matched to the reference's row that is nearer than this, relative to its norm.
_SAME_ROW = 1e-3


@dataclass(frozen=True)
class Pair(Generic[R, X]):
    """The reference's and the other backend's form of one thing: an array, a leaf or a state."""

    reference: R
    other: X


Arrays = Pair[Values, Array]
Leaves = Pair[ReferenceLeaf, Leaf]
States = Pair[ReferenceState, State]


class LockstepOps(Generic[Array, Leaf, State]):
    """The reference and another backend, as one backend.

    Parameters
    ----------
    other : Ops
        The backend that is tested.
    equalize : {"operations", "roundings"}
        When the other backend is given the reference's numbers: after every operation, whose result is compared first;
        or only before a rounding to int8 and a choice of experts, where the drift since the last is compared.

    Attributes
    ----------
    errors : dict of str to float
        The largest RMS error of each operation that has run.
    """

    name = "lockstep"

    def __init__(
        self,
        other: Ops[Array, Leaf, State],
        *,
        equalize: Literal["operations", "roundings"] = "operations",
    ) -> None:
        self.reference = ReferenceOps()
        self.other = other
        self.equalize = equalize
        self.errors: dict[str, float] = {}
        # Inside `experts` the two run one after the other: rows may be in another order.
        self._alone: Literal["no", "reference", "other"] = "no"
        self._expert = 0
        self._inputs: dict[int, list[Values]] = defaultdict(list)

    def worst(self) -> tuple[str, float]:
        """The operation whose error is the largest part of its tolerance, and that part."""
        parts = {name: _part(error, name) for name, error in self.errors.items()}
        name = max(parts, key=lambda name: parts[name])
        return name, parts[name]

    def check(self) -> None:
        """Refuse errors above their tolerance.

        Raises
        ------
        AssertionError
        """
        bad = [
            f"{name}: error {error:.2g}, tolerance {TOLERANCES[name].limit:.0e}"
            for name, error in self.errors.items()
            if _part(error, name) > 1
        ]
        assert not bad, "; ".join(bad)

    def compare(self, name: str, pair: Arrays[Array]) -> None:
        """Note the error of an array under the name of an operation."""
        error = rms_error(self.other.numpy(pair.other), self.reference.numpy(pair.reference))
        self.errors[name] = max(error, self.errors.get(name, 0.0))

    # The border.

    def prepare(self, weights: Weights[Stored]) -> Weights[Leaves[Leaf]]:
        others = dict(named_leaves(self.other.prepare(weights)))
        return map_leaves(
            lambda name, leaf: Pair(leaf, others[name]), self.reference.prepare(weights)
        )

    def tokens(self, ids: NDArray[np.int64]) -> Arrays[Array]:
        return Pair(self.reference.tokens(ids), self.other.tokens(ids))

    def array(self, values: Values) -> Arrays[Array]:
        return Pair(self.reference.array(values), self.other.array(values))

    def numpy(self, x: Arrays[Array]) -> Values:
        """The other backend's numbers."""
        return self.other.numpy(x.other)

    def new_state(self, slots: Sequence[Slot], *, batch: int, capacity: int) -> States[State]:
        return Pair(
            self.reference.new_state(slots, batch=batch, capacity=capacity),
            self.other.new_state(slots, batch=batch, capacity=capacity),
        )

    def stack(self, states: Sequence[States[State]]) -> States[State]:
        return Pair(
            self.reference.stack([state.reference for state in states]),
            self.other.stack([state.other for state in states]),
        )

    def advance(self, state: States[State], tokens: Arrays[Array]) -> None:
        self.reference.advance(state.reference, tokens.reference)
        self.other.advance(state.other, tokens.other)

    # Tables, norms, linears.

    def embed(self, tokens: Arrays[Array], table: Leaves[Leaf]) -> Arrays[Array]:
        return self._run(
            "embed",
            lambda: self.reference.embed(tokens.reference, table.reference),
            lambda: self.other.embed(tokens.other, table.other),
        )

    def rms_norm(self, x: Arrays[Array], gain: Leaves[Leaf], *, eps: float) -> Arrays[Array]:
        return self._run(
            "rms_norm",
            lambda: self.reference.rms_norm(x.reference, gain.reference, eps=eps),
            lambda: self.other.rms_norm(x.other, gain.other, eps=eps),
        )

    def project(self, x: Arrays[Array], *linears: Leaves[Leaf]) -> tuple[Arrays[Array], ...]:
        x = self._equal_input(x)
        return self._run_all(
            [
                "project" if isinstance(w.reference, IntegerLinear) else "dense project"
                for w in linears
            ],
            lambda: self.reference.project(x.reference, *(w.reference for w in linears)),
            lambda: self.other.project(x.other, *(w.other for w in linears)),
        )

    def add(self, x: Arrays[Array], y: Arrays[Array]) -> Arrays[Array]:
        return self._run(
            "add",
            lambda: self.reference.add(x.reference, y.reference),
            lambda: self.other.add(x.other, y.other),
        )

    def parameter(self, leaf: Leaves[Leaf]) -> Arrays[Array]:
        return self._run(
            "parameter",
            lambda: self.reference.parameter(leaf.reference),
            lambda: self.other.parameter(leaf.other),
        )

    def last(self, x: Arrays[Array]) -> Arrays[Array]:
        return self._run(
            "last", lambda: self.reference.last(x.reference), lambda: self.other.last(x.other)
        )

    # Attention.

    def split_heads(self, x: Arrays[Array], heads: int) -> Arrays[Array]:
        return self._run(
            "split_heads",
            lambda: self.reference.split_heads(x.reference, heads),
            lambda: self.other.split_heads(x.other, heads),
        )

    def merge_heads(self, x: Arrays[Array]) -> Arrays[Array]:
        return self._run(
            "merge_heads",
            lambda: self.reference.merge_heads(x.reference),
            lambda: self.other.merge_heads(x.other),
        )

    def rope(self, x: Arrays[Array], *, theta: float, state: States[State] | None) -> Arrays[Array]:
        return self._run(
            "rope",
            lambda: self.reference.rope(x.reference, theta=theta, state=_reference(state)),
            lambda: self.other.rope(x.other, theta=theta, state=_other(state)),
        )

    def attention(
        self,
        q: Arrays[Array],
        k: Arrays[Array],
        v: Arrays[Array],
        *,
        state: States[State] | None,
        slot: int,
    ) -> Arrays[Array]:
        return self._run(
            "attention",
            lambda: self.reference.attention(
                q.reference, k.reference, v.reference, state=_reference(state), slot=slot
            ),
            lambda: self.other.attention(q.other, k.other, v.other, state=_other(state), slot=slot),
        )

    def append_kv(
        self, k: Arrays[Array], v: Arrays[Array], *, state: States[State], slot: int
    ) -> None:
        self.reference.append_kv(k.reference, v.reference, state=state.reference, slot=slot)
        self.other.append_kv(k.other, v.other, state=state.other, slot=slot)

    # Gated DeltaNet.

    def short_conv(
        self, x: Arrays[Array], kernel: Leaves[Leaf], *, state: States[State] | None, slot: int
    ) -> Arrays[Array]:
        return self._run(
            "short_conv",
            lambda: self.reference.short_conv(
                x.reference, kernel.reference, state=_reference(state), slot=slot
            ),
            lambda: self.other.short_conv(x.other, kernel.other, state=_other(state), slot=slot),
        )

    def delta_rule(
        self,
        q: Arrays[Array],
        k: Arrays[Array],
        v: Arrays[Array],
        beta: Arrays[Array],
        decay: Arrays[Array],
        log_rate: Leaves[Leaf],
        time_bias: Leaves[Leaf],
        *,
        state: States[State] | None,
        slot: int,
    ) -> Arrays[Array]:
        return self._run(
            "delta_rule",
            lambda: self.reference.delta_rule(
                q.reference,
                k.reference,
                v.reference,
                beta.reference,
                decay.reference,
                log_rate.reference,
                time_bias.reference,
                state=_reference(state),
                slot=slot,
            ),
            lambda: self.other.delta_rule(
                q.other,
                k.other,
                v.other,
                beta.other,
                decay.other,
                log_rate.other,
                time_bias.other,
                state=_other(state),
                slot=slot,
            ),
        )

    # Networks.

    def swiglu(self, gate: Arrays[Array], up: Arrays[Array]) -> Arrays[Array]:
        return self._run(
            "swiglu",
            lambda: self.reference.swiglu(gate.reference, up.reference),
            lambda: self.other.swiglu(gate.other, up.other),
        )

    def relu2(self, x: Arrays[Array], up: Arrays[Array] | None) -> Arrays[Array]:
        return self._run(
            "relu2",
            lambda: self.reference.relu2(x.reference, _reference(up)),
            lambda: self.other.relu2(x.other, _other(up)),
        )

    def gate(self, x: Arrays[Array], logits: Arrays[Array]) -> Arrays[Array]:
        return self._run(
            "gate",
            lambda: self.reference.gate(x.reference, logits.reference),
            lambda: self.other.gate(x.other, logits.other),
        )

    def experts(
        self,
        x: Arrays[Array],
        logits: Arrays[Array],
        networks: Sequence[Callable[[Arrays[Array]], Arrays[Array]]],
        *,
        top_k: int,
    ) -> Arrays[Array]:
        """Each backend routes by itself, from equal logits.

        The reference runs first and notes what its experts project; the other's rows are replaced by the nearest of
        those, in whichever order it runs them.
        """
        x, logits = self._equalized("drift", x), self._equalized("drift", logits)
        nothing = self.array(np.zeros((1, 1), np.float32))
        self._inputs.clear()

        def reference(e: int) -> Callable[[Values], Values]:
            def network(rows: Values) -> Values:
                self._alone, self._expert = "reference", e
                return networks[e](Pair(rows, nothing.other)).reference

            return network

        def other(e: int) -> Callable[[Array], Array]:
            def network(rows: Array) -> Array:
                self._alone, self._expert = "other", e
                return networks[e](Pair(nothing.reference, rows)).other

            return network

        count = range(len(networks))
        expected = self.reference.experts(
            x.reference, logits.reference, [reference(e) for e in count], top_k=top_k
        )
        found = self.other.experts(x.other, logits.other, [other(e) for e in count], top_k=top_k)
        self._alone = "no"
        return self._finished("experts", Pair(expected, found))

    # mHC.

    def mhc_open(self, x: Arrays[Array], num_streams: int) -> Arrays[Array]:
        return self._run(
            "mhc_open",
            lambda: self.reference.mhc_open(x.reference, num_streams),
            lambda: self.other.mhc_open(x.other, num_streams),
        )

    def mhc_read(
        self,
        streams: Arrays[Array],
        site: Mhc[Leaves[Leaf]],
        *,
        mixer: Mixer,
        iterations: int,
        eps: float,
    ) -> tuple[Arrays[Array], Arrays[Array], Arrays[Array] | None]:
        *expected, expected_mix = self.reference.mhc_read(
            streams.reference,
            Mhc(
                read=site.read.reference,
                write=site.write.reference,
                mix=_reference(site.mix),
                projection=_reference(site.projection),
                gates=_reference(site.gates),
            ),
            mixer=mixer,
            iterations=iterations,
            eps=eps,
        )
        *found, found_mix = self.other.mhc_read(
            streams.other,
            Mhc(
                read=site.read.other,
                write=site.write.other,
                mix=_other(site.mix),
                projection=_other(site.projection),
                gates=_other(site.gates),
            ),
            mixer=mixer,
            iterations=iterations,
            eps=eps,
        )
        u, post = (
            self._finished("mhc_read", Pair(*both)) for both in zip(expected, found, strict=True)
        )
        assert (expected_mix is None) == (found_mix is None)
        if expected_mix is None or found_mix is None:
            return u, post, None
        return u, post, self._finished("mhc_read", Pair(expected_mix, found_mix))

    def mhc_write(
        self,
        streams: Arrays[Array],
        y: Arrays[Array],
        post: Arrays[Array],
        mix: Arrays[Array] | None,
    ) -> Arrays[Array]:
        return self._run(
            "mhc_write",
            lambda: self.reference.mhc_write(
                streams.reference, y.reference, post.reference, _reference(mix)
            ),
            lambda: self.other.mhc_write(streams.other, y.other, post.other, _other(mix)),
        )

    def mhc_close(self, streams: Arrays[Array]) -> Arrays[Array]:
        return self._run(
            "mhc_close",
            lambda: self.reference.mhc_close(streams.reference),
            lambda: self.other.mhc_close(streams.other),
        )

    # Adaptive depth.

    def survival(self, previous: Arrays[Array] | None, logits: Arrays[Array]) -> Arrays[Array]:
        return self._run(
            "survival",
            lambda: self.reference.survival(_reference(previous), logits.reference),
            lambda: self.other.survival(_other(previous), logits.other),
        )

    def at_most(self, x: Arrays[Array], threshold: float) -> Arrays[Array]:
        mask = Pair(
            self.reference.at_most(x.reference, threshold), self.other.at_most(x.other, threshold)
        )
        self.compare("at_most", mask)
        # Not made equal: only a backend knows how it writes a mask.
        return mask

    def every(self, mask: Arrays[Array]) -> bool:
        expected, found = self.reference.every(mask.reference), self.other.every(mask.other)
        self.errors["every"] = self.errors.get("every", 0.0) if expected == found else np.inf
        return expected

    def select(self, mask: Arrays[Array], yes: Arrays[Array], no: Arrays[Array]) -> Arrays[Array]:
        return self._run(
            "select",
            lambda: self.reference.select(mask.reference, yes.reference, no.reference),
            lambda: self.other.select(mask.other, yes.other, no.other),
        )

    # How a pair is made.

    def _run(
        self, name: str, reference: Callable[[], Values], other: Callable[[], Array]
    ) -> Arrays[Array]:
        return self._run_all([name], lambda: (reference(),), lambda: (other(),))[0]

    def _run_all(
        self,
        names: Sequence[str],
        reference: Callable[[], tuple[Values, ...]],
        other: Callable[[], tuple[Array, ...]],
    ) -> tuple[Arrays[Array], ...]:
        empty = self.array(np.zeros((1, 1), np.float32))
        missing = len(names)
        expected = (empty.reference,) * missing if self._alone == "other" else reference()
        found = (empty.other,) * missing if self._alone == "reference" else other()
        return tuple(
            self._finished(name, Pair(mine, its))
            for name, mine, its in zip(names, expected, found, strict=True)
        )

    def _finished(self, name: str, pair: Arrays[Array]) -> Arrays[Array]:
        if self._alone != "no" or self.equalize == "roundings":
            return pair
        return self._equalized(name, pair)

    def _equalized(self, name: str, pair: Arrays[Array]) -> Arrays[Array]:
        self.compare(name, pair)
        return Pair(pair.reference, self.other.array(pair.reference))

    def _equal_input(self, x: Arrays[Array]) -> Arrays[Array]:
        if self._alone == "no":
            return self._equalized("drift", x)
        if self._alone == "reference":
            self._inputs[self._expert].append(x.reference)
            return x
        if not self._inputs[self._expert]:
            # An expert that no token chose: a backend may run it, and must drop what it gives.
            return x
        rows = _nearest_rows(self.other.numpy(x.other), self._inputs[self._expert].pop(0))
        return Pair(x.reference, self.other.array(rows))


def _nearest_rows(x: Values, reference: Values) -> Values:
    """Every row of x replaced by the reference's nearest, unless that is another row."""
    rows = x.reshape(-1, x.shape[-1])
    known = reference.reshape(-1, x.shape[-1])
    distances = np.linalg.norm(rows[:, None] - known, axis=2)
    nearest = distances.argmin(axis=1)
    same = distances.min(axis=1) <= _SAME_ROW * np.linalg.norm(known[nearest], axis=1)
    return np.where(same[:, None], known[nearest], rows).reshape(x.shape)


def _reference(pair: Pair[R, X] | None) -> R | None:
    return None if pair is None else pair.reference


def _other(pair: Pair[R, X] | None) -> X | None:
    return None if pair is None else pair.other


def _part(error: float, name: str) -> float:
    limit = TOLERANCES[name].limit
    if limit == 0:
        return 0.0 if error == 0 else float("inf")
    return error / limit
