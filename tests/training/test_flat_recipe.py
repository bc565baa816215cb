"""Recipes of before settings stood in groups mean what they meant."""

import copy
import json
from typing import Any

import pytest

from nanochat.errors import ConfigError
from nanochat.training.flat_recipe import nested
from nanochat.training.recipe import Precision, Recipe, Schedule, recipe_from_dict
from nanochat.training.roles import ROLES, rule_of
from nanochat.training.rules.adamw import AdamW
from nanochat.training.rules.lion import Lion
from nanochat.training.rules.muon import Muon
from nanochat.zoo.hub import resolve
from tests.training.runs import MODEL, recipe

FLAT: dict[str, Any] = {"model": {"vocab_size": 300, **MODEL}, "steps": 100, "length": 64}
TABLES = ("embedding", "head")


def read(**changes: object) -> Recipe:
    return recipe_from_dict(nested({**FLAT, **changes}))


def test_the_recipe_of_the_shipped_model_is_read() -> None:
    found = recipe_from_dict(
        nested(json.loads((resolve("nanochat-tiny") / "recipe.json").read_text()))
    )

    assert (found.steps, found.data.batch_size, found.data.length) == (1100, 8, 512)
    assert found.schedule == Schedule(warmup_steps=40, decay_steps=330)
    assert found.precision == Precision(weights="ternary", products="bfloat16")
    assert (found.run.snapshot_every, found.run.evaluation_windows) == (50, 128)
    assert found.optimizer.matrices == Muon(rate=0.02)


def test_rates_go_to_the_roles_that_they_were_of() -> None:
    found = read(matrix_rate=0.1, table_rate=0.2, vector_rate=0.3, weight_decay=0.4, clip=2.0)

    assert found.optimizer.matrices == Muon(rate=0.1, weight_decay=0.4)
    for role in ROLES[1:]:
        assert rule_of(found.optimizer, role) == AdamW(rate=0.2 if role in TABLES else 0.3)
    assert found.optimizer.clip == 2.0


def test_lion_keeps_the_numbers_of_adamw_that_it_had() -> None:
    found = read(table_rule="lion", table_rate=0.001, vector_rate=0.002)

    assert found.optimizer.norms == Lion(rate=0.002, first_beta=0.9, second_beta=0.95)
    assert found.optimizer.head == Lion(rate=0.001, first_beta=0.9, second_beta=0.95)
    assert recipe(optimizer={"norms": {"rule": "lion"}}).optimizer.norms == Lion(second_beta=0.99)


@pytest.mark.parametrize("rule", ["adamw", "lion"])
def test_ternary_tables_are_updated_as_the_matrices_that_they_were(rule: str) -> None:
    model = {**FLAT["model"], "table_format": "ternary"}

    found = read(model=model, table_rule=rule, matrix_rate=0.1, table_rate=0.2)

    assert found.optimizer.embedding == found.optimizer.head == Muon(rate=0.1)
    assert found.optimizer.norms.rule == rule


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"batch_size": 32, "data": {"length": 256}},
            r"^batch_size=32 is .* beside the group data: move it to data\.batch_size$",
        ),
        ({"clip": 2.0, "optimizer": {}}, r"group optimizer: move it to optimizer\.clip$"),
        ({"products": "float32", "precision": {}}, r"move it to precision\.products$"),
        ({"precision": "float", "run": {}}, r"group run: move it to precision\.weights$"),
        (
            {"data": {}, "table_rate": 0.1},
            r"move it to optimizer\.embedding\.rate and optimizer\.head\.rate$",
        ),
        ({"data": 7, "batch_size": 3}, r"beside the group data"),
    ],
    ids=str,
)
def test_old_names_beside_groups_are_refused(fields: dict[str, Any], message: str) -> None:
    before = copy.deepcopy(fields)

    with pytest.raises(ConfigError, match=message):
        nested({"model": FLAT["model"], "steps": 100, **fields})
    assert fields == before
