"""This file holds the recipe of a training run: every number that decides its result, and the schedule."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args, get_type_hints

from nanochat.config import ModelConfig, config_from_dict, config_to_dict
from nanochat.errors import ConfigError
from nanochat.train.loss import Objective
from nanochat.train.module import Precision

__all__ = ["Recipe", "learning_rate_factor", "recipe_from_dict", "recipe_to_dict"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run.

    Parameters
    ----------
    steps, batch_size, length : int
        Updates, sequences of one update, tokens of one sequence.
    warmup_steps, decay_steps : int
        The learning rate rises linearly over the first, stays, and falls linearly to zero over the last.
    matrix_rate, table_rate, vector_rate : float
        Peak learning rates of ternary matrices (Muon), of embedding and head, and of all other parameters.
    table_rule : {"adamw", "lion"}
        Update rule of everything that is not a ternary matrix.
    weight_decay : float
        Of the matrices.
    clip : float
        Largest global gradient norm.
    precision : {"ternary", "float"}
        "float" trains the unquantised twin.
    products : {"float32", "bfloat16"}
        Type of the products with weights. In bfloat16 the codes are exact and the scales round.
    seed : int
        Of the initial weights and of the order of the data.
    evaluate_every, snapshot_every : int
        Steps between held-out evaluations and between training checkpoints.
    evaluation_windows : int
        Held-out sequences in an evaluation during the run; the last one uses all of them, but no more than were trained
        on.
    """

    model: ModelConfig
    steps: int
    batch_size: int = 16
    length: int = 512
    warmup_steps: int = 40
    decay_steps: int = 0
    matrix_rate: float = 0.02
    table_rate: float = 0.004
    vector_rate: float = 0.01
    table_rule: Literal["adamw", "lion"] = "adamw"
    weight_decay: float = 0.0
    clip: float = 1.0
    precision: Precision = "ternary"
    products: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    evaluate_every: int = 100
    snapshot_every: int = 100
    evaluation_windows: int = 64
    objective: Objective = field(default_factory=Objective)

    def __post_init__(self) -> None:
        _check_types(self)
        _check_types(self.objective)
        for name, kind in get_type_hints(Recipe).items():
            value = getattr(self, name)
            if kind is int and name in ("warmup_steps", "decay_steps", "seed"):
                if value < 0:
                    raise ConfigError(f"{name}={value}: must not be negative")
            elif kind is int and value < 1:
                raise ConfigError(f"{name}={value}: must be at least 1")
            elif kind is float and name != "weight_decay" and not value:
                raise ConfigError(f"{name}={value}: must be a positive number")
            elif get_args(kind) and value not in get_args(kind):
                raise ConfigError(f"{name}={value!r}: choose one of {list(get_args(kind))}")
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ConfigError(
                f"warmup_steps={self.warmup_steps} and decay_steps={self.decay_steps} exceed steps={self.steps}: "
                "train longer, or shorten them with --set warmup_steps=0, say"
            )
        if self.length > self.model.context_length:
            raise ConfigError(
                f"length={self.length} exceeds the model's context_length={self.model.context_length}: shorten it"
            )
        if self.model.num_ahead >= self.length:
            raise ConfigError(
                f"length={self.length} leaves no target for num_ahead={self.model.num_ahead}: lengthen it"
            )


def _check_types(settings: Recipe | Objective) -> None:
    for name, kind in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if kind is int and not whole:
            raise ConfigError(f"{name}={value!r}: write a whole number")
        if kind is float and not (
            (whole or isinstance(value, float)) and 0 <= value < float("inf")
        ):
            raise ConfigError(f"{name}={value!r}: write a number that is not negative")


def learning_rate_factor(recipe: Recipe, step: int) -> float:
    """Share of the peak learning rate at a step, counted from 0: warm-up, stable, decay.

    Examples
    --------
    >>> from nanochat.presets import preset
    >>> recipe = Recipe(model=preset("tiny"), steps=10, warmup_steps=2, decay_steps=4)
    >>> [round(learning_rate_factor(recipe, step), 2) for step in range(10)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    rise = (step + 1) / recipe.warmup_steps if recipe.warmup_steps else 1.0
    fall = (recipe.steps - step) / recipe.decay_steps if recipe.decay_steps else 1.0
    return min(1.0, rise, fall)


def recipe_to_dict(recipe: Recipe) -> dict[str, object]:
    """All fields by name, ready for JSON."""
    return {**dataclasses.asdict(recipe), "model": config_to_dict(recipe.model)}


def recipe_from_dict(fields: Mapping[str, object]) -> Recipe:
    """Rebuild a recipe from `recipe_to_dict`."""
    unknown = sorted(set(fields) - {f.name for f in dataclasses.fields(Recipe)})
    model, terms = fields.get("model"), fields.get("objective", {})
    if unknown or not isinstance(model, Mapping) or not isinstance(terms, Mapping):
        raise ConfigError(
            f"not a recipe (unknown fields {unknown}, model of type {type(model).__name__}): it was written by another "
            "version or edited; start a new run"
        )
    try:
        whole = {**fields, "model": config_from_dict(model), "objective": Objective(**terms)}
        return Recipe(**whole)  # type: ignore[arg-type]  # checked above and by the recipe
    except TypeError as error:
        raise ConfigError(f"not a recipe: {error}; start a new run") from error
