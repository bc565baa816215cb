"""A run that has a time ends in it, with a rate that has fallen, and its steps are known from then on."""

import time
from pathlib import Path

import pytest

from nanochat.errors import ConfigError
from nanochat.training.budget import Budget, seconds_of
from nanochat.training.loop import Trainer
from nanochat.training.plan import recipe_of
from nanochat.training.recipe import ENDLESS, Recipe
from nanochat.training.run_log import LogEntry
from nanochat.training.snapshot import load_record, load_snapshot
from tests.training.runs import recipe


class Clock:
    """A time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def endless(seconds: float, **schedule: int) -> Recipe:
    return recipe(steps=ENDLESS, schedule=schedule, run={"budget": seconds})


def decided(clock: Clock, settings: Recipe, spent: float = 0.0) -> tuple[int, Recipe]:
    """The step at which a run of a second each, and 30 for the first, decides how long it is."""
    clocked = Budget(spent)
    clock.now += 30
    for step in range(1, 1000):
        found = clocked.ending(settings, step, last_tokens=0)
        if found is not None:
            return step, found
        clock.now += 1
    raise AssertionError("it never ends")


@pytest.mark.parametrize("decay", [0, 40])
def test_the_rate_falls_so_that_the_run_ends_in_time(
    decay: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = endless(230.0, warmup_steps=10, decay_steps=decay)

    step, found = decided(Clock(monkeypatch), settings)

    fall = found.schedule.decay_steps
    assert found.steps == step + fall
    # 30 seconds for the first step, one for each other.
    assert 190 <= found.steps <= 200
    assert fall == pytest.approx(decay or found.steps / 5, abs=2)
    assert found.schedule.warmup_steps == 10


def test_what_another_process_has_spent_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = endless(230.0, warmup_steps=10, decay_steps=40)

    _, found = decided(Clock(monkeypatch), settings, spent=100.0)

    assert 90 <= found.steps <= 100


def test_the_last_evaluation_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, settings = Clock(monkeypatch), endless(100.0, warmup_steps=0, decay_steps=10)
    clocked, step = Budget(0.0), 0
    found = None
    while found is None:
        clock.now, step = clock.now + 1, step + 1
        # 30 batches forward take a third of 30 steps.
        found = clocked.ending(settings, step, last_tokens=30 * 128)

    assert found.steps == pytest.approx(100 - 10, abs=3)


def test_a_time_that_is_over_at_once_is_a_short_run(monkeypatch: pytest.MonkeyPatch) -> None:
    step, found = decided(Clock(monkeypatch), endless(5.0, warmup_steps=100, decay_steps=50))

    assert (step, found.steps) == (1, 2)
    assert (found.schedule.warmup_steps, found.schedule.decay_steps) == (1, 1)


def test_a_run_of_seconds_ends_and_its_steps_are_saved(data: Path, tmp_path: Path) -> None:
    fields = {**recipe_of({"model": vars(recipe().model), "budget": "2s"}).__dict__}
    assert (fields["steps"], fields["run"].budget) == (ENDLESS, 2.0)
    trainer = Trainer(endless(2.0), data, tmp_path, num_threads=1, compile_model=False)
    seen: list[LogEntry] = []

    assert trainer.run(seen.append)

    (line,) = (entry for entry in seen if "decided_steps" in entry.values)
    factors = [e.values["learning_rate_factor"] for e in seen if "learning_rate_factor" in e.values]
    assert trainer.step == line.values["decided_steps"] == load_record(tmp_path).recipe.steps
    assert line.step < trainer.step
    assert factors[-1] == pytest.approx(1 / int(str(line.values["decay_steps"])))
    assert 0.5 < load_snapshot(tmp_path).seconds < 4


@pytest.mark.parametrize("text", ["2 hours", "", "-1h", "0s", "nan", None, "1e999h"])
def test_what_is_no_duration_is_refused(text: str | None) -> None:
    with pytest.raises(ConfigError, match=r"write a duration, such as 90s, 20m, 2h or 1d"):
        seconds_of(text)
