"""This file holds the recipe of a training run: every number that decides its result, and the schedule."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args, get_type_hints

from nanochat.config import ModelConfig, config_from_dict, config_to_dict
from nanochat.errors import ConfigError, did_you_mean
from nanochat.train.loss import Objective
from nanochat.train.module import Precision

__all__ = ["Recipe", "check_setting", "learning_rate_factor", "recipe_from_dict", "recipe_to_dict"]


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
        for settings in (self, self.objective):
            for setting in dataclasses.fields(settings):
                check_setting(type(settings), setting.name, getattr(settings, setting.name))
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ConfigError(
                f"warmup_steps={self.warmup_steps} and decay_steps={self.decay_steps} exceed steps={self.steps}: "
                "train longer, or shorten them with --set warmup_steps=0, say"
            )
        if self.length > self.model.context_length:
            raise ConfigError(
                f"length={self.length} exceeds the model's context_length={self.model.context_length}: shorten it"
            )
        if self.model.rotation_block:
            raise ConfigError(
                f"rotation_block={self.model.rotation_block}: models of rotated inputs are read and run, not trained; "
                "set model.rotation_block=0"
            )
        if self.model.num_ahead >= self.length:
            raise ConfigError(
                f"length={self.length} leaves no target for num_ahead={self.model.num_ahead}: lengthen it"
            )


def check_setting(owner: type[Recipe | Objective], name: str, value: object) -> None:
    """Refuse a value that a setting has in no recipe."""
    kind = get_type_hints(owner)[name]
    if kind is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{name}={value!r}: write a whole number")
        if name in ("warmup_steps", "decay_steps", "seed"):
            if value < 0:
                raise ConfigError(f"{name}={value}: must not be negative")
        elif value < 1:
            raise ConfigError(f"{name}={value}: must be at least 1")
    elif kind is float:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 <= value < float("inf")
        ):
            raise ConfigError(f"{name}={value!r}: write a number that is not negative")
        if owner is Recipe and name != "weight_decay" and not value:
            raise ConfigError(f"{name}={value}: must be a positive number")
    elif get_args(kind) and value not in get_args(kind):
        raise ConfigError(f"{name}={value!r}: choose one of {list(get_args(kind))}")


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
    model, terms = fields.get("model"), fields.get("objective", {})
    for group, found in (("model", model), ("objective", terms)):
        if not isinstance(found, Mapping):
            raise ConfigError(
                f"not a recipe: its {group} is {found!r:.40}, not a group of settings; "
                "use a recipe of `nanochat train` as it was written"
            )
    assert isinstance(model, Mapping)
    assert isinstance(terms, Mapping)
    for owner, found in ((Recipe, fields), (Objective, terms)):
        _require_known(owner, found)
    whole = {**fields, "model": config_from_dict(model), "objective": Objective(**terms)}
    if "steps" not in fields:
        raise ConfigError("the recipe needs a number of steps: add --set steps=1000, say")
    return Recipe(**whole)  # type: ignore[arg-type]  # checked above and by the recipe


def _require_known(owner: type[Recipe | Objective], fields: Mapping[str, object]) -> None:
    known = [field.name for field in dataclasses.fields(owner)]
    for name in fields:
        if name not in known:
            raise ConfigError(
                f"there is no setting {name!r:.80} in a recipe{did_you_mean(name, known)}: correct or remove it, or "
                "upgrade nanochat-ternary"
            )
