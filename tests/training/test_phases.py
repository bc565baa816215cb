"""A run is a list of phases, each with settings of its own, and goes on exactly in any of them."""

import json
import math
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.errors import ConfigError
from nanochat.presets import preset
from nanochat.training.loop import Trainer
from nanochat.training.phases import learning_rate_factor, num_tokens, stage_at, stages
from nanochat.training.plan import plan
from nanochat.training.recipe import Phase, Recipe, Schedule, recipe_from_dict, recipe_to_dict
from nanochat.training.run_log import LogEntry
from nanochat.training.snapshot import load_snapshot
from tests.training.runs import losses, quiet, recipe

# Unquantised, then ternary on longer sequences with another rule of the norms and a schedule of its own.
PHASES: list[dict[str, Any]] = [
    {"steps": 8, "precision": {"weights": "float"}},
    {
        "steps": 12,
        "data": {"length": 96},
        "optimizer": {"norms": {"rule": "lion"}, "matrices": {"weight_decay": 0.1}},
        "schedule": {"warmup_steps": 2, "decay_steps": 4},
    },
]


def phased(phases: list[dict[str, Any]] = PHASES, **changes: object) -> Recipe:
    return recipe(steps=sum(phase["steps"] for phase in phases), phases=phases, **changes)


def trainer(settings: Recipe, data: Path, run: Path, start: Path | None = None) -> Trainer:
    return Trainer(settings, data, run, start=start, num_threads=1, compile_model=False)


def test_each_phase_has_its_settings_and_what_it_does_not_name_is_that_of_the_run() -> None:
    first, second = stages(phased())

    assert (first.first, first.end, second.first, second.end) == (0, 8, 8, 20)
    assert (first.recipe.precision.weights, second.recipe.precision.weights) == ("float", "ternary")
    assert (first.recipe.data.length, second.recipe.data.length) == (64, 96)
    assert second.recipe.data.batch_size == 2
    assert second.recipe.optimizer.norms.rule == "lion"
    assert second.recipe.optimizer.matrices.rate == first.recipe.optimizer.matrices.rate
    assert second.recipe.optimizer.matrices.weight_decay == 0.1


def test_a_schedule_of_a_phase_is_over_its_steps_and_another_over_the_run() -> None:
    found = stages(phased(schedule={"warmup_steps": 4, "decay_steps": 0}))

    factors = [learning_rate_factor(stage_at(found, step), step) for step in range(20)]

    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[8:10] == [0.5, 1.0]
    assert factors[16:] == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    ("tail", "three_quarters", "half"),
    [
        ("linear", 0.75, 0.5),
        ("1-sqrt", 0.5, 1 - math.sqrt(0.5)),
        ("cosine", 0.5 + math.sqrt(0.125), 0.5),
    ],
)
def test_the_rate_falls_along_its_tail_to_its_floor(
    tail: str, three_quarters: float, half: float
) -> None:
    schedule = {"warmup_steps": 2, "decay_steps": 8, "tail": tail, "floor": 0.1}
    (stage,) = stages(recipe(steps=20, schedule=schedule))

    factors = [learning_rate_factor(stage, step) for step in range(20)]

    assert factors[:13] == [0.5] + [1.0] * 12
    assert factors[14] == pytest.approx(0.1 + 0.9 * three_quarters)
    assert factors[16] == pytest.approx(0.1 + 0.9 * half)
    assert 0.1 < factors[19] < factors[18]


def test_half_a_cosine_over_a_whole_run_is_a_schedule() -> None:
    schedule = {"warmup_steps": 0, "decay_steps": 100, "tail": "cosine"}
    (stage,) = stages(recipe(steps=100, schedule=schedule))

    factors = [learning_rate_factor(stage, step) for step in range(100)]

    expected = [(1 + math.cos(math.pi * step / 100)) / 2 for step in range(100)]
    assert factors == pytest.approx(expected)


