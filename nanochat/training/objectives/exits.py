"""This file holds the terms of a LoopLM's gate, which says of each token after which step it leaves the loop.

References
----------
.. [1] "Scaling Latent Reasoning via Looped Language Models", 2025, section 3. arXiv:2510.25741
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["exit_distribution", "exit_entropies", "gate_losses"]

# A gate that is surer than that has no gradient.
_SURE = 1e-6


def exit_distribution(survival: Sequence[Tensor]) -> Tensor:
    """Probability of leaving the loop after each step, (steps, ...), from the survival (..., 1) of all but the last."""
    still = [torch.ones_like(survival[0]), *survival, torch.zeros_like(survival[0])]
    return torch.stack([a - b for a, b in pairwise(still)])[..., 0]


def exit_entropies(exits: Tensor) -> Tensor:
    """Nats of each token's choice of a step, from probabilities whose first dimension is that of the steps."""
    return -(exits * exits.clamp(min=1e-9).log()).sum(dim=0)


def gate_losses(
    survival: Sequence[Tensor], losses: Sequence[Tensor], *, slope: float, margin: float
) -> Tensor:
    """What each token's gate costs, (...), that shall go on while the next step makes the token cheaper.

    After each step but the last, the probability of going on should be the sigmoid of `slope` times how much cheaper
    the next step makes it, less `margin`. The cost is the cross-entropy with that, the mean over the steps. The paper
    pairs the gate after a step with what that step itself has gained; here it is what the gate decides about, and a
    loop of two steps has something to learn.

    Parameters
    ----------
    survival : sequence of tensors, shape (..., 1)
        After each step but the last.
    losses : sequence of tensors, shape (...)
        Nats that the target costs after each step, without a gradient.
    """
    found = []
    for before, after, now, later in zip(
        (torch.ones_like(survival[0]), *survival), survival, losses, losses[1:], strict=False
    ):
        go_on = (after / before.clamp(min=_SURE))[..., 0].clamp(_SURE, 1 - _SURE)
        wanted = (slope * ((now - later).clamp(min=0) - margin)).sigmoid()
        found.append(functional.binary_cross_entropy(go_on, wanted, reduction="none"))
    return torch.stack(found).mean(dim=0)
