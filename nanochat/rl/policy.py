"""This file holds the loss of a policy: what makes tokens that were worth much likelier, and others less likely.

References
----------
.. [1] J. Schulman et al., "Proximal Policy Optimization Algorithms", 2017, section 3. arXiv:1707.06347
.. [2] Q. Yu et al., "DAPO: An Open-Source LLM Reinforcement Learning System at Scale", 2025, section 3.1.
   arXiv:2503.14476: the two limits apart.
.. [3] J. Schulman, "Approximating KL Divergence", 2020: the estimate k3.
.. [4] F. Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training", 2025: the capped weight
   of tokens that another engine drew.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.backends.torch.linears import Leaf
from nanochat.backends.torch.ops import TorchOps
from nanochat.model import TrainingOutputs
from nanochat.rl.recipe import Policy
from nanochat.training.objectives.readout import Readout
from nanochat.training.objectives.tokens import cross_entropies, entropies

__all__ = ["Given", "terms"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """What is known of the targets of a microbatch, (B, T).

    Parameters
    ----------
    advantages, weights : tensors
        What they are worth, and their factors; 0 where there is no target.
    drawn : tensor
        Log-probabilities in the engine that drew them.
    before : tensor, optional
        Log-probabilities in the first pass over them; this one is that without it.
    reference, teacher : tensors, optional
        Log-probabilities in the model that the run began with, and in one that teaches: then a token is worth by how
        much it is likelier there.
    """

    advantages: Tensor
    weights: Tensor
    drawn: Tensor
    before: Tensor | None = None
    reference: Tensor | None = None
    teacher: Tensor | None = None


def terms(
    outputs: TrainingOutputs[Tensor, Leaf],
    targets: Tensor,
    given: Given,
    ops: TorchOps,
    policy: Policy,
    *,
    temperature: float,
    rows: Tensor | None = None,
) -> dict[str, Tensor]:
    """What is minimised, and what is to be seen of it.

    * *objective*: minus what the tokens are worth by their ratios, times their weights; with the other two terms.
    * *logprobs*: of all targets, (B, T), without a gradient; 0 where there is none.
    * Sums over tokens, without a gradient: *entropy*, *kl* (k3) if there is a reference, *teacher_kl* (how much
      likelier they are here than there) if one teaches, *clipped* (tokens), *mismatch* (how far they are from where
      they were drawn); and *mismatch_max*.

    Parameters
    ----------
    targets : int64 tensor, shape (B, T)
        Below 0 where there is none.
    temperature : float
        At which they were drawn.
    rows : int64 tensor, optional
        From `nanochat.training.objectives.readout.counted_rows`.
    """
    readout = Readout(ops=ops, table=outputs.table, targets=targets, rows=rows)
    found = readout.read(outputs.steps[-1] / temperature, entropies=True)
    counts = readout.picked(targets) >= 0
    # A token without a target costs some number.
    logprobs = (-cross_entropies(found)).where(counts, 0.0)
    weights = readout.picked(given.weights)
    now = logprobs.detach()
    before = now if given.before is None else readout.picked(given.before)
    worth = readout.picked(given.advantages)
    if given.teacher is not None:
        worth = (readout.picked(given.teacher) - now).where(counts, 0.0)
    distance = (before - readout.picked(given.drawn)).where(counts, 0.0)
    ratios = (logprobs - before).exp()
    clipped = ratios.clamp(1 - policy.clip_low, 1 + policy.clip_high)
    gain = torch.minimum(ratios * worth, clipped * worth)
    if policy.ratio_cap:
        gain = gain * distance.exp().clamp(max=policy.ratio_cap)
    objective = -(weights * gain).sum()
    spread = entropies(found).where(counts, 0.0)
    if policy.entropy:
        objective = objective - policy.entropy * (weights * spread).sum()
    seen = {
        "entropy": spread.detach().sum(),
        "clipped": (ratios * worth > clipped * worth).sum(),
        "mismatch": distance.abs().sum(),
        "mismatch_max": distance.abs().max(),
    }
    if given.teacher is not None:
        seen["teacher_kl"] = -worth.sum()
    if given.reference is not None:
        change = (readout.picked(given.reference) - logprobs).where(counts, 0.0)
        divergence = change.exp() - change - 1
        objective = objective + policy.kl * (weights * divergence).sum()
        seen["kl"] = divergence.detach().sum()
    return {"objective": objective, "logprobs": _of_all(now, targets, rows), **seen}


def _of_all(values: Tensor, targets: Tensor, rows: Tensor | None) -> Tensor:
    """Values of the tokens that were read out, (N,), where they stand, (B, T)."""
    if rows is None:
        return values.view(targets.shape)
    every = values.new_zeros(targets.numel())
    return every.index_copy(0, rows, values).view(targets.shape)
