"""What the comparison itself must do: meet every operation, and notice a wrong one."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat.backends.reference.ops import Leaf, ReferenceOps
from nanochat.backends.reference.state import ReferenceState
from nanochat.config import ModelConfig
from nanochat.model import forward
from nanochat.ops import Ops
from nanochat.proof.tolerances import TOLERANCES, rms_error
from nanochat.weights import FeedForward
from tests.parity.cases import CASES
from tests.parity.lockstep import LockstepOps
from tests.parity.random_models import random_weights

BORDER = {"prepare", "tokens", "array", "numpy", "new_state", "replace"}


class OffByOneInAThousand(ReferenceOps):
    def swiglu(self, gate: NDArray[np.float32], up: NDArray[np.float32]) -> NDArray[np.float32]:
        return super().swiglu(gate, up) * np.float32(1.001)


class WritesToItsInput(ReferenceOps):
    def rms_norm(self, x: NDArray[np.float32], gain: Leaf, *, eps: float) -> NDArray[np.float32]:
        result = super().rms_norm(x, gain, eps=eps)
        x *= np.float32(1.001)
        return result


class ChoosesTheWorstExperts(ReferenceOps):
    def experts(
        self,
        x: NDArray[np.float32],
        logits: NDArray[np.float32],
        networks: Sequence[FeedForward[Leaf]],
        **options: Any,
    ) -> NDArray[np.float32]:
        return super().experts(x, -logits, networks, **options)


def run(
    other: Ops[NDArray[np.float32], Leaf, ReferenceState], case: str
) -> LockstepOps[NDArray[np.float32], Leaf, ReferenceState]:
    lockstep = LockstepOps(other)
    config = CASES[case]
    weights = lockstep.prepare(random_weights(config))
    tokens = lockstep.tokens(np.arange(9)[None])
    forward(tokens, weights, config, lockstep)
    x = np.random.default_rng(0).standard_normal((1, 9, config.width), np.float32)
    lockstep.cross_entropy(lockstep.array(x), weights.embedding, tokens)
    return lockstep


def test_the_cases_meet_every_operation() -> None:
    members = vars(Ops).items()
    operations = {name for name, value in members if callable(value) and name[0] != "_"}
    # These give nothing to compare, or serve generation only.
    operations -= BORDER | {"append_kv", "last", "sample"}

    met = {name for case in CASES for name in run(ReferenceOps(), case).errors}

    assert operations - met == set()
    assert operations - set(TOLERANCES) == set()


def test_each_option_is_what_it_is_not_by_default_in_some_case() -> None:
    options = {option.name: option for option in fields(ModelConfig)}

    plain = {
        name
        for name, option in options.items()
        if all(getattr(config, name) == option.default for config in CASES.values())
    }

    assert plain == set()


def test_each_choice_of_an_option_is_made_in_some_case() -> None:
    hints = get_type_hints(ModelConfig)
    # The formats of a head are a choice within a choice.
    choices = {
        (name, value)
        for name, hint in hints.items()
        for kind in (hint, *get_args(hint))
        for value in get_args(kind)
        if isinstance(value, str)
    }

    made = {(name, value) for config in CASES.values() for name, value in _chosen(config)}

    assert ("head_format", "int8_16") in choices
    assert choices - made == set()


def _chosen(config: ModelConfig) -> Iterator[tuple[str, str]]:
    for name, value in vars(config).items():
        for one in value if isinstance(value, tuple) else (value,):
            yield name, one


def test_the_reference_agrees_with_itself() -> None:
    assert run(ReferenceOps(), "shared_expert").worst()[1] == 0


def test_a_small_error_in_one_operation_is_found() -> None:
    lockstep = run(OffByOneInAThousand(), "grouped_query_attention")

    assert lockstep.worst()[0] == "swiglu"
    with pytest.raises(AssertionError, match=r"^swiglu: error 0.001, tolerance 1e-06$"):
        lockstep.check()


def test_an_input_that_is_overwritten_is_found() -> None:
    assert run(WritesToItsInput(), "grouped_query_attention").errors["add"] > 1e-4


def test_other_experts_are_found() -> None:
    assert run(ChoosesTheWorstExperts(), "experts").worst()[0] == "experts"


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ([1.0, 2.0], 0.0),
        ([np.nan, 2.0], np.inf),
        ([np.inf, 2.0], np.inf),
        ([1.0, 2.0, 3.0], np.inf),
    ],
    ids=["equal", "nan", "infinity", "shape"],
)
def test_no_bad_number_passes_for_a_small_error(values: list[float], error: float) -> None:
    assert rms_error(np.array(values, np.float32), np.array([1, 2], np.float32)) == error


def test_any_number_is_infinitely_wrong_where_all_should_be_zero() -> None:
    assert rms_error(np.full(3, 1e-9, np.float32), np.zeros(3, np.float32)) == np.inf
