"""This file holds the recipe of a training run: every number that decides its result, and the schedule."""

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from pydantic import ValidationError
from pydantic.dataclasses import dataclass

from nanochat.config import ModelConfig, config_from_dict, config_to_dict
from nanochat.errors import ConfigError
from nanochat.train.checks import refusal
from nanochat.train.flat_recipe import nested
from nanochat.train.loss import Objective
from nanochat.train.roles import ROLES, OptimizerSettings
from nanochat.train.values import CHECKED, Count, Whole

__all__ = [
    "DataSettings",
    "Precision",
    "Recipe",
    "RunSettings",
    "Schedule",
    "learning_rate_factor",
    "recipe_from_dict",
    "recipe_to_dict",
]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DataSettings:
    """What an update reads.

    Parameters
    ----------
    batch_size, length : int
        Sequences of one update, tokens of one sequence.
    """

    batch_size: Count = 16
    length: Count = 512


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Schedule:
    """Learning rates over a run, as shares of their peaks.

    Parameters
    ----------
    warmup_steps, decay_steps : int
        They rise linearly over the first, stay, and fall linearly to zero over the last.
    """

    warmup_steps: Whole = 40
    decay_steps: Whole = 0


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Precision:
    """What numbers are rounded to in training.

    Parameters
    ----------
    weights : {"ternary", "float"}
        "float" trains the unquantised twin.
    products : {"float32", "bfloat16"}
        Type of the products with weights. In bfloat16 the codes are exact and the scales round.
    """

    weights: Literal["ternary", "float"] = "ternary"
    products: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class RunSettings:
    """What a run does besides updates.

    Parameters
    ----------
    evaluate_every, snapshot_every : int
        Steps between held-out evaluations and between snapshots.
    keep_snapshots : int
        Snapshots that are kept, the last ones, besides that of the best evaluation.
    evaluation_windows : int
        Held-out sequences in an evaluation during the run; the last one uses all of them, but no more than were trained
        on.
    """

    evaluate_every: Count = 100
    snapshot_every: Count = 100
    keep_snapshots: Count = 2
    evaluation_windows: Count = 64


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Recipe:
    """A training run.

    Parameters
    ----------
    steps : int
        Updates.
    seed : int
        Of the initial weights and of the order of the data.
    """

    model: ModelConfig
    steps: Count
    seed: Whole = 0
    data: DataSettings = field(default_factory=DataSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: Schedule = field(default_factory=Schedule)
    objective: Objective = field(default_factory=Objective)
    precision: Precision = field(default_factory=Precision)
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        model, schedule, length = self.model, self.schedule, self.data.length
        if schedule.warmup_steps + schedule.decay_steps > self.steps:
            raise ConfigError(
                f"schedule.warmup_steps={schedule.warmup_steps} and schedule.decay_steps={schedule.decay_steps} exceed "
                f"steps={self.steps}: train longer, or shorten them with --set schedule.warmup_steps=0, say"
            )
        if length > model.context_length:
            raise ConfigError(
                f"data.length={length} exceeds the model's context_length={model.context_length}: shorten it"
            )
        if model.rotation_block:
            raise ConfigError(
                f"rotation_block={model.rotation_block}: models of rotated inputs are read and run, not trained; "
                "set model.rotation_block=0"
            )
        if model.num_ahead >= length:
            raise ConfigError(
                f"data.length={length} leaves no target for num_ahead={model.num_ahead}: lengthen it"
            )


def learning_rate_factor(recipe: Recipe, step: int) -> float:
    """Share of the peak learning rate at a step, counted from 0: warm-up, stable, decay.

    Examples
    --------
    >>> from nanochat.presets import preset
    >>> schedule = Schedule(warmup_steps=2, decay_steps=4)
    >>> recipe = Recipe(model=preset("tiny"), steps=10, schedule=schedule)
    >>> [round(learning_rate_factor(recipe, step), 2) for step in range(10)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    warmup, decay = recipe.schedule.warmup_steps, recipe.schedule.decay_steps
    rise = (step + 1) / warmup if warmup else 1.0
    fall = (recipe.steps - step) / decay if decay else 1.0
    return min(1.0, rise, fall)


def recipe_to_dict(recipe: Recipe) -> dict[str, object]:
    """All settings in their groups, ready for JSON."""
    return {**dataclasses.asdict(recipe), "model": config_to_dict(recipe.model)}


def recipe_from_dict(fields: Mapping[str, object]) -> Recipe:
    """Rebuild a recipe from `recipe_to_dict`, or from one of before settings stood in groups.

    What is absent has its default; of a role's rule only what differs from it need be given.

    Raises
    ------
    ConfigError
        If a setting is unknown, absent without a default, or of a value that it may not have.
    """
    fields = nested(fields)
    model = fields.get("model")
    if not isinstance(model, Mapping):
        raise ConfigError(
            f"not a recipe: its model is {model!r:.40}, not a group of settings; use a recipe of `nanochat train` as "
            "it was written"
        )
    optimizer = fields.get("optimizer", {})
    if isinstance(optimizer, Mapping):
        fields["optimizer"] = {
            name: _whole_rule(name, found) if name in ROLES else found
            for name, found in optimizer.items()
        }
    try:
        return Recipe(**{**fields, "model": config_from_dict(model)})  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        raise refusal(error, Recipe) from error


def _whole_rule(role: str, found: object) -> object:
    """A role's rule with its name, if it is absent, and with the role's own defaults, if it is the role's own."""
    default = dataclasses.asdict(getattr(OptimizerSettings(), role))
    if isinstance(found, Mapping) and found.get("rule", default["rule"]) == default["rule"]:
        return {**default, **found}
    return found
