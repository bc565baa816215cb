"""This file holds what is watched in training besides the loss: gradients, codes, and what the residual streams do.

Of mHC, it is whether the streams differ, and how much the sites amplify.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanochat.backends.torch.linears import Leaf, rounded_values
from nanochat.backends.torch.ops import TorchOps, mhc_logits
from nanochat.config import Mixer
from nanochat.model import forward
from nanochat.training.module import LanguageModel
from nanochat.training.roles import role_of
from nanochat.weights import Mhc, Spec

__all__ = [
    "StreamProbe",
    "code_changes",
    "gradient_norms",
    "sampled_codes",
    "stream_divergence",
]

# Codes of each matrix that are looked at: enough for a share of one in ten thousand.
_MOST_CODES = 1 << 18


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


def gradient_norms(gradients: Mapping[str, Tensor], specs: Mapping[str, Spec]) -> dict[str, Tensor]:
    """The norm of all gradients, of those of each role, and of the read, write and mixing logits of all sites."""
    found: dict[str, list[Tensor]] = {"": []}
    for name, gradient in gradients.items():
        norm = gradient.norm()
        match = re.search(r"\.mhc\.(read|write|mix)$", name)
        for kind in ("", f"_{role_of(name, specs[name])}", *([f"_{match[1]}"] if match else [])):
            found.setdefault(kind, []).append(norm)
    return {f"gradient_norm{kind}": torch.stack(parts).norm() for kind, parts in found.items()}


@torch.no_grad()
def sampled_codes(model: LanguageModel, specs: Mapping[str, Spec]) -> list[Tensor]:
    """The signs of the first numbers of each ternary matrix, as they are rounded; none of an unquantised model."""
    found = []
    for name, parameter in model.named_parameters():
        spec = specs[name]
        if spec.kind == "ternary" and model.precision == "ternary":
            rows = parameter[: max(1, _MOST_CODES // parameter.shape[1])]
            found.append(rounded_values(rows, "ternary", spec.weight_block).sign().to(torch.int8))
    return found


def code_changes(before: Sequence[Tensor], after: Sequence[Tensor]) -> dict[str, float]:
    """The share of codes that are zero, and of those that an update changed; nothing without codes."""
    if not after:
        return {}
    count = sum(codes.numel() for codes in after)
    flips = sum(int((old != new).sum()) for old, new in zip(before, after, strict=True))
    return {
        "zero_fraction": sum(int((codes == 0).sum()) for codes in after) / count,
        "code_flips": flips / count,
    }


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
