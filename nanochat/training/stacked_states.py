"""This file holds how an optimizer's state is read that lies in stacks of equal shapes, as snapshots had it once."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nanochat.shapes import shapes
from nanochat.training.recipe import Recipe
from nanochat.training.roles import role_of, rule_of
from nanochat.training.rules import Rule
from nanochat.training.updater import UPDATES, State
from nanochat.weights import named_leaves

__all__ = ["unstacked"]


def unstacked(
    stacks: Mapping[str, Mapping[str, Tensor]], recipe: Recipe, step: int
) -> dict[str, State]:
    """The state of each parameter.

    A stack is called ``RULE:FIRST`` by its first parameter; those behind it have its shape and rule, in the order of
    the weights tree.
    """
    alike: dict[tuple[Rule, tuple[int, ...]], list[str]] = {}
    place: dict[str, list[str]] = {}
    for name, spec in named_leaves(shapes(recipe.model)):
        rule = rule_of(recipe.optimizer, role_of(name, spec))
        place[name] = alike.setdefault((rule, spec.shape), [])
        place[name].append(name)
    found: dict[str, dict[str, Tensor]] = {}
    for key, stack in stacks.items():
        first = key.partition(":")[2]
        names = place.get(first, [])
        start = names.index(first) if names else 0
        for kind, tensor in stack.items():
            for name, values in zip(names[start : start + len(tensor)], tensor, strict=False):
                found.setdefault(name, {UPDATES: torch.tensor(step)})[kind] = values
    return dict(found)
