"""This file holds the warning of settings that do nothing, for want of what they are settings of."""

import logging
from collections.abc import Sequence

from nanochat.shapes import shapes
from nanochat.training.objectives.settings import Objective
from nanochat.training.phases import Stage
from nanochat.training.recipe import Recipe
from nanochat.training.roles import ROLES, OptimizerSettings, role_of, rule_of
from nanochat.weights import named_leaves

__all__ = ["warn_of_unused"]

_LOGGER = logging.getLogger(__name__)


def warn_of_unused(found: Sequence[Stage]) -> None:
    """Name the settings that are not their defaults in some phase of a run, and serve in none."""
    parts = [(_lacking(stage.recipe), _changed(stage.recipe)) for stage in found]
    for name, lack in parts[0][0].items():
        values = [changed[name] for _, changed in parts if name in changed]
        if values and all(name in lacking for lacking, _ in parts):
            _LOGGER.warning("%s%s does nothing: %s", name, values[0], lack)


def _lacking(recipe: Recipe) -> dict[str, str]:
    """What each setting lacks that has no use."""
    model, objective = recipe.model, recipe.objective
    lacks: dict[str, tuple[object, str]] = {
        "ahead": (model.num_ahead, "the model has no extra heads: set model.num_ahead=1, say"),
        "exit_entropy": (
            model.loop_count > 1,
            "the model has no loop: set model.loop_count=2, say",
        ),
        "balance": (model.num_experts, "the model has no experts"),
        "router_z": (model.num_experts, "the model has no experts"),
        "temperature": (objective.distillation, "no phase has objective.distillation"),
    }
    for name in ("exit_slope", "exit_margin"):
        lacks[name] = (objective.exits == "improvement", 'objective.exits is not "improvement"')
    found = {f"objective.{name}": lack for name, (use, lack) in lacks.items() if not use}
    there = {role_of(name, spec) for name, spec in named_leaves(shapes(model))}
    for role in ROLES:
        if role not in there:
            tied = role == "head" and model.tie_embeddings
            found[f"optimizer.{role}"] = (
                "the head is the embedding, which optimizer.embedding is for"
                if tied
                else f"the model has no {role}"
            )
    return found


def _changed(recipe: Recipe) -> dict[str, str]:
    """The settings that are not their defaults, with what they are."""
    plain, rules = Objective(), OptimizerSettings()
    found = {
        f"objective.{name}": f"={value:g}"
        for name, value in vars(recipe.objective).items()
        if isinstance(value, float) and value != getattr(plain, name)
    }
    for role in ROLES:
        if rule_of(recipe.optimizer, role) != rule_of(rules, role):
            found[f"optimizer.{role}"] = ""
    return found
