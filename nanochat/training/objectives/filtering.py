"""This file holds the choice of the tokens that a sequence is trained on: those of the highest excess loss.

References
----------
.. [1] "Collider: Efficient Token Filtering for Large Language Model Training", 2025, section 3. arXiv:2502.00340
.. [2] Z. Lin et al., "Rho-1: Not All Tokens Are What You Need", 2024, section 2.2. arXiv:2404.07965
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.backends.torch.ops import TorchOps
from nanochat.backends.torch.state import TorchState

__all__ = ["FilteringOps", "Kept", "kept_rows", "num_kept", "still_where_dropped"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """The tokens of a batch that are kept, counted through it, and the loss of all."""

    rows: Tensor
    loss: Tensor

    def mask(self, shape: torch.Size) -> Tensor:
        """Whether each token of the batch (B, T) is kept."""
        found = torch.zeros(shape, dtype=torch.bool, device=self.rows.device)
        found.view(-1)[self.rows] = True
        return found


class FilteringOps(TorchOps):
    """Operations of a pass in which the keys and values of dropped tokens have no gradient.

    Since their losses have none either, nothing of a dropped token has any: not its queries, its networks, nor its
    embedding. What a kept token reads of them is as ever, so this gradient is not that of the loss.

    Attributes
    ----------
    is_kept : bool tensor, shape (B, T)
        Set it before each pass: the object stays the same, for which layers are compiled.
    """

    is_kept: Tensor

    def attention(  # noqa: D102  # that of Ops
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        state: TorchState | None,
        slot: int,
        segments: Tensor | None = None,
    ) -> Tensor:
        k, v = still_where_dropped(k, self.is_kept), still_where_dropped(v, self.is_kept)
        return super().attention(q, k, v, state=state, slot=slot, segments=segments)


def still_where_dropped(of_tokens: Tensor, is_kept: Tensor) -> Tensor:
    """Numbers of tokens (B, T, ...), of which those of dropped ones have no gradient."""
    mask = is_kept.view(*is_kept.shape, *[1] * (of_tokens.ndim - 2))
    return torch.where(mask, of_tokens, of_tokens.detach())


def num_kept(share: float, length: int) -> int:
    """How many tokens of every sequence of that length are kept, at least one.

    Examples
    --------
    >>> num_kept(0.6, 512), num_kept(0.01, 10)
    (307, 1)
    """
    return max(1, round(share * length))


def kept_rows(excess: Tensor, count: int) -> Tensor:
    """The `count` tokens of each sequence with the highest excess loss (B, T), counted through the batch, in order.

    What has no target has an excess of minus infinity, and is taken where a sequence has too few others: the number is
    always the same.
    """
    places = excess.topk(count, dim=1).indices.sort(dim=1).values
    firsts = torch.arange(len(excess), device=excess.device)[:, None] * excess.shape[1]
    return (places + firsts).flatten()
