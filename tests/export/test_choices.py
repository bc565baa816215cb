"""Hard choices that fall the other way, because a rounding did, are no mistake; any other difference of them is."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat.backends.reference.ops import Array, Leaf, ReferenceOps
from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.errors import FormatError
from nanochat.generation.engine import Engine
from nanochat.proof.check import compare_golden
from nanochat.proof.choices import NEAR, chooses, logits_and_margins
from nanochat.proof.parity import Rounding, check_parity, compare, greedy
from nanochat.proof.tolerances import TOLERANCES
from tests.parity.random_models import random_bundle

LIMIT = TOLERANCES["logits"].limit
SHAPES: dict[str, dict[str, Any]] = {
    "experts": {"num_layers": 4, "ffn_width": 0, "num_experts": 8, "expert_width": 256},
    "exit": {"num_layers": 4, "loop_prelude": 1, "loop_coda": 1, "loop_count": 4}
    | {"exit_threshold": 0.6},
}
SEEDS = range(4)
# So many that a rounding makes a choice fall the other way in some.
MORE_SEEDS = range(12)


class OtherOps(ReferenceOps):
    """Another backend: what it computes is off by the last bit, here and there."""

    def rms_norm(self, x: Array, gain: Leaf, *, eps: float) -> Array:
        y = super().rms_norm(x, gain, eps=eps)
        bits = np.random.default_rng(y.size).integers(-1, 2, y.shape)
        return (y * (1 + bits * np.float32(2**-23))).astype(np.float32)


class WrongOps(ReferenceOps):
    """A backend that takes the worst experts, and lets tokens leave loops late."""

    def experts(self, x: Array, logits: Array, *args: Any, **options: Any) -> Array:
        return super().experts(x, -logits, *args, **options)

    def survival(self, previous: Array | None, logits: Array) -> Array:
        return super().survival(previous, logits + np.float32(4))


class Runtime:
    """A model in a runtime that computes like a backend."""

    runtime = "a double"
    tolerance = LIMIT
    rounding: Rounding = "other"

    def __init__(self, source: Bundle, ops: ReferenceOps) -> None:
        self.engine = Engine(source.config, ops.prepare(source.weights), ops)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return self.engine.logits(ids)

    def greedy(self, ids: Sequence[int], *, num_tokens: int) -> list[int]:
        return greedy(self.engine, ids, num_tokens=num_tokens)


def of(kind: str, seed: int) -> Bundle:
    return random_bundle(seed=seed, context_length=256, **SHAPES[kind])


def measured(source: Bundle, ops: ReferenceOps, seed: int) -> tuple[Any, Any, Any]:
    """Logits of the reference and of a backend for a long sequence, and the margins of the reference."""
    reference = ReferenceOps()
    ids = np.random.default_rng(seed).integers(7, 300, (1, 150))
    expected, margins = logits_and_margins(
        ids, reference.prepare(source.weights), source.config, reference
    )
    engine = Engine(source.config, ops.prepare(source.weights), ops)
    return expected[0], engine.logits(ids[0].tolist()), margins[0]


@pytest.mark.parametrize("kind", SHAPES)
def test_tokens_that_part_are_near_another_choice_and_the_others_are_within(kind: str) -> None:
    parted, refused = 0.0, 0
    for seed in MORE_SEEDS:
        expected, found, margins = measured(of(kind, seed), OtherOps(), seed)
        report = compare(expected, found, tolerance=LIMIT, margins=margins)

        assert report.ok, (seed, report)
        parted = max(parted, report.share_parted)
        refused += not compare(expected, found, tolerance=LIMIT).ok
    assert 0 < parted < TOLERANCES["parted"].limit
    # Some of these would have been refused by chance.
    assert refused


@pytest.mark.parametrize("kind", SHAPES)
def test_other_choices_without_a_reason_are_refused(kind: str) -> None:
    for seed in SEEDS:
        source = of(kind, seed)
        expected, found, margins = measured(source, WrongOps(), seed)

        assert not compare(expected, found, tolerance=LIMIT, margins=margins).ok
        assert not check_parity(source, Runtime(source, WrongOps())).ok


@pytest.mark.parametrize("kind", SHAPES)
def test_an_honest_export_is_never_refused(kind: str) -> None:
    for seed in SEEDS:
        source = of(kind, seed)

        parity = check_parity(source, Runtime(source, OtherOps()))

        assert parity.ok, (seed, parity)
        assert ("have another expert or loop step" in str(parity)) is (
            parity.report.share_parted > 0
        )


@pytest.mark.parametrize("kind", SHAPES)
def test_a_record_is_agreed_with_by_whoever_rounds_otherwise_and_by_nobody_else(kind: str) -> None:
    for seed in SEEDS:
        source = of(kind, seed)
        assert source.golden is not None
        for ops, honest in ((OtherOps(), True), (WrongOps(), False)):
            engine = Engine(source.config, ops.prepare(source.weights), ops)
            # A graph, whose layers cannot be seen, is a runner that is no engine.
            runners: list[Any] = [engine, Graph(engine)]
            for runner in runners:
                if honest:
                    compare_golden(source.golden, runner, source.weights, where="x")
                else:
                    with pytest.raises(FormatError, match="is the first that differs"):
                        compare_golden(source.golden, runner, source.weights, where="x")


class Graph:
    """What `compare_golden` needs of a graph."""

    def __init__(self, engine: Any) -> None:
        self.config, self.logits = engine.config, engine.logits


def test_margins_are_those_of_the_router() -> None:
    source, ops = of("experts", 0), ReferenceOps()
    seen: list[NDArray[np.float32]] = []

    class Seeing(ReferenceOps):
        def experts(self, x: Array, logits: Array, *args: Any, **options: Any) -> Array:
            seen.append(logits)
            return super().experts(x, logits, *args, **options)

    ids = np.array([[9, 8, 7]])
    _, margins = logits_and_margins(ids, ops.prepare(source.weights), source.config, Seeing())

    expected = np.inf
    for logits in seen:
        ranked = np.sort(logits.astype(np.float64))[..., ::-1]
        gaps = ranked[..., 1] - ranked[..., 2]
        expected = np.minimum(expected, gaps / np.sqrt(np.mean(ranked**2, axis=-1)))
    np.testing.assert_allclose(margins, expected)
    assert margins.min() < NEAR * LIMIT


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"num_experts": 4, "experts_per_token": 4, "expert_width": 256, "ffn_width": 0}, False),
        ({"num_experts": 4, "experts_per_token": 3, "expert_width": 256, "ffn_width": 0}, True),
        ({"loop_count": 3}, False),
        ({"loop_count": 3, "exit_threshold": 0.5}, True),
    ],
)
def test_what_chooses(options: dict[str, Any], expected: bool) -> None:
    shape: dict[str, Any] = {"vocab_size": 300, "width": 256, "num_layers": 2, "num_heads": 4}
    config = ModelConfig(**shape | {"num_kv_heads": 2, "ffn_width": 256} | options)

    assert chooses(config) is expected


@pytest.mark.parametrize(("margin", "near"), [(0.05, True), (0.07, False), (1.0, False)])
def test_a_token_that_is_off_is_left_out_only_if_it_was_near(margin: float, near: bool) -> None:
    expected = np.random.default_rng(0).standard_normal((10, 17), np.float32)
    found = expected.copy()
    found[3] += 1
    margins = np.full(10, 1.0)
    margins[3] = margin

    report = compare(expected, found, tolerance=LIMIT, margins=margins)

    assert (report.ok, report.share_parted) == (near, 0.1 if near else 0.0)
