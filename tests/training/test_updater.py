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


def moved(norm: float, factor: float, rule: str) -> torch.Tensor:
    """What an update adds to a gain of 1, whose gradient is 1, at a rate of 0.1."""
    norms = {"rule": rule, "rate": 0.1, "epsilon": 1.0} if rule == "adamw" else {"rate": 0.1}
    optimizer = recipe(optimizer={"norms": {"rule": rule, **norms}, "clip": 2.0}).optimizer
    given = model()
    Updater(given, SPECS, optimizer, {}).update(norm=torch.tensor(norm), factor=factor)
    return given.get_parameter(OTHER).detach() - 1


@pytest.mark.parametrize(
    ("norm", "gradient"), [(0.5, 1.0), (2.0, 1.0), (8.0, 0.25)], ids=["small", "as large", "large"]
)
def test_gradients_are_clipped_to_their_largest_norm(norm: float, gradient: float) -> None:
    found = moved(norm, 1.0, "adamw")

    # The first step of AdamW whose epsilon is 1.
    expected = torch.full_like(found, -0.1 * gradient / (gradient + 1))
    torch.testing.assert_close(found, expected)


def test_a_step_has_its_share_of_the_peak_rate() -> None:
    found = moved(1.0, 0.25, "lion")

    torch.testing.assert_close(found, torch.full_like(found, -0.025))
