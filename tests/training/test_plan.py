"""What is asked of a run is put together, and what cannot be is refused, before anything is written."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from nanochat.config import config_to_dict
from nanochat.errors import ConfigError
from nanochat.presets import preset
from nanochat.shapes import num_parameters
from nanochat.training.plan import plan
from nanochat.training.recipe import recipe_to_dict
from nanochat.training.snapshot import Snapshot, save_snapshot, snapshot_directory
from tests.training.runs import MODEL, recipe

ROOT = Path(__file__).parents[2]
RECIPE = recipe(optimizer={"norms": {"rule": "lion"}})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has saved a snapshot, without its numbers."""
    snapshot = Snapshot(step=5, recipe=RECIPE, data="", parameters={}, optimizer={})
    save_snapshot(snapshot_directory(tmp_path / "run", 5), snapshot)
    return tmp_path / "run"


def asked(folder: Path, fields: dict[str, Any] | None, **options: Any) -> dict[str, Any]:
    found = plan(fields, data=folder, out=folder / "new", **options)
    return recipe_to_dict(found.recipe)


def test_the_run_of_the_document_can_begin(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    (example,) = re.findall(r'train\("(.*)", changes=({.*})\)', text)

    found = plan(ROOT / example[0], changes=[*json.loads(example[1]).items()], out=tmp_path / "run")

    assert found.recipe.steps == 150


def test_a_configuration_without_a_shape_changes_the_recipe_that_a_run_starts_with(
    run: Path, tmp_path: Path
) -> None:
    fields = {"steps": 600, "data": {"length": 96}, "model": {"num_streams": 4}}

    found = asked(tmp_path, fields, start=run, changes=[("data.batch_size", 3)])

    old = recipe_to_dict(RECIPE)
    of_data = {**dataclasses.asdict(RECIPE.data), "batch_size": 3, "length": 96}
    assert found == {**old, "steps": 600, "data": of_data}


def test_a_configuration_with_a_shape_is_a_recipe_of_its_own(run: Path, tmp_path: Path) -> None:
    found = asked(tmp_path, {"preset": "tiny", "steps": 600}, start=run)

    assert found["model"] == config_to_dict(preset("tiny"))
    assert found["optimizer"]["norms"]["rule"] == "adamw"


def test_a_configuration_is_left_as_it_was(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"preset": "tiny", "steps": 100, "data": {"length": 96}}

    asked(tmp_path, fields, changes=[("data.length", 64)])

    assert fields == {"preset": "tiny", "steps": 100, "data": {"length": 96}}


def test_a_preset_takes_the_place_of_that_of_a_configuration(tmp_path: Path) -> None:
    fields = {"preset": "tiny", "steps": 100, "model": {"num_layers": 2}}

    found = asked(tmp_path, fields, preset_name="d20")

    assert (found["model"]["width"], found["model"]["num_layers"]) == (preset("d20").width, 2)


def test_a_preset_that_would_change_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--preset d20 .* a whole \[model\]: leave out one of"):
        asked(tmp_path, recipe_to_dict(RECIPE), preset_name="d20")


def test_a_configuration_without_a_shape_is_told_how_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='names no model: write preset = "tiny" into it, say'):
        asked(tmp_path, {"steps": 600})


def test_a_run_goes_on_with_the_configuration_that_it_had(run: Path, tmp_path: Path) -> None:
    fields = recipe_to_dict(RECIPE)
    fields["precision"] = {"weights": "ternary", "products": "auto"}

    assert plan(fields, data=tmp_path, out=run, resume=True).recipe == RECIPE
    assert plan({"seed": 0}, data=tmp_path, out=run, resume=True).recipe == RECIPE


def test_a_run_that_goes_on_refuses_what_another_configuration_changes(
    run: Path, tmp_path: Path
) -> None:
    fields = {**recipe_to_dict(RECIPE), "steps": 600, "optimizer": {"norms": {"rate": 0.1}}}

    with pytest.raises(
        ConfigError,
        match=r"steps \(600 for 30\), optimizer\.norms\.rate \(0\.1 for 0\.001\), optimizer\.norms\.rule \(adamw for "
        rf"lion\), .*: pass --out {run} in place of CONFIG .* --start {run} --out OTHER$",
    ):
        plan(fields, data=tmp_path, out=run, resume=True)


def test_many_differences_are_counted(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.vocab_size \(.*\) and [0-9]+ others: pass"):
        plan({"preset": "tiny", "steps": 50}, data=tmp_path, out=run, resume=True)


def test_tokens_for_each_parameter_are_as_many_steps(run: Path, tmp_path: Path) -> None:
    fields = {"model": {"vocab_size": 300, **MODEL}, "data": {"batch_size": 2, "length": 64}}

    found = asked(tmp_path, {**fields, "tokens_per_parameter": 10})
    branch = asked(tmp_path, {"tokens_per_parameter": 10}, start=run)
    fewer = asked(tmp_path, {**fields, "tokens_per_parameter": 10}, changes=[("steps", 50)])
    more = asked(tmp_path, {**fields, "steps": 50}, changes=[("tokens_per_parameter", 20.0)])

    parameters = num_parameters(RECIPE.model)
    assert found["steps"] == branch["steps"] == math.ceil(10 * parameters / 128)
    assert (fewer["steps"], more["steps"]) == (50, math.ceil(20 * parameters / 128))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 5, "tokens_per_parameter": 20}, "steps and tokens_per_parameter both say how"),
        ({"tokens_per_parameter": "20"}, "tokens_per_parameter='20': write a number above 0"),
        ({"tokens_per_parameter": 0}, "tokens_per_parameter=0: write a number above 0"),
        ({"tokens_per_parameter": 1, "phases": [{"steps": 3}]}, "phases have steps of their own"),
    ],
    ids=str,
)
def test_a_length_that_cannot_be_is_refused(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        asked(tmp_path, {"preset": "tiny", **fields})
