"""What an updater keeps of parameters, and when it goes on with it."""

from typing import Any

import numpy as np
import pytest
import torch

from nanochat.backends.torch.ops import TorchOps
from nanochat.init import init
from nanochat.shapes import shapes
from nanochat.training.module import LanguageModel
from nanochat.training.roles import OptimizerSettings
from nanochat.training.updater import State, Updater
from nanochat.weights import named_leaves
from tests.training.runs import recipe

CONFIG = recipe().model
SPECS = dict(named_leaves(shapes(CONFIG)))
MATRIX, OTHER = "layers.0.mixer.q", "norm"


def model() -> LanguageModel:
    """A model whose gradients are its parameters."""
    found = LanguageModel(CONFIG, init(CONFIG, np.random.default_rng(0)), TorchOps("cpu"))
    for parameter in found.parameters():
        parameter.grad = parameter.detach().clone()
    return found


def settings(**matrices: Any) -> OptimizerSettings:
    return recipe(optimizer={"matrices": matrices}).optimizer


def updated_once(optimizer: OptimizerSettings) -> dict[str, State]:
    updater = Updater(model(), SPECS, optimizer, {})
    updater.update(norm=torch.tensor(1.0), factor=1.0)
    return updater.states()


@pytest.mark.parametrize(
    ("then", "goes_on"),
    [
        ({"average": "int8"}, True),
        ({"average": "int8", "rate": 0.5}, True),
        ({}, False),
        ({"average": "int8", "row_beta": 0.9}, False),
        ({"average": "int8", "rank": 16}, False),
        ({"rule": "adamw"}, False),
    ],
    ids=str,
)
def test_a_state_goes_on_if_its_rule_keeps_the_same(then: dict[str, Any], goes_on: bool) -> None:
    before = updated_once(settings(average="int8"))

    after = Updater(model(), SPECS, settings(**then), before).states()

    assert after[MATRIX].updates == goes_on
    assert bool(after[MATRIX].kept) == goes_on
    assert after[OTHER].updates == 1
