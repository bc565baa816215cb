"""Settings are named, checked in the order in which they were written, and listed with what they mean."""

import dataclasses
import itertools
from pathlib import Path

import pytest

from nanochat.errors import ConfigError
from nanochat.presets import preset
from nanochat.training.objectives.settings import Objective
from nanochat.training.recipe import Recipe, recipe_from_dict, recipe_to_dict
from nanochat.training.roles import ROLES
from nanochat.training.rules.adamw import AdamW
from nanochat.training.rules.lion import Lion
from nanochat.training.rules.muon import Muon
from nanochat.training.settings import TRAINING
from tests.training.runs import command_here, options

LISTED = "`nanochat train --settings` lists them all"


RECIPE = Recipe(model=preset("tiny"), steps=100)


def fields() -> dict[str, object]:
    return recipe_to_dict(RECIPE)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("stpes", " (did you mean steps?)"),
        ("matrix_rate", " (did you mean optimizer.matrices.rate?)"),
        ("model.widht", " (did you mean model.width?)"),
        ("objective.balanse", " (did you mean objective.balance?)"),
        ("model.seed", " (did you mean seed?)"),
        ("ahead", " (did you mean objective.ahead?)"),
        ("widht", " (did you mean model.width?)"),
        ("model.batch_size", " (did you mean data.batch_size?)"),
        ("batch_size", " (did you mean data.batch_size?)"),
        ("optimizer.batch_size", " (did you mean data.batch_size?)"),
        ("optimiser.norms.rate", " (did you mean optimizer.norms.rate?)"),
        ("a.b.c", ""),
        ("", ""),
    ],
)
def test_an_unknown_setting_names_the_nearest_and_the_list(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        TRAINING.change(fields(), name, 1)

    assert str(raised.value) == f"there is no setting {name!r}{hint}: {LISTED}"


def test_a_group_is_no_setting() -> None:
    with pytest.raises(ConfigError, match=r"^model is a group of settings: .* model\.NAME$"):
        TRAINING.change(fields(), "model", 1)


def test_a_setting_is_changed_in_its_group() -> None:
    changed = fields()

    for name, value in (("steps", 70), ("model.num_streams", 1), ("objective.ahead", 0.5)):
        TRAINING.change(changed, name, value)

    recipe = recipe_from_dict(changed)
    assert (recipe.steps, recipe.model.num_streams, recipe.objective.ahead) == (70, 1, 0.5)


def test_a_group_that_the_recipe_lacks_is_made() -> None:
    changed = fields()
    del changed["objective"]

    TRAINING.change(changed, "objective.ahead", 0.5)

    assert recipe_from_dict(changed).objective == Objective(ahead=0.5)


def test_another_rule_has_its_own_numbers() -> None:
    changed = fields()

    TRAINING.change(changed, "optimizer.norms.rule", "lion")
    TRAINING.change(changed, "optimizer.norms.second_beta", 0.98)

    assert recipe_from_dict(changed).optimizer.norms == Lion(second_beta=0.98)
    with pytest.raises(
        ConfigError, match=r"^lion has no 'epsilon', .* set .*norms\.rule=adamw first"
    ):
        TRAINING.change(changed, "optimizer.norms.epsilon", 1e-7)


def test_the_same_rule_again_keeps_its_numbers() -> None:
    changed = fields()

    for _ in range(2):
        TRAINING.change(changed, "optimizer.matrices.rate", 0.005)
        TRAINING.change(changed, "optimizer.matrices.rule", "muon")

    assert recipe_from_dict(changed).optimizer.matrices == Muon(rate=0.005)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", "many"),
        ("steps", 0),
        ("optimizer.matrices.rate", True),
        ("optimizer.clip", 0.0),
        ("optimizer.norms.rule", "sgd"),
        ("optimizer.norms.rule", ["lion"]),
        ("precision.weights", "int4"),
        ("objective.balance", "x"),
        ("model.width", 0),
        ("model.num_streams", 3),
        ("model.layer_pattern", ["mamba"]),
        ("model.norm_eps", 0.0),
        ("model.qk_norm", "True"),
    ],
    ids=str,
)
def test_a_value_that_no_recipe_may_have_is_refused_at_once(name: str, value: object) -> None:
    last = name.rpartition(".")[2]

    with pytest.raises(ConfigError, match=rf"^([a-z_.]*\.)?{last}="):
        TRAINING.change(fields(), name, value)


