"""This file holds what is measured of mHC in training: whether the streams differ, how much the sites amplify."""

import re
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanochat.backends.torch import TorchOps
from nanochat.config import Mixer
from nanochat.model import forward
from nanochat.train.module import LanguageModel

__all__ = ["composite_gain", "mixing_gradients", "stream_divergence"]


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


@torch.no_grad()
def stream_divergence(model: LanguageModel, tokens: Tensor) -> tuple[list[float], float]:
    """Per site, RMS of the streams' distance from their mean over RMS of the mean; and the composite gain.

    Returns
    -------
    divergence : list of float
        In the order of the sites; empty for one stream. Streams that are equal give 0.
    gain : float
        See `composite_gain`.
    """
    probe = _Probe(model.ops)
    forward(tokens, model.tree(), model.config, probe)
    return probe.divergence, composite_gain(probe.matrices, model.config.num_streams)


def composite_gain(matrices: list[NDArray[np.float64]], num_streams: int) -> float:
    """Largest row sum of the product of all sites' ``Hres + Hpost (outer) Hpre``.

    That is the growth of a constant signal when every sub-layer passes its input on unchanged. Hres alone would give
    exactly 1 for any doubly stochastic mixer, and say nothing.
    """
    product = np.eye(num_streams)
    for matrix in matrices:
        product = matrix @ product
    return float(np.abs(product).sum(axis=1).max())


def mixing_gradients(gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """Norms of the gradients of read, write and mixing logits, over all sites."""
    found: dict[str, list[Tensor]] = {}
    for name, gradient in gradients.items():
        match = re.search(r"\.mhc\.(read|write|mix)$", name)
        if match:
            found.setdefault(match[1], []).append(gradient.norm())
    return {kind: float(torch.stack(norms).norm()) for kind, norms in found.items()}
