"""This file holds what all update rules have: a learning rate, and a decay of weights."""

from pydantic.dataclasses import dataclass

from nanochat.training.rules.arrays import Array
from nanochat.training.values import CHECKED, NotNegative, Positive

__all__ = ["Rated", "shrunk"]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Rated:
    """A rule.

    Parameters
    ----------
    rate : float
        Peak learning rate.
    weight_decay : float
        Share of the learning rate by which a parameter shrinks.
    cautious : bool
        Whether only numbers shrink that the update makes smaller, too.
    """

    rate: Positive
    weight_decay: NotNegative = 0.0
    cautious: bool = False


def shrunk(parameter: Array, change: Array, settings: Rated, rate: float) -> Array:
    """Parameters less their decay at a step, beside which they change so much.

    References
    ----------
    .. [1] I. Loshchilov and F. Hutter, "Decoupled Weight Decay Regularization", 2019. arXiv:1711.05101
    .. [2] L. Chen et al., "Cautious Weight Decay", 2025, algorithm 1. arXiv:2510.12402
    """
    decay = rate * settings.weight_decay
    if settings.cautious and decay:
        decay = (change * parameter < 0) * decay
    return parameter * (1 - decay)
