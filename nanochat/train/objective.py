"""This file holds what training minimises, and what it watches of mHC besides.

The objective is the cross entropy, and what loops, experts and extra heads add to it. Of mHC, it is logged whether the
streams differ, and how much the sites amplify.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nanochat.backends.torch.ops import TorchOps
from nanochat.config import Mixer
from nanochat.model import TrainingOutputs, forward
from nanochat.train.module import LanguageModel

__all__ = ["Objective", "exit_distribution", "gradient_norms", "objective", "stream_divergence"]


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
        routed = routed + logits.logsumexp(dim=-1).square().mean() * settings.router_z
        loss = loss + routed / len(outputs.routing)
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


@torch.no_grad()
def stream_divergence(model: LanguageModel, tokens: Tensor) -> tuple[list[float], float]:
    """How far apart the streams are at each site, and how much all sites together amplify, for tokens (B, T).

    Returns
    -------
    divergence : list of float
        RMS of the streams' distance from their mean over RMS of the mean, in the order of the sites; empty for one
        stream. Streams that are equal give 0.
    gain : float
        Largest row sum of the product of all sites' ``Hres + Hpost (outer) Hpre``. That is the growth of a constant
        signal when every sub-layer passes its input on unchanged. Hres alone would give exactly 1 for any doubly
        stochastic mixer, and say nothing.
    """
    probe = _Probe(model.ops)
    forward(tokens, model.tree(), model.config, probe)
    product = np.eye(model.config.num_streams)
    for matrix in probe.matrices:
        product = matrix @ product
    return probe.divergence, float(np.abs(product).sum(axis=1).max())


def gradient_norms(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The norm of all gradients, and those of the read, write and mixing logits of all sites, as scalar tensors."""
    norms = {name: gradient.norm() for name, gradient in gradients.items()}
    found: dict[str, list[Tensor]] = {"gradient_norm": list(norms.values())}
    for name, norm in norms.items():
        match = re.search(r"\.mhc\.(read|write|mix)$", name)
        if match:
            found.setdefault(f"gradient_norm_{match[1]}", []).append(norm)
    return {kind: torch.stack(parts).norm() for kind, parts in found.items()}


class _Probe(TorchOps):
    """Notes, at every site, how far the streams are from their mean, and the matrix of the site with F as identity."""

    def __init__(self, ops: TorchOps) -> None:
        super().__init__(str(ops.device), ops.dtype)
        self.divergence: list[float] = []
        self.matrices: list[NDArray[np.float64]] = []
        self._read: Tensor | None = None

    def mhc_read(  # type: ignore[no-untyped-def]
        self, streams: Tensor, site, *, mixer: Mixer, iterations: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        u, post, mix = super().mhc_read(streams, site, mixer=mixer, iterations=iterations, eps=eps)
        # The read weights, from what a basis of streams is read as.
        self._read = site.read.sigmoid()
        return u, post, mix

    def mhc_write(self, streams: Tensor, y: Tensor, post: Tensor, mix: Tensor | None) -> Tensor:
        out = super().mhc_write(streams, y, post, mix)
        mean = out.mean(dim=2, keepdim=True)
        self.divergence.append(
            float((out - mean).square().mean().sqrt() / mean.square().mean().sqrt())
        )
        assert self._read is not None
        n = streams.shape[2]
        mixing = (
            torch.eye(n, device=out.device) if mix is None else mix.reshape(-1, n, n).mean(dim=0)
        )
        write = post.reshape(-1, n).mean(dim=0)
        self.matrices.append((mixing + write[:, None] * self._read[None, :]).double().cpu().numpy())
        return out
