"""This file holds the way of tokens to their experts and back, in kernels, so that a step with experts can be repeated.

Each token goes to k experts: N tokens make P = N k *visits*, which are put in the order of their experts, and within an
expert of their tokens. Visits of one expert lie together, so that its weights are read once for all of them.

Legend: N tokens, E experts, k experts of a token, P visits, C width.
"""

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba.runtime.compilation import kernel

__all__ = ["collect", "combine", "route"]

_Array = NDArray[np.float32]
_Ints = NDArray[np.int64]


@kernel
def route(
    logits: _Array,
    tokens: _Ints,
    experts: _Ints,
    shares: _Array,
    places: _Ints,
    bounds: _Ints,
    first: int,
    last: int,
) -> None:
    """Choose each token's k highest of logits (N, E), equal ones in the order of the experts; all of it is one task.

    Written are, of each visit, its token, its expert and its share (P,), the softmax of the chosen logits; the visits
    of each token in order (N, k); and where those of each expert begin and end, bounds (E + 1,).
    """
    count, most = places.shape
    number = logits.shape[1]
    chosen = np.empty((count, most), np.int64)
    weights = np.empty((count, most), np.float32)
    for _ in range(first, last):
        bounds[:] = 0
        for n in range(count):
            for rank in range(most):
                best = -1
                for e in range(number):
                    taken = False
                    for before in range(rank):
                        taken = taken or chosen[n, before] == e
                    if taken:
                        continue
                    # What is not a number comes last.
                    is_less = best >= 0 and np.isnan(logits[n, best]) and not np.isnan(logits[n, e])
                    if best < 0 or is_less or logits[n, e] > logits[n, best]:
                        best = e
                chosen[n, rank] = best
                bounds[best + 1] += 1
            largest = logits[n, chosen[n, 0]]
            total = np.float32(0)
            for rank in range(most):
                weights[n, rank] = np.exp(logits[n, chosen[n, rank]] - largest)
                total += weights[n, rank]
            for rank in range(most):
                weights[n, rank] /= total
        for e in range(number):
            bounds[e + 1] += bounds[e]
        for n in range(count):
            for rank in range(most):
                e = chosen[n, rank]
                # Until all are placed, what is the end of an expert's visits later is where the next one goes.
                visit = bounds[e]
                bounds[e] += 1
                tokens[visit], experts[visit], shares[visit] = n, e, weights[n, rank]
                places[n, rank] = visit
        for e in range(number, 0, -1):
            bounds[e] = bounds[e - 1]
        bounds[0] = 0
        for n in range(count):
            places[n].sort()


@kernel
def collect(
    codes: NDArray[np.int8],
    sums: NDArray[np.int32],
    scales: _Array,
    tokens: _Ints,
    own_codes: NDArray[np.int8],
    own_sums: NDArray[np.int32],
    own_scales: _Array,
    first: int,
    last: int,
) -> None:
    """Rounded rows of tokens for each visit; see `activation.quantize`. A task is one visit."""
    for visit in range(first, last):
        own_codes[visit] = codes[tokens[visit]]
        own_sums[visit] = sums[tokens[visit]]
        own_scales[visit] = scales[tokens[visit]]


@kernel
def combine(x: _Array, shares: _Array, places: _Ints, y: _Array, first: int, last: int) -> None:
    """Add the shares of what experts made of each token, x (P, C), into y (N, C), in the order of the experts."""
    for n in range(first, last):
        y_n = y[n]
        y_n[:] = 0
        for rank in range(places.shape[1]):
            x_visit, share = x[places[n, rank]], shares[places[n, rank]]
            for c in range(y_n.shape[0]):
                y_n[c] += share * x_visit[c]
