"""This file holds the training objective: cross entropy, and what loops, experts and extra heads add to it."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from nanochat.model import TrainingOutputs

__all__ = ["Objective", "exit_distribution", "objective"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Weights of the terms that stand beside the cross entropy.

    Parameters
    ----------
    exit_entropy : float
        Of the entropy of a LoopLM's exit distribution, which is maximised.
    ahead : float
        Of the mean cross entropy of the extra heads.
    balance, router_z : float
        Of the load-balance term and of the squared log partition of the routers.

    References
    ----------
    .. [1] "Scaling Latent Reasoning via Looped Language Models", 2025, section 3. arXiv:2510.25741
    .. [2] W. Fedus et al., "Switch Transformers", 2021, equation 4. arXiv:2101.03961
    .. [3] B. Zoph et al., "ST-MoE", 2022, equation 5. arXiv:2202.08906
    """

    exit_entropy: float = 0.05
    ahead: float = 0.3
    balance: float = 0.01
    router_z: float = 0.001


def objective(
    outputs: TrainingOutputs[Tensor], targets: Tensor, settings: Objective, *, top_k: int
) -> tuple[Tensor, Tensor]:
    """The loss to minimise, and the pure cross entropy of the next token, both means in nats per token.

    Parameters
    ----------
    outputs : TrainingOutputs
    targets : int64 tensor, shape (B, T)
        The token after each input token.
    top_k : int
        Experts that serve a token; unused without experts.

    Returns
    -------
    loss, cross_entropy : scalar tensors
        The cross entropy is that of the last loop step.
    """
    if outputs.survival:
        losses = torch.stack([_cross_entropy(step, targets) for step in outputs.steps])
        exits = exit_distribution(outputs.survival)
        entropy = -(exits * exits.clamp(min=1e-9).log()).sum(dim=0)
        loss = ((exits * losses).sum(dim=0) - settings.exit_entropy * entropy).mean()
        cross_entropy = losses[-1].mean()
    else:
        cross_entropy = _cross_entropy(outputs.steps[-1], targets).mean()
        loss = cross_entropy
    for distance, logits in enumerate(outputs.ahead, start=1):
        later = _cross_entropy(logits[:, :-distance], targets[:, distance:]).mean()
        loss = loss + settings.ahead / len(outputs.ahead) * later
    for logits in outputs.routing:
        routed = _balance(logits, top_k) * settings.balance
        loss = loss + (routed + logits.logsumexp(dim=-1).square().mean() * settings.router_z) / len(
            outputs.routing
        )
    return loss, cross_entropy


def exit_distribution(survival: tuple[Tensor, ...]) -> Tensor:
    """Probability of leaving the loop after each step, (steps, B, T), from the survival after all but the last."""
    still = [torch.ones_like(survival[0]), *survival, torch.zeros_like(survival[0])]
    return torch.stack([a - b for a, b in pairwise(still)])[..., 0]


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    flat = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return flat.view(targets.shape)


def _balance(logits: Tensor, top_k: int) -> Tensor:
    """Number of experts times the sum over them of share of tokens times mean probability; 1 when even."""
    count = logits.shape[-1]
    rows = logits.flatten(0, -2)
    chosen = functional.one_hot(rows.topk(top_k, dim=-1).indices, count).sum(dim=1)
    share = chosen.float().mean(dim=0) / top_k
    return count * (share * rows.softmax(dim=-1).mean(dim=0)).sum()
