"""This file holds what a run knows of numbers that were not finite, for which it leaves out batches and goes back."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nanochat.errors import TrainingError

__all__ = ["MOST_RETURNS", "MOST_SKIPPED", "NotFiniteError", "Setbacks", "require_finite"]

# Batches in a row that are left out for numbers that are not finite, before the run goes back.
MOST_SKIPPED = 3
# How often it goes back to one snapshot.
MOST_RETURNS = 2


class NotFiniteError(TrainingError):
    """A number that decides the run is infinite or none; `what` names it and the step."""

    def __init__(self, message: str, *, what: str) -> None:
        super().__init__(message)
        self.what = what


@dataclass(frozen=True, kw_only=True)
class Setbacks:
    """What a run has met so far.

    Parameters
    ----------
    skipped : int
        Batches that were left out: each step reads as many later.
    in_a_row : int
        Those of them since the last update.
    returns, returned_to : int
        How often it went back, at the last, to the snapshot of that step.
    """

    skipped: int = 0
    in_a_row: int = 0
    returns: int = 0
    returned_to: int = 0


def require_finite(values: Mapping[str, float], *, step: int, start: Path | None) -> None:
    """Refuse numbers that are infinite or none; `start` is where another run may begin.

    Raises
    ------
    NotFiniteError
        That names the first of them.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            again = "begin again" if start is None else f"begin another run with --start {start}"
            what = f"{name} is {value} at step {step}"
            raise NotFiniteError(
                f"{what}: must be finite, so nothing is saved; {again} and a lower rate, such as --set "
                "optimizer.matrices.rate=0.01",
                what=what,
            )
