"""What counts as the same choice of tokens: ties may part, and nothing else."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.agreement import NUM_POSITIONS, measure_agreement
from nanochat.backends.reference.ops import ReferenceOps
from nanochat.bundle import Bundle
from nanochat.generation.engine import Engine
from nanochat.proof.parity import Rounding, greedy
from tests.parity.random_models import random_bundle

SOURCE = random_bundle(context_length=512, tie_embeddings=False)
OPS = ReferenceOps()


class Disturbed:
    """The reference, with an error of its own on each logit, as large as `error` times their RMS."""

    runtime = "the reference, disturbed"
    tolerance = 1.0

    def __init__(self, source: Bundle, *, error: float = 0.0, rounding: Rounding = "same") -> None:
        self.rounding = rounding
        self._engine: Engine[Any, Any, Any] = Engine(
            source.config, OPS.prepare(source.weights), OPS
        )
        self._error = error

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        logits = self._engine.logits(ids)
        noise = np.random.default_rng(0).standard_normal(logits.shape, np.float32)
        return logits + np.float32(self._error * logits.std()) * noise

    def greedy(self, ids: Sequence[int], *, num_tokens: int) -> list[int]:
        return greedy(self._engine, ids, num_tokens=num_tokens)


class SecondBest(Disturbed):
    """Writes the second most probable token once, after five others."""

    def greedy(self, ids: Sequence[int], *, num_tokens: int) -> list[int]:
        tokens = super().greedy(ids, num_tokens=num_tokens)
        last = self._engine.logits([*ids, *tokens[:5]])[-1]
        return [*tokens[:5], int(last.argsort()[-2]), *tokens[6:]]


def test_the_reference_chooses_what_it_chooses() -> None:
    agreement = measure_agreement(SOURCE, Disturbed(SOURCE))

    assert (agreement.share_same, agreement.gap) == (1.0, 0.0)
    assert (agreement.same_text, agreement.text_gap) == (True, 0.0)
    assert agreement.chooses_the_same
    assert agreement.writes_the_same


def test_two_hundred_positions_are_compared() -> None:
    seen: list[int] = []

    class Counting(Disturbed):
        def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
            seen.append(len(ids))
            return super().logits(ids)

    measure_agreement(SOURCE, Counting(SOURCE))

    assert seen == [NUM_POSITIONS]


def test_few_tokens_may_part_where_the_best_two_are_as_near_as_the_error() -> None:
    agreement = measure_agreement(SOURCE, Disturbed(SOURCE, error=7e-3))

    assert 0.98 <= agreement.share_same < 1
    assert 0 < agreement.gap < 6
    assert agreement.chooses_the_same


@pytest.mark.parametrize(("rounding", "passes"), [("same", False), ("other", True)])
def test_a_runtime_that_rounds_otherwise_may_part_more_often(
    rounding: Rounding, passes: bool
) -> None:
    agreement = measure_agreement(SOURCE, Disturbed(SOURCE, error=3e-2, rounding=rounding))

    assert agreement.share_same < 0.98
    assert agreement.chooses_the_same is passes


def test_another_model_chooses_other_tokens() -> None:
    other = random_bundle(context_length=512, tie_embeddings=False, seed=1)

    agreement = measure_agreement(SOURCE, Disturbed(other, rounding="other"))

    assert agreement.share_same < 0.1
    assert not agreement.chooses_the_same
    assert not agreement.same_text


def test_a_text_that_parts_without_a_reason_is_another_text() -> None:
    agreement = measure_agreement(SOURCE, SecondBest(SOURCE, error=1e-5))

    assert not agreement.same_text
    assert agreement.text_gap > 6
    assert not agreement.writes_the_same


def test_a_text_may_part_at_a_tie() -> None:
    agreement = measure_agreement(SOURCE, SecondBest(SOURCE, error=1.0))

    assert not agreement.same_text
    assert agreement.writes_the_same
