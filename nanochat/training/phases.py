"""This file holds what a recipe says of each step: the phase that it is in, its settings, data and learning rate."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from nanochat.data.batch import Layout
from nanochat.errors import ConfigError
from nanochat.training.fire import Fire
from nanochat.training.recipe import Recipe, Schedule, merged, recipe_from_dict, recipe_to_dict

__all__ = ["Stage", "learning_rate_factor", "num_tokens", "rate_factor", "stage_at", "stages"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Steps from `first` to before `end` that have the same settings; its `number` counts from 0.

    `fire` is what happens to the matrices before the first of them, if anything does. `recipe` is that of a run which
    has these settings from the start. Batches are counted from the step `data_first`, where the settings of the data
    changed for the time `data_order`, and learning rates from `schedule_first`, over `schedule_steps` steps.
    """

    number: int
    first: int
    end: int
    fire: Fire | None
    recipe: Recipe
    data_first: int
    data_order: int
    schedule_first: int
    schedule_steps: int

    @property
    def layout(self) -> Layout:
        """How its sequences are cut from the text."""
        data = self.recipe.data
        return Layout(
            length=data.length,
            packing=data.packing,
            document_masks=data.document_masks,
            mixture=tuple(data.mixture.items()),
        )


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """The phases of a recipe, of which one without phases has one."""
    plain = dataclasses.replace(recipe, phases=())
    found: list[Stage] = []
    first = data_first = data_order = 0
    for phase in recipe.phases or [None]:
        steps = recipe.steps if phase is None else phase.steps
        changes = {} if phase is None else {str(group): s for group, s in phase.changes.items()}
        has_schedule = "schedule" in changes
        try:
            settings = _changed(plain, changes, steps if has_schedule else recipe.steps)
        except ConfigError as error:
            raise ConfigError(f"phase {len(found) + 1}: {error}") from error
        if found and settings.data != found[-1].recipe.data:
            data_first, data_order = first, data_order + 1
        found.append(
            Stage(
                number=len(found),
                first=first,
                end=first + steps,
                fire=None if phase is None else phase.fire,
                recipe=settings,
                data_first=data_first,
                data_order=data_order,
                schedule_first=first if has_schedule else 0,
                schedule_steps=steps if has_schedule else recipe.steps,
            )
        )
        first += steps
    return tuple(found)


class _Ending(Protocol):
    """Steps to before `end`."""

    @property
    def end(self) -> int: ...


EndingT = TypeVar("EndingT", bound=_Ending)


def stage_at(found: Sequence[EndingT], step: int) -> EndingT:
    """That of the update after `step` others; at the end, the last one."""
    return next((stage for stage in found if step < stage.end), found[-1])


def num_tokens(found: Sequence[Stage], step: int) -> int:
    """Tokens that have been trained on after `step` updates."""
    return sum(
        max(0, min(step, stage.end) - stage.first)
        * stage.recipe.data.batch_size
        * stage.recipe.data.length
        for stage in found
    )


def learning_rate_factor(stage: Stage, step: int) -> float:
    """Share of the peak learning rate at a step, counted from 0: warm-up, stable, decay.

    Examples
    --------
    >>> from nanochat.presets import preset
    >>> from nanochat.training.recipe import Schedule
    >>> schedule = Schedule(warmup_steps=2, decay_steps=4)
    >>> (stage,) = stages(Recipe(model=preset("tiny"), steps=10, schedule=schedule))
    >>> [round(learning_rate_factor(stage, step), 2) for step in range(10)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    return rate_factor(stage.recipe.schedule, step - stage.schedule_first, stage.schedule_steps)


def rate_factor(schedule: Schedule, done: int, steps: int) -> float:
    """Share of the peak learning rate at the update after so many of so many others."""
    if done < schedule.warmup_steps:
        return (done + 1) / schedule.warmup_steps
    left = (steps - done) / max(1, schedule.decay_steps)
    if not schedule.decay_steps or left >= 1:
        return 1.0
    match schedule.tail:
        case "linear":
            fall = left
        case "1-sqrt":
            fall = 1 - math.sqrt(1 - left)
        case "cosine":
            fall = (1 - math.cos(math.pi * left)) / 2
    return schedule.floor + (1 - schedule.floor) * fall


def _changed(recipe: Recipe, changes: Mapping[str, Any], steps: int) -> Recipe:
    fields = recipe_to_dict(recipe)
    for group, values in changes.items():
        # A schedule over other steps has nothing of that of the run.
        old = dataclasses.asdict(Schedule()) if group == "schedule" else fields[group]
        fields[group] = merged(old, values)
    return recipe_from_dict({**fields, "steps": steps})
