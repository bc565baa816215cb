"""This file holds what is watched in training besides the loss: gradients, and what the residual streams do.

Of mHC, it is whether the streams differ, and how much the sites amplify.
"""

import re
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanochat.backends.torch.linears import Leaf
from nanochat.backends.torch.ops import TorchOps, mhc_logits
from nanochat.config import Mixer
from nanochat.model import forward
from nanochat.training.module import LanguageModel
from nanochat.weights import Mhc

__all__ = ["StreamProbe", "gradient_norms", "stream_divergence"]


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
    probe = StreamProbe(model.ops)
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


class StreamProbe(TorchOps):
    """Notes, at every site, how far the streams are from their mean, and the matrix of the site with F as identity.

    Of a site whose coefficients depend on the token, it is the matrix of their means.
    """

    def __init__(self, ops: TorchOps) -> None:
        super().__init__(str(ops.device), ops.dtype)
        self.divergence: list[float] = []
        self.matrices: list[NDArray[np.float64]] = []
        self._read: Tensor | None = None

    def mhc_read(
        self, streams: Tensor, site: Mhc[Leaf], *, mixer: Mixer, iterations: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As in torch; the read weights are kept for the matrix."""
        read, _, _ = mhc_logits(streams, site, eps)
        self._read = read.sigmoid().reshape(-1, streams.shape[2]).mean(dim=0)
        return super().mhc_read(streams, site, mixer=mixer, iterations=iterations, eps=eps)

    def mhc_write(self, streams: Tensor, y: Tensor, post: Tensor, mix: Tensor | None) -> Tensor:
        """As in torch; the distance and the matrix are noted."""
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
