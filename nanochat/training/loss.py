"""This file holds the terms of the loss that training minimises, by name.

The first is the cross-entropy of the next token; loops, extra heads and mixtures of experts add theirs. All are sums
over tokens with one weight each. Which weights decides what is trained: pretraining has equal ones, fine-tuning masks
those of the prompt, a policy gradient has advantages.

Legend: B sequences, T tokens, C width.
"""

from itertools import pairwise

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from nanochat.backends.torch.linears import Leaf
from nanochat.backends.torch.ops import TorchOps
from nanochat.model import TrainingOutputs
from nanochat.training.values import CHECKED, NotNegative

__all__ = ["Objective", "exit_distribution", "terms"]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Objective:
    """Factors of the terms that stand beside the cross-entropy.

    Parameters
    ----------
    exit_entropy : float
        Of the entropy of a LoopLM's exit distribution, which is maximised.
    ahead : float
        Of the mean cross-entropy of the extra heads.
    balance, router_z : float
        Of the load-balance term and of the squared log partition of the routers.

    References
    ----------
    .. [1] "Scaling Latent Reasoning via Looped Language Models", 2025, section 3. arXiv:2510.25741
    .. [2] W. Fedus et al., "Switch Transformers", 2021, equation 4. arXiv:2101.03961
    .. [3] B. Zoph et al., "ST-MoE", 2022, equation 5. arXiv:2202.08906
    """

    exit_entropy: NotNegative = 0.05
    ahead: NotNegative = 0.3
    balance: NotNegative = 0.01
    router_z: NotNegative = 0.001


def terms(
    outputs: TrainingOutputs[Tensor, Leaf],
    targets: Tensor,
    ops: TorchOps,
    objective: Objective,
    *,
    top_k: int,
    weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """The loss and the terms that the model has, scalars, in nats where they are entropies.

    * *loss*: what is minimised, the sum of the others with their factors.
    * *cross_entropy*: of the next token, after the last loop step.
    * *expected_cross_entropy*, *exit_entropy*: of a loop. Each step's cross-entropy by the probability of leaving
      after it, which then stands for *cross_entropy* in the loss; and the entropy of that choice.
    * *ahead*: mean cross-entropy of the extra heads.
    * *balance*, *router_z*: means over the mixtures of experts.

    Parameters
    ----------
    targets : int64 tensor, shape (B, T)
        The token after each input token; below 0 where there is none.
    top_k : int
        Experts that serve a token; unused without experts.
    weights : tensor, shape (B, T), optional
        Factor of each target's loss in the sums. By default targets count alike and the factors sum to 1: sums are
        means. A mask over its sum trains on a part of the text only; advantages over the number of targets give the
        policy gradient of sampled tokens.
    """
    shares = _shares(targets) if weights is None else weights
    found = {}
    losses = [ops.cross_entropy(x, outputs.table, targets, shares) for x in outputs.steps]
    found["cross_entropy"] = loss = losses[-1].sum()
    if outputs.survival:
        exits = exit_distribution(outputs.survival)
        entropy = -(exits * exits.clamp(min=1e-9).log()).sum(dim=0)
        found["expected_cross_entropy"] = (exits * torch.stack(losses)).sum()
        found["exit_entropy"] = (entropy * shares).sum()
        loss = found["expected_cross_entropy"] - objective.exit_entropy * found["exit_entropy"]
    if outputs.ahead:
        later = []
        for distance, x in enumerate(outputs.ahead, start=1):
            ids = targets[:, distance:]
            of_ids = _shares(ids) if weights is None else weights[:, distance:]
            later.append(ops.cross_entropy(x[:, :-distance], outputs.table, ids, of_ids).sum())
        found["ahead"] = torch.stack(later).mean()
        loss = loss + objective.ahead * found["ahead"]
    if outputs.routing:
        found["balance"] = torch.stack([_balance(z, top_k) for z in outputs.routing]).mean()
        partitions = [z.logsumexp(dim=-1).square().mean() for z in outputs.routing]
        found["router_z"] = torch.stack(partitions).mean()
        loss = loss + objective.balance * found["balance"] + objective.router_z * found["router_z"]
    return {"loss": loss, **found}


def exit_distribution(survival: tuple[Tensor, ...]) -> Tensor:
    """Probability of leaving the loop after each step, (steps, B, T), from the survival after all but the last."""
    still = [torch.ones_like(survival[0]), *survival, torch.zeros_like(survival[0])]
    return torch.stack([a - b for a, b in pairwise(still)])[..., 0]


def _shares(targets: Tensor) -> Tensor:
    """Equal weights of all targets that sum to 1."""
    count = targets >= 0
    return count / count.sum().clamp(min=1)


def _balance(logits: Tensor, top_k: int) -> Tensor:
    """Number of experts times the sum over them of share of tokens times mean probability; 1 when even."""
    count = logits.shape[-1]
    rows = logits.flatten(0, -2)
    chosen = functional.one_hot(rows.topk(top_k, dim=-1).indices, count).sum(dim=1)
    share = chosen.float().mean(dim=0) / top_k
    return count * (share * rows.softmax(dim=-1).mean(dim=0)).sum()
