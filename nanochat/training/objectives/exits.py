"""This file holds the terms of a LoopLM's gate, which says of each token after which step it leaves the loop.

References
----------
.. [1] "Scaling Latent Reasoning via Looped Language Models", 2025, section 3. arXiv:2510.25741
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["exit_distribution", "exit_entropies"]


def exit_distribution(survival: Sequence[Tensor]) -> Tensor:
    """Probability of leaving the loop after each step, (steps, ...), from the survival (..., 1) of all but the last."""
    still = [torch.ones_like(survival[0]), *survival, torch.zeros_like(survival[0])]
    return torch.stack([a - b for a, b in pairwise(still)])[..., 0]


def exit_entropies(exits: Tensor) -> Tensor:
    """Nats of each token's choice of a step, from probabilities whose first dimension is that of the steps."""
    return -(exits * exits.clamp(min=1e-9).log()).sum(dim=0)
