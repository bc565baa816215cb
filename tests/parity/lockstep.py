"""This file holds the lockstep: two backends run one model side by side, and every result is compared at once.

Two whole models cannot be compared closely. Activations are rounded to int8, so a difference of 1e-7 can turn one
rounding the other way, and every number after it differs by 1e-3. `LockstepOps` is a backend made of two, whose arrays
are pairs. It gives both the same numbers before every operation, or before every rounding, so that what is left is the
error of the operations themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.reference.ops import IntegerLinear, ReferenceOps
from nanochat.backends.reference.ops import Leaf as ReferenceLeaf
from nanochat.backends.reference.state import ReferenceState
from nanochat.config import Activation, Mixer
from nanochat.draws import Drawn, Draws
from nanochat.ops import Ops, Slot
from nanochat.proof.tolerances import TOLERANCES, rms_error
from nanochat.rotary import Rotation
from nanochat.rows import RowState
from nanochat.weights import FeedForward, Mhc, Stored, Weights, map_leaves, named_leaves

__all__ = ["LockstepOps", "LockstepState", "Pair"]


Array = TypeVar("Array")
Leaf = TypeVar("Leaf")
State = TypeVar("State", bound=RowState[Any])
R = TypeVar("R")
X = TypeVar("X")

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Pair(Generic[R, X]):
    """The reference's and the other backend's form of one thing: an array, a leaf or a state."""

    reference: R
    other: X


Arrays = Pair[Values, Array]
Leaves = Pair[ReferenceLeaf, Leaf]
States = Pair[ReferenceState, State]


class LockstepState(Pair[ReferenceState, State]):
    """The states of both backends, which hold the same rows."""

    def admit(self) -> int:
        row: int = self.other.admit()
        assert self.reference.admit() == row
        return row

    def fork(self, row: int) -> int:
        new: int = self.other.fork(row)
        assert self.reference.fork(row) == new
        return new

    def release(self, row: int) -> None:
        self.reference.release(row)
        self.other.release(row)

    def begin(self, rows: Sequence[int], counts: Sequence[int]) -> None:
        self.reference.begin(rows, counts)
        self.other.begin(rows, counts)

    def end(self) -> None:
        self.reference.end()
        self.other.end()


class LockstepOps(Generic[Array, Leaf, State]):
    """The reference and another backend, as one backend.

    Parameters
    ----------
    other : Ops
        The backend that is tested.
    equalize : {"operations", "roundings"}
        When the other backend is given the reference's numbers: after every operation, whose result is compared first;
        or only before a rounding, to int8 or of what a state keeps, and a choice of experts, where the drift since the
        last is compared.

    Attributes
    ----------
    errors : dict of str to float
        The largest RMS error of each operation that has run.
    """

    name = "lockstep"
    is_exact = False
    free_bytes = None

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

    @property
    def device(self) -> str:
        """The other backend's."""
        return self.other.device

    @property
    def details(self) -> Mapping[str, object]:
        """The other backend's."""
        return self.other.details

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

    def new_state(
        self, slots: Sequence[Slot], *, rows: int, capacity: int, pages: int | None = None
    ) -> "LockstepState[State]":
        return LockstepState(
            self.reference.new_state(slots, rows=rows, capacity=capacity, pages=pages),
            self.other.new_state(slots, rows=rows, capacity=capacity, pages=pages),
        )

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
        x = self._equalized("drift", x)
        return self._run_all(
            [
                "project" if isinstance(w.reference, IntegerLinear) else "dense project"
                for w in linears
            ],
            lambda: self.reference.project(x.reference, *(w.reference for w in linears)),
            lambda: self.other.project(x.other, *(w.other for w in linears)),
        )

    def rotate(
        self, x: Arrays[Array], signs: Leaves[Leaf], *, block: int, inverse: bool
    ) -> Arrays[Array]:
        told: dict[str, Any] = {"block": block, "inverse": inverse}
        return self._run(
            "rotate",
            lambda: self.reference.rotate(x.reference, signs.reference, **told),
            lambda: self.other.rotate(x.other, signs.other, **told),
        )

    def scale(self, x: Arrays[Array], factor: float) -> Arrays[Array]:
        return self._run(
            "scale",
            lambda: self.reference.scale(x.reference, factor),
            lambda: self.other.scale(x.other, factor),
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

    def last(self, x: Arrays[Array], *, state: States[State] | None) -> Arrays[Array]:
        return self._run(
            "last",
            lambda: self.reference.last(x.reference, state=_reference(state)),
            lambda: self.other.last(x.other, state=_other(state)),
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

    def rope(
        self,
        x: Arrays[Array],
        *,
        rotation: Rotation,
        state: States[State] | None,
        segments: Arrays[Array] | None = None,
    ) -> Arrays[Array]:
        return self._run(
            "rope",
            lambda: self.reference.rope(
                x.reference,
                rotation=rotation,
                state=_reference(state),
                segments=_reference(segments),
            ),
            lambda: self.other.rope(
                x.other, rotation=rotation, state=_other(state), segments=_other(segments)
            ),
        )

    def attention(
        self,
        q: Arrays[Array],
        k: Arrays[Array],
        v: Arrays[Array],
        *,
        state: States[State] | None,
        slot: int,
        segments: Arrays[Array] | None = None,
    ) -> Arrays[Array]:
        if state is not None:
            k, v = self._equalized("drift", k), self._equalized("drift", v)
        return self._run(
            "attention",
            lambda: self.reference.attention(
                q.reference,
                k.reference,
                v.reference,
                state=_reference(state),
                slot=slot,
                segments=_reference(segments),
            ),
            lambda: self.other.attention(
                q.other, k.other, v.other, state=_other(state), slot=slot, segments=_other(segments)
            ),
        )

    def append_kv(
        self, k: Arrays[Array], v: Arrays[Array], *, state: States[State], slot: int
    ) -> None:
        k, v = self._equalized("drift", k), self._equalized("drift", v)
        self.reference.append_kv(k.reference, v.reference, state=state.reference, slot=slot)
        self.other.append_kv(k.other, v.other, state=state.other, slot=slot)

    # Gated DeltaNet.

    def short_conv(
        self,
        x: Arrays[Array],
        kernel: Leaves[Leaf],
        *,
        state: States[State] | None,
        slot: int,
        segments: Arrays[Array] | None = None,
    ) -> Arrays[Array]:
        return self._run(
            "short_conv",
            lambda: self.reference.short_conv(
                x.reference,
                kernel.reference,
                state=_reference(state),
                slot=slot,
                segments=_reference(segments),
            ),
            lambda: self.other.short_conv(
                x.other, kernel.other, state=_other(state), slot=slot, segments=_other(segments)
            ),
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
        segments: Arrays[Array] | None = None,
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
                segments=_reference(segments),
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
                segments=_other(segments),
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
        networks: Sequence[FeedForward[Leaves[Leaf]]],
        *,
        top_k: int,
        activation: Activation,
        eps: float,
    ) -> Arrays[Array]:
        """Each backend routes and rounds by itself, from equal inputs.

        A token whose roundings are the reference's is compared as any sum; of few, one may turn the other way.
        """
        x, logits = self._equalized("drift", x), self._equalized("drift", logits)
        options: Any = {"top_k": top_k, "activation": activation, "eps": eps}
        expected = self.reference.experts(
            x.reference, logits.reference, [_side(w, "reference") for w in networks], **options
        )
        found = self.other.experts(
            x.other, logits.other, [_side(w, "other") for w in networks], **options
        )
        width = expected.shape[-1]
        pairs = zip(
            self.other.numpy(found).reshape(-1, width), expected.reshape(-1, width), strict=True
        )
        errors = sorted(rms_error(mine, its) for mine, its in pairs)
        of_most = errors[3 * len(errors) // 4]
        for name, error in (("experts", of_most), ("experts, a rounding flipped", errors[-1])):
            self.errors[name] = max(error, self.errors.get(name, 0.0))
        if self.equalize == "roundings":
            return Pair(expected, found)
        return Pair(expected, self.other.array(expected))

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

    def loop(
        self,
        x: Arrays[Array],
        step: Callable[[Arrays[Array], Arrays[Array] | None], Arrays[Array]],
        survive: Callable[[Arrays[Array], Arrays[Array] | None], Arrays[Array]],
        finish: Callable[[int], None],
        *,
        steps: int,
        threshold: float,
    ) -> Arrays[Array]:
        """The other backend says when the loop is over; the reference goes through the same steps."""
        mine, left, survival = x.reference, None, None

        def both(its: Array) -> Arrays[Array]:
            return self._finished("loop", Pair(mine, its))

        def step_of_both(its: Array, its_left: Array | None) -> Array:
            nonlocal mine
            pair = both(its)
            masks: Any = None if its_left is None else Pair(left, its_left)
            made = step(pair, masks)
            before, mine = mine, made.reference
            if left is not None:
                mine = self.reference.select(left, before, mine)
            return made.other

        def survive_of_both(its: Array, its_survival: Array | None) -> Array:
            nonlocal left, survival
            given: Any = None if its_survival is None else Pair(survival, its_survival)
            found = survive(both(its), given)
            survival = found.reference
            left = survival <= np.float32(1.0 - threshold)
            return found.other

        y = self.other.loop(
            x.other, step_of_both, survive_of_both, finish, steps=steps, threshold=threshold
        )
        return both(y)

    def select(self, mask: Arrays[Array], yes: Arrays[Array], no: Arrays[Array]) -> Arrays[Array]:
        return self._run(
            "select",
            lambda: self.reference.select(mask.reference, yes.reference, no.reference),
            lambda: self.other.select(mask.other, yes.other, no.other),
        )

    def sample(self, logits: Arrays[Array], draws: Draws) -> Drawn:
        """The other backend's tokens."""
        return self.other.sample(logits.other, draws)

    # Loss.

    def cross_entropy(
        self,
        x: Arrays[Array],
        table: Leaves[Leaf],
        targets: Arrays[Array],
        weights: Arrays[Array] | None = None,
    ) -> Arrays[Array]:
        x = self._equalized("drift", x)
        return self._run(
            "cross_entropy",
            lambda: self.reference.cross_entropy(
                x.reference, table.reference, targets.reference, _reference(weights)
            ),
            lambda: self.other.cross_entropy(x.other, table.other, targets.other, _other(weights)),
        )

    # Weights that move.

    def replace(
        self, weights: Weights[Leaves[Leaf]], name: str, leaf: Stored
    ) -> Weights[Leaves[Leaf]]:
        references = map_leaves(lambda _, pair: pair.reference, weights)
        others = map_leaves(lambda _, pair: pair.other, weights)
        new = dict(named_leaves(self.other.replace(others, name, leaf)))
        return map_leaves(
            lambda each, its: Pair(its, new[each]),
            self.reference.replace(references, name, leaf),
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
        return tuple(
            self._finished(name, Pair(mine, its))
            for name, mine, its in zip(names, reference(), other(), strict=True)
        )

    def _finished(self, name: str, pair: Arrays[Array]) -> Arrays[Array]:
        if self.equalize == "roundings":
            return pair
        return self._equalized(name, pair)

    def _equalized(self, name: str, pair: Arrays[Array]) -> Arrays[Array]:
        self.compare(name, pair)
        return Pair(pair.reference, self.other.array(pair.reference))


def _side(w: FeedForward[Leaves[Leaf]], side: str) -> FeedForward[Any]:
    """One backend's leaves of a network."""
    return FeedForward(
        **{name: None if leaf is None else getattr(leaf, side) for name, leaf in vars(w).items()}
    )


def _reference(pair: Pair[R, X] | None) -> R | None:
    return None if pair is None else pair.reference


def _other(pair: Pair[R, X] | None) -> X | None:
    return None if pair is None else pair.other


def _part(error: float, name: str) -> float:
    limit = TOLERANCES[name].limit
    if limit == 0:
        return 0.0 if error == 0 else float("inf")
    return error / limit
