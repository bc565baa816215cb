"""This file holds the terms of each token's predicted distribution, from what one pass through the head tells of it.

References
----------
.. [1] C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016, section 7. arXiv:1512.00567
.. [2] A. Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022, section 5. arXiv:2204.02311
.. [3] G. Pereyra et al., "Regularizing Neural Networks by Penalizing Confident Output Distributions", 2017.
   arXiv:1701.06548
.. [4] G. Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2. arXiv:1503.02531
.. [5] github.com/KellerJordan/modded-nanogpt, commit f411b3d, record 53: several targets of the same logits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nanochat.backends.torch.loss import Readings
from nanochat.training.objectives.readout import Readout

__all__ = [
    "cross_entropies",
    "distances_of",
    "divergences",
    "entropies",
    "later_losses",
    "uniform_losses",
    "z_losses",
]


def cross_entropies(found: Readings) -> Tensor:
    """Nats that each token's first target costs, (N,)."""
    return found.losses[:, 0]


def uniform_losses(found: Readings) -> Tensor:
    """Nats that each token would cost on average if every token of the vocabulary were as likely to follow, (N,)."""
    return found.partitions - found.means


def z_losses(found: Readings) -> Tensor:
    """Squared logarithm of each token's sum of exponentials, (N,), which keeps logits from drifting together."""
    return found.partitions.square()


def divergences(found: Readings) -> Tensor:
    """Nats of each token's predicted distribution from its teacher's, (N,), both at the teacher's temperature."""
    return found.divergences


def entropies(found: Readings) -> Tensor:
    """Nats of each token's predicted distribution, (N,)."""
    return found.entropies


def later_losses(found: Readings, readout: Readout, factors: Sequence[float]) -> Tensor:
    """Nats that each token's later targets cost, (N,), times their factors, and those of the tokens.

    Target 0 of `found` is the next token, and the others are those after it that have a factor.
    """
    distances = distances_of(factors)
    parts = [
        factors[distance - 2] * readout.weighed(found.losses[:, place], distance)
        for place, distance in enumerate(distances[1:], 1)
    ]
    return torch.stack(parts).sum(dim=0)


def distances_of(factors: Sequence[float]) -> tuple[int, ...]:
    """How far the targets are that count: the next token, and those after it whose factor is not 0.

    Examples
    --------
    >>> distances_of([0.5, 0.0, 0.25])
    (1, 2, 4)
    """
    return (1, *(distance for distance, factor in enumerate(factors, 2) if factor))
