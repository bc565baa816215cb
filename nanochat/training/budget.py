"""This file holds runs that are as long as a time allows: what they have spent, and when they must begin to end.

Until the learning rate falls, a run is the same however long it will be. So its steps are decided where the rest of the
time is what the fall takes, at the pace that was measured.
"""

import dataclasses
import time

from nanochat.errors import ConfigError
from nanochat.training.recipe import Recipe

__all__ = ["Budget", "seconds_of"]

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
# What may still come, such as a slower neighbour.
_MARGIN = 1.03
# Of all steps, those in which the rate falls where the recipe does not say.
_FALL = 0.2


class Budget:
    """The time of a run, of which it had spent some seconds before this process."""

    def __init__(self, spent: float) -> None:
        self._begin = time.monotonic() - spent
        self._paced: tuple[float, int] | None = None

    @property
    def spent(self) -> float:
        """Seconds, of all processes together."""
        return time.monotonic() - self._begin

    def ending(self, recipe: Recipe, step: int, *, last_tokens: int) -> Recipe | None:
        """The recipe with its steps, if they must be decided now; call it after each step until they are.

        Parameters
        ----------
        last_tokens : int
            Tokens of the last evaluation, of which a pass forward takes a third of one with gradients.
        """
        # The first step of a process compiles.
        if self._paced is None:
            self._paced = self.spent, step
        then, first = self._paced
        pace = _MARGIN * (self.spent - then) / max(1, step - first)
        reserve = pace * last_tokens / (3 * recipe.data.batch_size * recipe.data.length)
        left = max(0.0, recipe.run.budget - self.spent - reserve)
        fall = recipe.schedule.decay_steps or max(1, round(step * _FALL / (1 - _FALL)))
        if left > fall * pace:
            return None
        fall = max(1, min(fall, int(left / pace) if pace else 1))
        schedule = dataclasses.replace(
            recipe.schedule,
            warmup_steps=min(recipe.schedule.warmup_steps, step),
            decay_steps=fall,
        )
        return dataclasses.replace(recipe, steps=step + fall, schedule=schedule)


def seconds_of(text: object) -> float:
    """The seconds of a duration: a number of them, or one with a unit, such as "90m".

    Examples
    --------
    >>> seconds_of("2h"), seconds_of("1.5m"), seconds_of(30)
    (7200.0, 90.0, 30.0)

    Raises
    ------
    ConfigError
        If it is no duration.
    """
    number, unit = (
        (text[:-1], text[-1:]) if isinstance(text, str) and text[-1:] in _UNITS else (text, "s")
    )
    try:
        found = float(str(number)) * _UNITS[unit]
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise ConfigError(f"budget={text!r:.80}: write a duration, such as 90s, 20m, 2h or 1d")
    return found
