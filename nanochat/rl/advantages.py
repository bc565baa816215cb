"""This file holds advantages: what each sample is worth beside the others of its problem.

For rewards ``r`` of a problem with mean ``m`` and standard deviation ``s``:

============  =============================  ==========================================
name          advantage                      what follows
============  =============================  ==========================================
reinforce     ``r - m``
dr-grpo       ``r - m``                      unbiased, with a constant normaliser [2]_
grpo          ``(r - m) / (s + 1e-4)``       problems count alike, easy ones, too [1]_
maxrl         ``(r - m) / (m + 1e-6)``       a rare success counts by its rareness [3]_
============  =============================  ==========================================

References
----------
.. [1] Z. Shao et al., "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models", 2024,
   section 4.1. arXiv:2402.03300. The deviation is that of a sample, and 1e-4 are TRL's.
.. [2] Z. Liu et al., "Understanding R1-Zero-Like Training: A Critical Perspective", 2025, section 3. arXiv:2503.20783
.. [3] F. Tajwar et al., "Maximum Likelihood Reinforcement Learning", 2026, section 4. arXiv:2602.02710
"""

import numpy as np
from numpy.typing import NDArray

from nanochat.rl.recipe import Advantage

__all__ = ["advantages", "have_signal"]

_EPSILON_OF_DEVIATION = 1e-4
_EPSILON_OF_MEAN = 1e-6


def advantages(rewards: NDArray[np.float64], kind: Advantage) -> NDArray[np.float64]:
    """What each sample is worth.

    Parameters
    ----------
    rewards : float64 array, shape (P, G)
        Of G samples of each of P problems, none below 0; NaN of one that nobody could judge, which is worth 0 and
        counts in nothing.

    Returns
    -------
    float64 array, shape (P, G)

    Examples
    --------
    >>> advantages(np.array([[1.0, 0.0, 0.0, 0.0]]), "maxrl").round(3).tolist()
    [[3.0, -1.0, -1.0, -1.0]]
    """
    judged = ~np.isnan(rewards)
    count = judged.sum(axis=1, keepdims=True)
    values = np.where(judged, rewards, 0.0)
    mean = values.sum(axis=1, keepdims=True) / np.maximum(count, 1)
    centred = np.where(judged, values - mean, 0.0)
    scale: NDArray[np.float64] = np.ones_like(mean)
    if kind == "grpo":
        variance = (centred**2).sum(axis=1, keepdims=True) / np.maximum(count - 1, 1)
        scale = np.sqrt(variance) + _EPSILON_OF_DEVIATION
    elif kind == "maxrl":
        scale = mean + _EPSILON_OF_MEAN
    found: NDArray[np.float64] = centred / scale
    return found


def have_signal(rewards: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether samples of a problem differ in their rewards (P, G), (P,): from others nothing is learnt.

    Examples
    --------
    >>> have_signal(np.array([[0.0, 1.0], [1.0, 1.0], [np.nan, 1.0]])).tolist()
    [True, False, False]
    """
    low = np.where(np.isnan(rewards), np.inf, rewards).min(axis=1)
    high = np.where(np.isnan(rewards), -np.inf, rewards).max(axis=1)
    found: NDArray[np.bool_] = low < high
    return found