def test_a_schedule_of_a_phase_has_nothing_of_that_of_the_run() -> None:
    own = {"warmup_steps": 3}
    phases: list[dict[str, Any]] = [{"steps": 20}, {"steps": 10, "schedule": own}]

    _, last = stages(phased(phases, schedule={"warmup_steps": 2, "decay_steps": 15}))

    assert last.recipe.schedule == Schedule(warmup_steps=3)


def test_the_phases_of_the_document_are_a_plan(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "train.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)

    found = plan(json.loads(example), data=tmp_path, out=tmp_path / "run")

    assert found.recipe.steps == 1100
    assert [stage.recipe.schedule.decay_steps for stage in stages(found.recipe)] == [300, 300, 0]


def test_what_a_phase_cannot_have_is_said_before_the_text_is_prepared(tmp_path: Path) -> None:
    fields = {
        "preset": "tiny",
        "text": {"files": [str(tmp_path)]},
        "phases": [{"steps": 80}, {"steps": 20, "data": {"length": 5000}}],
    }

    with pytest.raises(ConfigError, match=r"^phase 2: data\.length=5000 exceeds"):
        plan(fields, out=tmp_path / "run")


def test_tokens_are_counted_over_all_phases() -> None:
    found = stages(phased())

    assert [num_tokens(found, step) for step in (0, 8, 9, 20)] == [0, 1024, 1216, 1024 + 12 * 192]


def test_a_recipe_with_phases_survives_json_and_may_be_longer() -> None:
    fields = json.loads(json.dumps(recipe_to_dict(phased())))

    assert recipe_from_dict(fields) == phased()
    assert [phase.steps for phase in recipe_from_dict({**fields, "steps": 50}).phases] == [8, 42]


def test_the_steps_of_a_run_are_those_of_its_phases() -> None:
    fields = {**recipe_to_dict(recipe()), "phases": PHASES}
    del fields["steps"]

    assert recipe_from_dict(fields).steps == 20


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([{"steps": 5}], r"^steps=30 but the phases have 5: change"),
        ([{"steps": 40}, {}], r"^phases\.1\.steps=-10: must be at least 1"),
        ([{"steps": "x"}, {}], r"^phases\.0\.steps='x': write a whole number"),
        ([{"model": {}}], r"^phases\.0\.model='model': choose 'data', "),
        ([{"data": 5}], r"^phases\.0\.data=5: "),
        ("ternary", "^phases='ternary': write a list"),
        ([5], r"^phases=\[5\]: write a list"),
    ],
    ids=str,
)
def test_phases_that_cannot_be_are_refused(phases: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(phases=phases)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"length": 5000}}, r"^phase 2: data\.length=5000 exceeds"),
        ({"optimizer": {"norms": {"rat": 1}}}, r"^phase 2: .*'optimizer\.norms\.rat'.*mean rate"),
        (
            {"optimizer": {"only": ["norms", "exits"]}},
            r"^phase 2: optimizer\.only=\['norms', 'exits'\]: .* no exits: choose among embedding, norms, ",
        ),
        ({"schedule": {"warmup_steps": 13}}, r"^phase 2: schedule\.warmup_steps=13 .* steps=12"),
    ],
    ids=str,
)
def test_settings_that_a_phase_cannot_have_name_it(
    changes: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    settings = phased([PHASES[0], {"steps": 12, **changes}])

    with pytest.raises(ConfigError, match=message):
        trainer(settings, data, tmp_path)


@pytest.mark.parametrize("steps", [6, 8, 13])
def test_a_run_goes_on_exactly_in_and_between_its_phases(
    steps: int, data: Path, tmp_path: Path
) -> None:
    trainer(phased(), data, tmp_path / "whole").run(quiet)

    def stop(entry: LogEntry) -> None:
        if entry.step == steps:
            signal.raise_signal(signal.SIGINT)

    assert not trainer(phased(), data, tmp_path / "stopped").run(stop)

    resumed = trainer(phased(), data, tmp_path / "stopped", start=tmp_path / "stopped")

    assert resumed.step == steps
    assert resumed.run(quiet)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    states = [load_snapshot(tmp_path / name).optimizer for name in ("whole", "stopped")]
    assert states[0]["norm"].updates == 12
    assert states[0]["embedding"].updates == 20
    for name, state in states[0].items():
        other = states[1][name].kept
        assert all(torch.equal(other[kind], found) for kind, found in state.kept.items())


def abandon(run: Trainer, step: int) -> None:
    """Let two signals arrive in the batch after a step."""

    def interrupt(gradient: torch.Tensor) -> torch.Tensor:
        if run.step == step:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return gradient

    run.model.get_parameter("layers.0.mixer.q").register_hook(interrupt)


def test_a_run_goes_on_exactly_from_the_first_batch_of_a_phase(data: Path, tmp_path: Path) -> None:
    trainer(phased(), data, tmp_path / "whole").run(quiet)
    run = trainer(phased(), data, tmp_path / "stopped")
    abandon(run, 8)
    assert not run.run(quiet)

    resumed = trainer(phased(), data, tmp_path / "stopped", start=tmp_path / "stopped")

    assert resumed.step == 8
    assert resumed.run(quiet)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_a_branch_under_other_rules_goes_on_from_its_first_batch(
    data: Path, tmp_path: Path
) -> None:
    trainer(recipe(steps=6, schedule={"decay_steps": 0}), data, tmp_path / "start").run(quiet)
    settings = recipe(steps=20, optimizer={"norms": {"rule": "lion"}})
    trainer(settings, data, tmp_path / "whole", tmp_path / "start").run(quiet)
    run = trainer(settings, data, tmp_path / "stopped", tmp_path / "start")
    abandon(run, 6)
    assert not run.run(quiet)

    assert trainer(settings, data, tmp_path / "stopped", tmp_path / "stopped").run(quiet)

    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_only_the_roles_that_are_named_are_trained(data: Path, tmp_path: Path) -> None:
    phases: list[dict[str, Any]] = [
        {"steps": 4},
        {"steps": 4, "optimizer": {"only": ["norms"]}},
    ]
    run = trainer(phased(phases, schedule={"decay_steps": 0}), data, tmp_path)
    changed: list[set[str]] = []
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}

    def look(_: object) -> None:
        nonlocal before
        now = {name: p.detach().clone() for name, p in run.model.named_parameters()}
        changed.append({name for name in now if not torch.equal(now[name], before[name])})
        before = now

    assert run.run(look)

    assert "embedding" in changed[1]
    assert "norm" in changed[-2]
    assert all("norm" in name for name in changed[-2])