def test_values_that_fit_together_only_may_come_one_after_the_other() -> None:
    changed = fields()

    for name, value in (
        ("model.num_experts", 4),
        ("model.ffn_width", 0),
        ("model.expert_width", 256),
        ("model.layer_pattern", ["delta", "attention"]),
    ):
        TRAINING.change(changed, name, value)

    assert recipe_from_dict(changed).model.layer_pattern == ("delta", "attention")


def listed() -> list[str]:
    groups = itertools.chain.from_iterable(
        TRAINING.groups(prefix) for prefix, _ in TRAINING.titles()
    )
    return [setting for group in groups for setting in group.names.split(", ")]


def test_the_list_holds_every_setting_once() -> None:
    names = [setting.partition("=")[0] for setting in listed()]

    groups = [
        f.name for f in dataclasses.fields(Recipe) if f.name not in ("steps", "seed", "phases")
    ]
    expected = ["steps", "seed", "optimizer.clip", "optimizer.only"]
    expected += [f"optimizer.{role}.{name}" for role in ROLES for name in ("rule", "rate")]
    for group in groups:
        owner = type(getattr(RECIPE, group))
        if group != "optimizer":
            expected += [f"{group}.{f.name}" for f in dataclasses.fields(owner)]
    # Each rule has its own.
    for rule in (Muon, AdamW, Lion):
        expected += [f"optimizer.ROLE.{f.name}" for f in dataclasses.fields(rule)]
    assert sorted(names) == sorted(expected)


def change_by_command(folder: Path, *words: str) -> str:
    """What is said of a run that cannot begin, because there is no data."""
    changes = itertools.chain(*(("--set", word) for word in words))
    result = command_here(*options(folder, folder / "run"), "--preset", "tiny", *changes)
    assert result.returncode in (1, 2)
    return result.stderr


def test_the_listed_settings_may_be_written_as_they_stand_there(tmp_path: Path) -> None:
    words = [each for each in listed() if "=" in each and "ROLE" not in each]

    messages = change_by_command(tmp_path, *words, "steps=100")

    # Nothing was wrong before the data.
    assert messages.startswith(f"error: {tmp_path / 'data.json'}: no such file")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.width=0", "data.batch_size=0"], "width=0: must lie between"),
        (["data.batch_size=0", "model.width=0"], "data.batch_size=0: must be at least 1"),
        (
            ["optimizer.matrices.rate=fast", "nope=2"],
            "optimizer.matrices.rate='fast': write a number",
        ),
        (
            ["stpes=100", "data.batch_size=0"],
            f"there is no setting 'stpes' (did you mean steps?): {LISTED}",
        ),
        (["data.length=5000"], "data.length=5000 exceeds the model's context_length=1024"),
        (
            ['optimizer.only=["head"]', "steps=100"],
            "optimizer.only=['head']: the model has no head: choose among embedding, norms, streams, matrices",
        ),
        (
            ["optimizer.norms.rule=muon", "steps=100"],
            "optimizer.norms.rule=muon: the model's norms are no matrices: choose adamw or lion",
        ),
        (
            ["optimizer.matrices.rank=256", "steps=100"],
            "optimizer.matrices.rank=256: must be less than all rows and columns of the model's matrices, of which "
            "there are as few as 128: set optimizer.matrices.rank=0, or less than that",
        ),
        (
            ["optimizer.norms.rank=8", "steps=100"],
            "optimizer.norms.rank=8: must be less than all rows and columns of the model's norms, which are no "
            "matrices: set optimizer.norms.rank=0",
        ),
        (["model.width=100"], "width=100 is the input width of a ternary linear"),
        (["seed=1"], "the recipe needs a number of steps: add --set steps=1000"),
    ],
    ids=str,
)
def test_the_first_mistake_is_named_and_what_is_missing_last(
    words: list[str], message: str, tmp_path: Path
) -> None:
    assert change_by_command(tmp_path, *words).startswith(f"error: {message}")


def test_the_list_needs_nothing_else() -> None:
    result = command_here("train", "--settings")

    assert result.returncode == 0
    assert "optimizer.matrices.rate=0.02" in result.stdout
    assert "Sequences of one update" in result.stdout
