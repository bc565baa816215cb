"""This file holds estimates from samples: pass@k, rates over problems, and how far they may be off."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nanochat.errors import InputError

__all__ = ["Estimate", "difference", "pass_at_k", "rate"]

_NUM_RESAMPLES = 1000
_CONFIDENCE = 0.975
# Of resampled values, those between which 95 of 100 lie.
_QUANTILES = (1 - _CONFIDENCE, _CONFIDENCE)


class Estimate(NamedTuple):
    """A value, and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """How probable it is that of `k` samples at least one passes, when `num_passed` of `num_samples` did.

    The unbiased estimate ``1 - C(n-c, k) / C(n, k)`` of a problem; its mean over problems is pass@k [1]_.

    Raises
    ------
    InputError
        If there are fewer samples than `k`: nothing is known of so many.

    References
    ----------
    .. [1] M. Chen et al., "Evaluating Large Language Models Trained on Code", 2021, section 2.1. arXiv:2107.03374

    Examples
    --------
    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(5, 0, 5)
    (0.25, 0.5, 0.0)
    """
    if not 1 <= k <= num_samples:
        raise InputError(
            f"pass@{k} cannot be told from {num_samples} samples of a problem: take at least {k}, or a smaller k"
        )
    if not 0 <= num_passed <= num_samples:
        raise InputError(f"{num_passed} of {num_samples} samples cannot have passed")
    if num_samples - num_passed < k:
        return 1.0
    failed = np.arange(num_samples - num_passed + 1, num_samples + 1)
    return float(1.0 - np.prod(1.0 - k / failed))


def rate(
    parts: Sequence[float], wholes: Sequence[float] | None = None, *, seed: int = 0
) -> Estimate:
    """The sum of `parts` over the sum of `wholes`, with an interval by resampling problems.

    Problems are what was drawn from all that could be asked, so they are resampled, not the samples of each, 1,000
    times. Where no problem has a part, or each has all of its whole, resampling says nothing: there the other bound is
    the exact one for so many problems, as if each were one success or failure.

    Parameters
    ----------
    parts : sequence of float
        Of each problem.
    wholes : sequence of float, optional
        Of each problem; one each if absent, for a mean.
    seed : int
        Of the resampling.

    Returns
    -------
    Estimate
        NaN where there is nothing to divide by.
    """
    above = np.asarray(parts, np.float64)
    below = np.ones_like(above) if wholes is None else np.asarray(wholes, np.float64)
    found = _estimate(above, below, seed)
    bound = (1 - _CONFIDENCE) ** (1 / max(1, int(np.count_nonzero(below))))
    if found.value == 0:
        return found._replace(high=1 - bound)
    return found._replace(low=bound) if found.value == 1 else found


def difference(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> Estimate:
    """By how much the mean of `second` is above that of `first`; both are of the same problems, in the same order.

    Paired, the interval is narrower than those of the two means: what makes a problem hard cancels.

    Raises
    ------
    InputError
        If they are not equally many.
    """
    if len(first) != len(second):
        raise InputError(
            f"{len(first)} and {len(second)} problems cannot be compared: evaluate both on the same"
        )
    gains = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    return _estimate(gains, np.ones_like(gains), seed)


def _estimate(above: NDArray[np.float64], below: NDArray[np.float64], seed: int) -> Estimate:
    if not below.sum():
        return Estimate(float("nan"), float("nan"), float("nan"))
    rows = np.random.default_rng(seed).integers(len(above), size=(_NUM_RESAMPLES, len(above)))
    sums = below[rows].sum(axis=1)
    # A resample may hold none of the problems that count.
    found = above[rows].sum(axis=1)[sums > 0] / sums[sums > 0]
    low, high = np.quantile(found, _QUANTILES)
    return Estimate(float(above.sum() / below.sum()), float(low), float(high))
