"""This file holds how experts are launched: the way of tokens to their networks and back, and the products of all.

Legend: N tokens, E experts, k experts of a token, P visits, C width, R rows of a matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba.experts import routing
from nanochat.backends.numba.experts.products import (
    ExpertGroup,
    Matrices,
    grouped_norm,
    grouped_product,
)
from nanochat.backends.numba.pending import Rounded, Values
from nanochat.backends.numba.products.packing import Leaf
from nanochat.backends.numba.runtime.costs import ELEMENT, INTEGER
from nanochat.backends.numba.runtime.launch import Launcher
from nanochat.backends.numba.runtime.threads import Call
from nanochat.backends.numba.tuning.tuner import Tuner
from nanochat.weights import FeedForward

__all__ = ["Groups", "Visits", "collect", "combine", "norm", "project", "route"]

_Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Visits:
    """Who visits whom, as `routing.route` writes it."""

    tokens: _Ints
    experts: _Ints
    shares: Values
    places: _Ints
    bounds: _Ints


class Groups:
    """The networks of a model's layers, each layer's put together when it is first met."""

    def __init__(self) -> None:
        self._kept: dict[int, ExpertGroup] = {}

    def of(self, networks: Sequence[FeedForward[Leaf]]) -> ExpertGroup:
        """The group of these networks."""
        # What is kept holds the networks, so that no others can get their number.
        key = id(networks)
        if key not in self._kept:
            self._kept[key] = ExpertGroup.of(networks)
        return self._kept[key]

    def clear(self) -> None:
        """Forget all, since weights have changed."""
        self._kept.clear()


def route(launch: Launcher, logits: Values, top_k: int) -> Visits:
    """The visits of tokens to the `top_k` experts with their highest logits (N, E)."""
    count, number = logits.shape
    visits, empty = count * top_k, launch.empty
    found = Visits(
        tokens=empty((visits,), np.int64),
        experts=empty((visits,), np.int64),
        shares=empty((visits,)),
        places=empty((count, top_k), np.int64),
        bounds=empty((number + 1,), np.int64),
    )
    launch(
        routing.route,
        *(logits, found.tokens, found.experts, found.shares, found.places, found.bounds),
        tasks=1,
        nanoseconds=count * ELEMENT,
    )
    return found


def collect(launch: Launcher, x: Rounded, visits: Visits) -> Rounded:
    """The rows of x of each visit."""
    number = len(visits.tokens)
    given = x.codes, x.sums, x.scales
    own = Rounded(*(launch.empty((number, *each.shape[1:]), each.dtype) for each in given))
    launch(
        routing.collect,
        *(*given, visits.tokens, own.codes, own.sums, own.scales),
        tasks=number,
        nanoseconds=own.codes.size * ELEMENT,
    )
    return own


def project(
    launch: Launcher, tuner: Tuner, x: Rounded, visits: Visits, *kinds: Matrices
) -> tuple[Values, ...]:
    """The products of each visit's row of x with the matrices of its expert, (P, R) of each kind."""
    made = [_product(launch, tuner, x, visits, matrices) for matrices in kinds]
    launch.together([call for call, _ in made])
    return tuple(y for _, y in made)


def _product(
    launch: Launcher, tuner: Tuner, x: Rounded, visits: Visits, matrices: Matrices
) -> tuple[Call, Values]:
    leaf, number = matrices.leaves[0], len(x.codes)
    # A kernel checks no bound.
    assert x.scales.shape[1] * leaf.activation_block == leaf.columns
    y = launch.empty((number, leaf.rows))
    choice = tuner.choice(leaf, max(1, number // len(matrices.leaves)))
    call = Call(
        grouped_product(choice.isa, leaf.layout),
        (
            *(matrices.codes, matrices.scales, matrices.shape, visits.bounds),
            *(x.codes, x.sums, x.scales, y, choice.variant),
        ),
        tasks=len(matrices.leaves) * len(leaf.codes),
        nanoseconds=number * leaf.rows * leaf.columns * INTEGER,
    )
    return call, y


def norm(launch: Launcher, x: Values, gains: _Ints, visits: Visits, eps: float) -> Values:
    """The norm of each visit's row of x (P, C), with the gains of its expert, which have these addresses."""
    y = launch.like(x)
    arguments = x, gains, visits.experts, eps, y
    launch(grouped_norm, *arguments, tasks=len(x), nanoseconds=x.size * ELEMENT)
    return y


def combine(launch: Launcher, x: Values, visits: Visits) -> Values:
    """What experts made of each token, x (P, C), added with their shares: (N, C)."""
    count = len(visits.places)
    y = launch.empty((count, x.shape[1]))
    arguments = x, visits.shares, visits.places, y
    launch(routing.combine, *arguments, tasks=count, nanoseconds=x.size * ELEMENT)
    return y
