"""A run that cannot work is refused before anything is loaded or written, with a word on how it could."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanochat.errors import ConfigError, InputError, NanochatError, TrainingError
from nanochat.problems.sets import load
from nanochat.rl.plan import plan
from nanochat.rl.recipe import recipe_from_dict, recipe_to_dict, stages
from tests.core.command_line import Run
from tests.rl.runs import EASY, FIELDS, quiet, reinforcement


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rollout": {"samples": 1}}, "rollout.samples=1: must be at least 2"),
        ({"rollout": {"temperature": 0.0}}, "rollout.temperature=0.0: must be more than 0"),
        ({"rollout": {"top_p": 0.9}}, "no setting 'rollout.top_p'"),
        ({"policy": {"advantage": "ppo"}}, "policy.advantage='ppo': choose 'reinforce', 'grpo'"),
        ({"policy": {"ratio_cap": 0.5}}, "policy.ratio_cap=0.5 would weigh every token down"),
        (
            {"policy": {"ratio_cap": 2.0}, "rollout": {"temperature": 0.7}},
            "log-probabilities at temperature 1 only",
        ),
        ({"reward": {"kind": "teacher"}}, "reward.kind='teacher' with reward.teacher=''"),
        ({"reward": {"teacher": "x"}}, "set both, or neither"),
        ({"precision": {"weights": "float"}}, "set precision.weights=ternary"),
        ({"precision": {"products": "auto"}}, "set float32, or bfloat16"),
        ({"steps": 3}, "schedule.warmup_steps=5 and schedule.decay_steps=0 exceed steps=3"),
        ({"steps": 9, "phases": [{"steps": 3}, {"steps": 3}]}, "the phases have 3 + 3"),
        ({"phases": [{"steps": 9, "reward": {"kind": "all"}}]}, "phase 1: reward.kind='all'"),
        ({"phases": [{"steps": 9, "model": {"width": 1}}]}, "phases.0.model"),
        ({"optimizer": {"matrices": {"rate": -1.0}}}, "optimizer.matrices.rate=-1.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], said: str) -> None:
    fields = {"model": "nanochat-tiny", "steps": 9, **changes}
    if "phases" in changes and "steps" not in changes:
        del fields["steps"]

    with pytest.raises(ConfigError) as raised:
        stages(recipe_from_dict(fields))

    assert said in str(raised.value)


def test_a_recipe_is_what_was_written() -> None:
    phases = [
        {"steps": 6, "reward": {"kind": "staged"}, "problems": {"levels": [0]}},
        {"steps": 3, "fire": {"iterations": 5}, "policy": {"advantage": "grpo"}},
    ]
    recipe = recipe_from_dict({"model": "m", "phases": phases})

    again = recipe_from_dict(json.loads(json.dumps(recipe_to_dict(recipe))))

    assert again == recipe
    assert recipe.steps == 9
    first, second = stages(recipe)
    assert (first.recipe.reward.kind, second.recipe.reward.kind) == ("staged", "pass")
    assert (first.end, second.first, second.end) == (6, 6, 9)
    assert second.fire is not None
    assert second.recipe.policy.normalised_by == "sequence"


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({}, ConfigError, "pass what to begin with: --model nanochat-tiny"),
        ({"model": "nanochat-tiny", "steps": 9, "problems": {"levels": [4], "source": str(EASY)}},
         InputError, "no problems to train on of levels [4]"),
        ({"model": "nanochat-tiny", "steps": 9, "problems": {"source": "nowhere.rs"}},
         InputError, "there are no problems at nowhere.rs"),
        ({"model": "nanochat-tiny", "phases": [{"steps": 9, "problems": {"source": "own"}}]},
         ConfigError, "a run learns from one set"),
    ],
)  # fmt: skip
def test_what_lacks_is_named(
    fields: dict[str, Any], error: type[NanochatError], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as raised:
        plan(fields, out=tmp_path / "run")

    assert said in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_what_models_are_measured_with_is_not_learnt_from(tmp_path: Path) -> None:
    held_out = next(p for p in load("own").problems if p.split == "held-out")
    file = tmp_path / "mine.rs"
    signature = held_out.prompt.splitlines()[-1]
    name = "humaneval.rs"
    file.write_text(f"/// A comment of my own.\n{signature}{held_out.reference}\n")
    (tmp_path / name).write_text("fn anything(a: i32) -> i32 {\n    a\n}\n")
    fields = {"model": "nanochat-tiny", "steps": 9}

    with pytest.raises(InputError, match="of own: leave it out"):
        plan({**fields, "problems": {"source": str(file)}}, out=tmp_path / "run")
    with pytest.raises(InputError, match="is a set that models are measured with"):
        plan({**fields, "problems": {"source": str(tmp_path / name)}}, out=tmp_path / "run")


def test_a_run_is_not_overwritten_and_goes_on_with_its_own_recipe(tmp_path: Path) -> None:
    run = reinforcement(tmp_path, steps=2)
    run.run(quiet)

    with pytest.raises(TrainingError, match="already holds a run: pass --resume"):
        plan(FIELDS, out=tmp_path)
    with pytest.raises(ConfigError, match="--resume takes the recipe of the snapshot"):
        plan(FIELDS, out=tmp_path, resume=True)
    assert plan(out=tmp_path, resume=True).recipe == run.recipe
    branch = plan({**FIELDS, "model": str(tmp_path / "snapshots" / "2")}, out=tmp_path / "branch")
    begun = branch.run(backend="numba")
    assert np.array_equal(begun.drawing.logits([1, 5]), run.drawing.logits([1, 5]))
    begun.close()
    with pytest.raises(TrainingError, match="holds no snapshot"):
        plan(out=tmp_path / "none", resume=True)


def test_the_command_says_what_it_reached(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({**FIELDS, "steps": 2, "out": str(tmp_path / "run")}))

    done = run("rl", "--recipe", recipe, "--threads", "1", "--backend", "numba", "--json")
    again = run("rl", "--resume", "--out", tmp_path / "run", "--backend", "numba")

    assert done.code == 0, done.err
    assert "passes" in done.last_json
    assert "train: 0.0% pass" in done.err
    assert f"wrote {tmp_path / 'run' / 'model'}" in done.err
    assert again.code == 0, again.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "nanochat-tiny"], "pass the directory of the run: --out"),
        (["--model", "nanochat-tiny", "--out", "run"], "add --set steps=1000"),
        (["--out", "run", "--set", "polic.kl=1"], "did you mean policy.kl?"),
        (["--out", "run", "--set", "policy.kl=-1"], "policy.kl=-1: must be at least 0"),
        (["--resume", "--out", "none"], "holds no snapshot"),
    ],
)
def test_a_mistake_gets_a_line(
    run: Run, options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    result = run("rl", *options)

    assert result.code in (1, 2)
    assert said in result.err
    assert not (tmp_path / "run").exists()


def test_all_settings_are_listed(run: Run) -> None:
    listed = run("rl", "--settings")

    assert listed.code == 0
    for name in ("rollout.samples=32", "policy.clip_high=0.28", "policy.advantage=maxrl", "run."):
        assert name in listed.out
