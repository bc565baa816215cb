"""This file holds GaLore 2: a rule that works in the subspace in which most of a matrix's gradient lies.

Its moments are as small as that. The subspace is found anew after some steps, by a randomised decomposition; what is
kept from before is then read in the new one, as it is.

References
----------
.. [1] J. Zhao et al., "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection", 2024, algorithm 2.
   arXiv:2403.03507
.. [2] D. Su et al., "GaLore 2: Large-Scale LLM Pre-Training by Gradient Low-Rank Projection", 2025, section 3.
   arXiv:2504.20437
.. [3] N. Halko et al., "Finding Structure with Randomness", 2011, algorithms 4.4 and 5.1. arXiv:0909.4061
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

from nanochat.training.rules.arrays import (
    Array,
    Kept,
    State,
    beside,
    decomposing,
    library,
    transposed,
)
from nanochat.training.rules.rated import Rated
from nanochat.training.values import CHECKED, Count, Positive, Whole

__all__ = ["Projected", "in_subspace", "kept_in_subspace"]

_BASIS = "basis"
# More columns than asked for, and products with the matrix, of the randomised decomposition.
_MORE_COLUMNS, _POWERS = 8, 2


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Projected(Rated):
    """A rule that may work in a subspace.

    Parameters
    ----------
    rank : int
        Dimensions of the subspace of each matrix's gradients in which the rule works, fewer than its rows and columns
        (GaLore 2); 0 is no subspace.
    period : int
        Steps for which a subspace serves.
    alpha : float
        Factor of an update that comes out of one.
    """

    rank: Whole = 0
    period: Count = 200
    alpha: Positive = 0.25


def in_subspace(
    update: Callable[..., tuple[Array, State]],
    gradient: Array,
    state: State,
    settings: Projected,
    *,
    shape: Sequence[int],
    rate: float,
    step: int,
) -> tuple[Array, State]:
    """What a step of a rule's `update` in the subspace adds to matrices (..., R, C), and the state after it."""
    tall = _is_tall(shape)
    wide = transposed(gradient) if tall else gradient
    basis = state[_BASIS] if (step - 1) % settings.period else _subspace(wide, settings.rank)
    projected = gradient @ basis if tall else transposed(basis) @ gradient
    before = {kind: each for kind, each in state.items() if kind != _BASIS}
    change, after = update(projected, before, settings, shape=shape, rate=rate, step=step)
    back = change @ transposed(basis) if tall else basis @ change
    return back * settings.alpha, {**after, _BASIS: basis}


def kept_in_subspace(
    kept: Callable[[Projected, Sequence[int]], dict[str, Kept]],
    settings: Projected,
    shape: Sequence[int],
) -> dict[str, Kept]:
    """What is kept of a parameter of that shape, by a rule that keeps `kept` of one in the whole space."""
    *others, rows, columns = shape
    rank = settings.rank
    inner = (*others, rows, rank) if _is_tall(shape) else (*others, rank, columns)
    return {**kept(settings, inner), _BASIS: Kept((*others, min(rows, columns), rank))}


def _is_tall(shape: Sequence[int]) -> bool:
    return shape[-2] > shape[-1]


def _subspace(matrices: Array, rank: int) -> Array:
    """The first left singular vectors (..., R, rank) of matrices (..., R, C), close to them where others are small."""
    of = library(matrices)
    rows, columns = matrices.shape[-2:]
    signs = _signs(columns, min(rows, rank + _MORE_COLUMNS))
    with decomposing(of):
        sample = matrices @ beside(matrices, signs)
        for _ in range(_POWERS):
            sample = matrices @ (transposed(matrices) @ of.linalg.qr(sample)[0])
        directions = of.linalg.qr(sample)[0]
        small = transposed(directions) @ matrices
        # Values ascend.
        vectors = of.linalg.eigh(small @ transposed(small))[1]
        return directions @ vectors[..., -rank:]


@cache
def _signs(rows: int, columns: int) -> NDArray[np.float32]:
    """Random signs, always the same: what is decomposed does not depend on them."""
    # Bit generators are stable across versions of NumPy (NEP 19).
    drawn = np.random.Philox(np.random.SeedSequence((rows, columns))).random_raw(rows * columns)
    return np.where(drawn >> np.uint64(63), 1, -1).astype(np.float32).reshape(rows, columns)
