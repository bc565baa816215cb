"""This file holds AdamW: its settings, its update, and what it keeps."""

from collections.abc import Sequence
from typing import Literal

from pydantic.dataclasses import dataclass

from nanochat.training.rules.arrays import Array, Kept, State
from nanochat.training.rules.low_rank import Projected
from nanochat.training.values import CHECKED, Positive, Share

__all__ = ["AdamW", "adamw", "kept_by_adamw"]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class AdamW(Projected):
    """Adam with decoupled weight decay.

    Parameters
    ----------
    rule : "adamw"
    first_beta, second_beta : float
        Of the averages of gradients and of their squares.
    epsilon : float
        Is added to the root of the second.
    """

    rule: Literal["adamw"] = "adamw"
    rate: Positive = 0.01
    first_beta: Share = 0.9
    second_beta: Share = 0.95
    epsilon: Positive = 1e-8


def adamw(
    gradient: Array,
    state: State,
    settings: AdamW,
    *,
    shape: Sequence[int],
    rate: float,
    step: int,
) -> tuple[Array, State]:
    """What a step of AdamW adds to parameters, and the state after it; `step` counts those of this state, from 1.

    References
    ----------
    .. [1] I. Loshchilov and F. Hutter, 2019, algorithm 2. arXiv:1711.05101
    """
    del shape
    first_beta, second_beta = settings.first_beta, settings.second_beta
    first = state.get("first", gradient * 0) * first_beta + gradient * (1 - first_beta)
    second = state.get("second", gradient * 0) * second_beta + gradient**2 * (1 - second_beta)
    mean = first / (1 - first_beta**step)
    root = (second / (1 - second_beta**step)) ** 0.5
    return mean / (root + settings.epsilon) * -rate, {"first": first, "second": second}


def kept_by_adamw(settings: AdamW, shape: Sequence[int]) -> dict[str, Kept]:
    """What it keeps of a parameter of that shape."""
    del settings
    return {"first": Kept(shape), "second": Kept(shape)}
