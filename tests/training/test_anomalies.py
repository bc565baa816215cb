"""The rules find trouble that was put into series of numbers, tell it once, and find none where there is none."""

import json
import math
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanochat.training.anomalies import Anomalies

LOGS = Path(__file__).parents[2] / "bench" / "results" / "training"

Line = dict[str, Any]


def told(lines: Iterable[Line]) -> list[tuple[int, str]]:
    """The step and the name of what is found."""
    rules = Anomalies()
    return [(line["step"], str(each["anomaly"])) for line in lines for each in find(rules, line)]


def find(rules: Anomalies, line: Line) -> list[dict[str, object]]:
    return rules.see(line["step"], line)


def because(lines: Iterable[Line]) -> str:
    """Why the first is one."""
    rules = Anomalies()
    return next(str(each["because"]) for line in lines for each in find(rules, line))


def begin(**recipe: object) -> Line:
    return {"step": 0, "recipe": {"phases": [], **recipe}}


def steps(losses: Iterable[float], **values: float) -> list[Line]:
    """Steps of 1,000 tokens and a second, with values that are the same in all."""
    return [
        {"step": n, "loss": float(x), "tokens": 1000 * n, "tokens_per_second": 1000.0, **values}
        for n, x in enumerate(losses, start=1)
    ]


def noisy(count: int, deviation: float) -> Any:
    """A loss that falls from 9 to 3, of batches that differ."""
    noise = np.random.default_rng(0).normal(0, deviation, count)
    return 3 + 6 * np.exp(-np.arange(count) / 200) + noise


