from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat.backends.reference.ops import ReferenceOps
from nanochat.errors import NumericError, ShapeError
from nanochat.generation.engine import Engine
from nanochat.ops import Ops
from nanochat.proof.parity import Rounding, UnroundedOps, check_parity, compare, greedy
from tests.parity.random_models import random_bundle

SOURCE = random_bundle()


class Runtime:
    """The model itself in a runtime of that rounding, whose logits are off by some noise."""

    runtime = "a double"
    tolerance = 3e-2

    def __init__(self, ops: Ops[Any, Any, Any], rounding: Rounding, *, noise: float) -> None:
        self.rounding: Rounding = rounding
        self.noise = noise
        self.engine = Engine(SOURCE.config, ops.prepare(SOURCE.weights), ops)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        logits = self.engine.logits(ids)
        noise = np.random.default_rng(0).standard_normal(logits.shape, np.float32)
        noise *= np.float32(self.noise) * logits.std()
        return logits + noise

    def greedy(self, ids: Sequence[int], *, num_tokens: int) -> list[int]:
        return greedy(self.engine, ids, num_tokens=num_tokens)


@pytest.mark.parametrize(
    ("rounding", "noise", "ok"),
    [("same", 0.0, True), ("same", 1e-3, False), ("other", 1e-3, True), ("other", 1e-1, False)],
)
def test_what_rounds_alike_must_be_equal_and_what_rounds_otherwise_close(
    rounding: Rounding, noise: float, ok: bool
) -> None:
    parity = check_parity(SOURCE, Runtime(ReferenceOps(), rounding, noise=noise))

    assert parity.ok is ok, parity
    assert parity.rounding_error == 0


def test_what_rounds_nothing_is_compared_with_what_rounds_nothing() -> None:
    parity = check_parity(SOURCE, Runtime(UnroundedOps(), "none", noise=0))

    assert parity.reference == UnroundedOps.name
    assert parity.report.rms_ratio == 0
    assert parity.to_dict()["rounding_error"] == parity.rounding_error > 1e-3


def _logits(shape: tuple[int, ...] = (2, 5, 17)) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def test_equal_logits_have_no_distance() -> None:
    logits = _logits()

    report = compare(logits, logits.copy())

    assert (report.num_tokens, report.rms_ratio, report.max_abs) == (10, 0.0, 0.0)
    assert (report.share_within, report.share_same_greedy, report.ok) == (1.0, 1.0, True)


def test_a_wrong_token_lowers_the_shares_by_its_weight() -> None:
    logits = _logits()
    other = logits.copy()
    other[1, 2] = -other[1, 2]

    report = compare(logits, other)

    assert (report.share_within, report.share_same_greedy, report.ok) == (0.9, 0.9, False)


def test_the_rms_ratio_does_not_depend_on_the_unit() -> None:
    logits, noise = _logits(), np.float32(1e-3) * _logits()[::-1]

    ratios = [
        compare(s * logits, s * (logits + noise)).rms_ratio for s in (np.float32(1), np.float32(64))
    ]

    assert ratios[0] == pytest.approx(ratios[1], rel=1e-6)


def test_zero_logits_are_close_to_zero_logits_only() -> None:
    zeros = np.zeros((1, 3), np.float32)

    assert compare(zeros, zeros).ok
    assert not compare(zeros, zeros + 1).ok


@pytest.mark.parametrize("shape", [(2, 5, 16), (0, 17)], ids=["vocabulary", "empty"])
def test_logits_that_cannot_be_compared_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="same tokens"):
        compare(_logits(shape), _logits() if shape[0] else _logits(shape))


def test_logits_that_are_not_finite_are_refused() -> None:
    broken = _logits()
    broken[0, 0, 0] = np.nan

    with pytest.raises(NumericError, match="artefact"):
        compare(_logits(), broken)