def test_states_go_on_after_a_phase_that_does_not_train_their_parameters(
    data: Path, tmp_path: Path
) -> None:
    phases: list[dict[str, Any]] = [
        {"steps": 4},
        {"steps": 4, "optimizer": {"only": ["norms"]}},
        {"steps": 4},
    ]
    settings = phased(phases, schedule={"decay_steps": 0})
    trainer(settings, data, tmp_path / "whole").run(quiet)

    def stop(entry: LogEntry) -> None:
        if entry.step == 6:
            signal.raise_signal(signal.SIGINT)

    trainer(settings, data, tmp_path / "stopped").run(stop)
    trainer(settings, data, tmp_path / "stopped", tmp_path / "stopped").run(quiet)

    states = load_snapshot(tmp_path / "whole").optimizer
    assert (states["embedding"].updates, states["norm"].updates) == (8, 12)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_data_go_on_over_phases_that_do_not_change_them() -> None:
    same = stages(phased([{"steps": 9}, {"steps": 9, "precision": {"weights": "float"}}]))
    other = stages(phased([{"steps": 9}, {"steps": 9, "data": {"batch_size": 1}}]))

    assert [(stage.data_first, stage.data_order) for stage in same] == [(0, 0), (0, 0)]
    assert [(stage.data_first, stage.data_order) for stage in other] == [(0, 0), (9, 1)]


def test_a_recipe_without_phases_has_one() -> None:
    settings = Recipe(model=preset("tiny"), steps=100, schedule=Schedule(warmup_steps=5))

    (stage,) = stages(settings)

    assert (stage.first, stage.end, stage.recipe) == (0, 100, settings)
    assert Phase(steps=5, changes={}).steps == 5
