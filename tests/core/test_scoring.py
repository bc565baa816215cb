"""A text has one score, by losses that a backend forms and by the logits of a graph."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat import backends
from nanochat.backends.reference.ops import ReferenceOps
from nanochat.config import ModelConfig
from nanochat.errors import InputError
from nanochat.generation.engine import Engine, Runner
from nanochat.generation.scoring import Convention, nats_of_all, score, windows
from nanochat.init import freeze
from tests.parity.backends import backends_under_test
from tests.parity.cases import CASES
from tests.parity.random_models import random_weights


class Graph(Engine):  # type: ignore[type-arg]
    """A runner that has logits and nothing else, as a graph."""

    losses = Runner.losses


def engine(config: ModelConfig) -> Engine:  # type: ignore[type-arg]
    ops = ReferenceOps()
    return Engine(config, ops.prepare(freeze(random_weights(config))), ops)


@pytest.mark.parametrize("option", ["grouped_query_attention", "untied", "adaptive_exit"])
@pytest.mark.parametrize("length", [2, 65, 100, 161])
def test_losses_and_logits_give_one_score(option: str, length: int) -> None:
    model = engine(CASES[option])
    ids = np.random.default_rng(0).integers(0, 67, length).tolist()

    found = score(model, ids, num_bytes=length)

    graph = Graph(model.config, model.weights, model.ops)
    expected = score(graph, ids, num_bytes=length)
    assert found.tokens == expected.tokens == length - 1
    assert found.nats == pytest.approx(expected.nats, rel=1e-6)


def test_a_backend_is_asked_for_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine(CASES["untied"])

    def refuse(ids: Sequence[int]) -> NDArray[np.float32]:
        raise AssertionError(ids)

    monkeypatch.setattr(model, "logits", refuse)

    assert score(model, [1, 2, 3], num_bytes=3).nats > 0


def test_one_token_alone_has_no_losses() -> None:
    with pytest.raises(InputError, match="no token"):
        engine(CASES["untied"]).losses([1])


@pytest.mark.parametrize("name", backends_under_test())
@pytest.mark.parametrize("case", ["delta_by_pattern", "experts", "adaptive_exit", "rotated_tied"])
def test_sequences_that_are_read_together_have_the_losses_of_each_alone(
    name: str, case: str
) -> None:
    config, ops = CASES[case], backends.get(name)
    model = Engine(config, ops.prepare(freeze(random_weights(config))), ops)
    random = np.random.default_rng(0)
    sequences = [random.integers(0, 67, length).tolist() for length in (2, 47, 65, 3, 21)]

    found = model.losses_of_all(sequences)

    # Without a state, only numba sums in an order that does not depend on how many rows there are.
    tolerance = 0.0 if name == "numba" else 1e-5
    for losses, ids in zip(found, sequences, strict=True):
        np.testing.assert_allclose(losses, model.losses(ids), rtol=tolerance)


def test_texts_that_are_read_together_have_the_scores_of_each_alone() -> None:
    model = engine(CASES["grouped_query_attention"])
    random = np.random.default_rng(0)
    sequences = [random.integers(0, 67, length).tolist() for length in (2, 300, 65, 3, 161)]
    done: list[int] = []

    found = nats_of_all(model, sequences, convention="overlapping", size=64, progress=done.append)

    assert found == pytest.approx([score(model, ids, num_bytes=1).nats for ids in sequences])
    assert sum(done) == sum(len(ids) - 1 for ids in sequences)


@pytest.mark.parametrize("convention", ["overlapping", "disjoint", "lm-eval"])
@pytest.mark.parametrize("num_targets", [1, 15, 16, 17, 32, 33, 100])
def test_windows_score_each_target_once_and_hold_what_they_may(
    convention: Convention, num_targets: int
) -> None:
    found = [*windows(num_targets, size=16, convention=convention)]

    targets = [target for window in found for target in range(window.scored, window.end)]
    assert targets == [*range(num_targets)]
    assert all(0 < window.end - window.start <= 16 for window in found)
    assert all(window.start <= window.scored for window in found)


def test_every_token_that_overlapping_windows_score_has_half_a_window_before_it() -> None:
    found = [*windows(1000, size=16, convention="overlapping")]

    assert all(window.scored - window.start >= 8 for window in found[1:])


def test_no_sequences_have_no_losses() -> None:
    assert engine(CASES["untied"]).losses_of_all([]) == []
