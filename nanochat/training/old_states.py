"""This file holds how the state of an optimizer is read from old snapshots, which name no rules."""

from collections.abc import Mapping

from torch import Tensor

from nanochat.shapes import shapes
from nanochat.training.phases import stage_at, stages
from nanochat.training.recipe import Recipe
from nanochat.training.roles import role_of, rule_of
from nanochat.training.rules.rule import Rule
from nanochat.training.updater import State
from nanochat.weights import named_leaves

__all__ = ["named_states", "stacked_states"]


def named_states(
    found: Mapping[str, Mapping[str, Tensor]], recipe: Recipe, step: int
) -> dict[str, State]:
    """The state of each parameter, from what is kept by name, with ``updates``, of those that the phase had updated."""
    settings = stage_at(stages(recipe), max(0, step - 1)).recipe.optimizer
    states = {}
    for name, spec in named_leaves(shapes(recipe.model)):
        kept = dict(found.get(name, {}))
        updates = int(kept.pop("updates", 0))
        rule = rule_of(settings, role_of(name, spec)).rule
        states[name] = State(rule=rule, updates=updates, kept=kept)
    return states


def stacked_states(
    stacks: Mapping[str, Mapping[str, Tensor]], recipe: Recipe, step: int
) -> dict[str, State]:
    """The state of each parameter, from stacks of equal shapes.

    A stack is called ``RULE:FIRST`` by its first parameter; those behind it have its shape and rule, in the order of
    the weights tree.
    """
    rules: dict[str, Rule] = {}
    alike: dict[tuple[Rule, tuple[int, ...]], list[str]] = {}
    place: dict[str, list[str]] = {}
    for name, spec in named_leaves(shapes(recipe.model)):
        rules[name] = rule_of(recipe.optimizer, role_of(name, spec))
        place[name] = alike.setdefault((rules[name], spec.shape), [])
        place[name].append(name)
    kept: dict[str, dict[str, Tensor]] = {}
    for key, stack in stacks.items():
        first = key.partition(":")[2]
        names = place.get(first, [])
        start = names.index(first) if names else 0
        for kind, tensor in stack.items():
            for name, values in zip(names[start : start + len(tensor)], tensor, strict=False):
                kept.setdefault(name, {})[kind] = values
    return {
        name: State(rule=rule.rule, updates=step, kept=kept.get(name, {}))
        for name, rule in rules.items()
    }
