"""This file holds the gains of norms that programs store in two ways: whole, or less 1, as transformers' `qwen3_5`."""

import logging

import numpy as np

from nanochat.weights import Dense, Stored, Weights, named_leaves

__all__ = ["is_above_one", "say_unusual_gains"]

_LOGGER = logging.getLogger(__name__)

_NORMS = (".mixer_site.norm", ".network_site.norm", ".mixer.q_norm", ".mixer.k_norm")
# By how much the usual gain may differ from 1.
_USUAL = 0.75


def is_above_one(name: str) -> bool:
    """Whether some programs store of this leaf what is above 1."""
    return name == "norm" or name.endswith(_NORMS)


def say_unusual_gains(model: str, weights: Weights[Stored], *, program: str) -> None:
    """Warn of gains that are far from 1 in the middle, read as a program stores them."""
    means = [
        float(leaf.values.mean())
        for name, leaf in named_leaves(weights)
        if isinstance(leaf, Dense) and is_above_one(name)
    ]
    usual = float(np.median(means))
    if abs(usual - 1) > _USUAL:
        _LOGGER.warning(
            "%s: gains of norms are %.2f in the middle, as %s stores them, where about 1 is usual: it may be a model "
            "that stores them otherwise, and then writes nonsense; compare it with another file of the same model",
            model,
            usual,
            program,
        )
