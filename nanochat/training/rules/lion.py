"""This file holds Lion: its settings, its update, and what it keeps."""

from collections.abc import Sequence
from typing import Literal

from pydantic.dataclasses import dataclass

from nanochat.training.rules.arrays import Array, Kept, State, library
from nanochat.training.rules.rated import Rated
from nanochat.training.values import CHECKED, Positive, Share

__all__ = ["Lion", "kept_by_lion", "lion"]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Lion(Rated):
    """The sign of an interpolated momentum; about a tenth of AdamW's learning rate.

    Parameters
    ----------
    rule : "lion"
    first_beta, second_beta : float
        Of the momentum in the direction, and in the average that is kept.
    """

    rule: Literal["lion"] = "lion"
    rate: Positive = 0.001
    first_beta: Share = 0.9
    second_beta: Share = 0.99


def lion(
    gradient: Array, state: State, settings: Lion, *, shape: Sequence[int], rate: float, step: int
) -> tuple[Array, State]:
    """What a step of Lion adds to parameters, and the state after it.

    References
    ----------
    .. [1] X. Chen et al., 2023, algorithm 2. arXiv:2302.06675
    """
    del shape, step
    first_beta, second_beta = settings.first_beta, settings.second_beta
    average = state.get("average", gradient * 0)
    direction = average * first_beta + gradient * (1 - first_beta)
    change = library(gradient).sign(direction) * -rate
    return change, {"average": average * second_beta + gradient * (1 - second_beta)}


def kept_by_lion(settings: Lion, shape: Sequence[int]) -> dict[str, Kept]:
    """What it keeps of a parameter of that shape."""
    del settings
    return {"average": Kept(shape)}