@pytest.mark.parametrize("path", sorted(LOGS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_healthy_runs_are_let_be(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]

    assert told(lines) == []
    assert len(lines) > 1000


@pytest.mark.parametrize("deviation", [0.0, 0.02, 0.5])
def test_the_noise_of_batches_is_no_spike(deviation: float) -> None:
    assert told(steps(noisy(5000, deviation))) == []


def test_batches_of_many_kinds_make_no_spikes() -> None:
    # Every tenth is of a text that is twice as hard.
    kinds = np.where(np.random.default_rng(1).random(5000) < 0.1, 2.0, 0.0)

    assert told(steps(noisy(5000, 0.3) + kinds)) == []


def test_a_loss_that_hardly_varies_any_more_has_no_spikes_of_hundredths() -> None:
    losses = np.full(500, 0.01)
    losses[300] = 0.1

    assert told(steps(losses)) == []


@pytest.mark.parametrize("deviation", [0.0, 0.02, 0.2])
def test_a_spike_is_told_at_its_step(deviation: float) -> None:
    losses = noisy(1000, deviation)
    losses[600:610] += 3

    assert told(steps(losses)) == [(601, "spike")]
    assert "--set optimizer.matrices.rate=0.01" in because(steps(losses))


def test_spikes_are_told_again_after_fifty_quiet_steps_and_not_before() -> None:
    losses = np.full(1000, 3.0)
    losses[[200, 210, 240, 300]] = 6, 10, 20, 50

    assert told(steps(losses)) == [(201, "spike"), (301, "spike")]


def test_a_phase_in_which_the_loss_is_higher_is_no_spike() -> None:
    recipe = begin(phases=[{"steps": 100}, {"precision": {"weights": "ternary"}}])
    losses = np.full(300, 3.0)
    losses[100:] = 5
    losses[200] = 8

    assert told(steps(losses)) == [(101, "spike"), (201, "spike")]
    assert told([recipe, *steps(losses)]) == [(201, "spike")]


def test_exits_that_collapse_are_told_again_after_a_hundred_steps() -> None:
    recipe = begin(model={"loop_count": 4}, objective={"exit_entropy": 0.02})
    least = 0.05 * math.log(4)
    lines = steps(noisy(350, 0.1))
    for line in lines:
        line["exit_entropy"] = least * (1.01 if line["step"] < 100 else 0.99)

    assert told([recipe, *lines]) == [(step, "exit collapse") for step in (100, 200, 300)]
    assert "--set objective.exit_entropy=0.04" in because([recipe, *lines])


def test_a_gate_that_learns_to_be_sure_is_no_collapse() -> None:
    recipe = begin(model={"loop_count": 4}, objective={"exits": "improvement"})
    lines = steps(noisy(150, 0.1), exit_entropy=0.01, exit_improvement=0.5)

    assert told([recipe, *lines]) == []


def test_the_advice_begins_from_the_settings_of_the_phase() -> None:
    phases = [{"steps": 50}, {"objective": {"exit_entropy": 0.1}}]
    recipe = begin(model={"loop_count": 4}, objective={"exit_entropy": 0.02}, phases=phases)
    lines = steps(np.full(60, 3.0), exit_entropy=1.0)
    lines[-1]["exit_entropy"] = 0.0

    assert "--set objective.exit_entropy=0.2" in because([recipe, *lines])


def test_streams_that_are_equal_are_told_after_the_first_hundred_steps() -> None:
    lines: list[Line] = [
        {"step": step, "stream_divergence": [0.5, 0.009 if step in (50, 150, 300) else 0.011]}
        for step in range(50, 400, 50)
    ]

    assert told(lines) == [(150, "dead streams"), (300, "dead streams")]
    assert "0.009 at site 1, below 0.01" in because(lines)


def evaluations(falls: float) -> Iterator[Line]:
    """A decay from step 500 to 1000, in which the share of codes that change falls as a power of the rate."""
    noise = np.random.default_rng(0).normal(1, 0.1, 1001)
    yield begin(schedule={"decay_steps": 500}, optimizer={"matrices": {"rate": 0.04}})
    for line in steps(np.full(1000, 3.0)):
        step = line["step"]
        factor = min(1.0, step / 40, (1001 - step) / 500)
        line["learning_rate_factor"] = factor
        if step % 25 == 0:
            line["code_flips"] = 0.01 * factor**falls * noise[step]
        yield line


@pytest.mark.parametrize("falls", [0.8, 1, 2])
def test_codes_that_come_to_rest_with_the_rate_are_let_be(falls: float) -> None:
    assert told(evaluations(falls)) == []


@pytest.mark.parametrize("falls", [0, 0.2])
def test_codes_that_do_not_come_to_rest_are_told_in_the_decay(falls: float) -> None:
    found = told(evaluations(falls))

    assert {name for _, name in found} == {"restless codes"}
    assert 750 <= found[0][0] <= 850
    assert all(b - a >= 100 for (a, _), (b, _) in pairwise(found))
    said = because(evaluations(falls))
    assert "--set schedule.decay_steps=1000" in said
    assert "--set optimizer.matrices.rate=0.02" in said


def test_the_decay_of_a_run_by_time_is_what_it_decided() -> None:
    _, *lines = evaluations(0)
    decided = {"step": 500, "decided_steps": 1000, "decay_steps": 500}
    recipe = begin(schedule={"decay_steps": 0})

    said = because([recipe, *lines[:500], decided, *lines[500:]])

    assert "--set schedule.decay_steps=1000" in said


@pytest.mark.parametrize(("seconds", "expected"), [(0.04, []), (0.06, [51, 151, 251])])
def test_waiting_for_batches_is_told_from_a_twentieth_of_the_time(
    seconds: float, expected: list[int]
) -> None:
    lines = steps(np.full(300, 3.0), waiting_seconds=seconds)

    assert told(lines) == [(step, "starving loader") for step in expected]


def test_a_few_long_waits_are_no_starving() -> None:
    lines = steps(np.full(300, 3.0), waiting_seconds=0.0)
    for line in lines[100::50]:
        line["waiting_seconds"] = 2.0

    assert told(lines) == []


def test_what_is_found_does_not_depend_on_who_has_seen_the_lines_before() -> None:
    recipe = begin(model={"loop_count": 4})
    losses = noisy(400, 0.1)
    losses[[150, 180, 320]] += 5, 20, 50
    lines = [recipe, *steps(losses, exit_entropy=0.01, waiting_seconds=0.5)]
    whole = told(lines)

    for cut in (151, 152, 181, 300):
        rules = Anomalies()
        for line in json.loads(json.dumps(lines[:cut])):
            find(rules, line)
        rest = [(x["step"], str(e["anomaly"])) for x in lines[cut:] for e in find(rules, x)]

        assert rest == [each for each in whole if each[0] >= cut]
