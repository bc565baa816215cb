"""This file holds the terms of each token's predicted distribution, from what one pass through the head tells of it.

References
----------
.. [1] C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016, section 7. arXiv:1512.00567
.. [2] A. Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022, section 5. arXiv:2204.02311
.. [3] G. Pereyra et al., "Regularizing Neural Networks by Penalizing Confident Output Distributions", 2017.
   arXiv:1701.06548
"""

from torch import Tensor

from nanochat.backends.torch.loss import Readings

__all__ = ["cross_entropies", "entropies", "uniform_losses", "z_losses"]


def cross_entropies(found: Readings) -> Tensor:
    """Nats that each token's first target costs, (N,)."""
    return found.losses[:, 0]


def uniform_losses(found: Readings) -> Tensor:
    """Nats that each token would cost on average if every token of the vocabulary were as likely to follow, (N,)."""
    return found.partitions - found.means


def z_losses(found: Readings) -> Tensor:
    """Squared logarithm of each token's sum of exponentials, (N,), which keeps logits from drifting together."""
    return found.partitions.square()


def entropies(found: Readings) -> Tensor:
    """Nats of each token's predicted distribution, (N,)."""
    return found.entropies
