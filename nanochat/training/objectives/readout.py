"""This file holds the tokens that a loss counts, and the reading of their hidden states by the head.

Legend: B sequences, T tokens, N tokens that are read out, K targets of each, C width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nanochat.backends.torch.linears import FloatLinear, Leaf
from nanochat.backends.torch.loss import Readings, Teaching
from nanochat.backends.torch.ops import TorchOps
from nanochat.training.objectives.filtering import kept_rows

__all__ = ["Readout", "counted_rows"]

# Share of the tokens.
_NEARLY_ALL = 0.95


@dataclass(frozen=True, kw_only=True, eq=False)
class Readout:
    """Targets of a batch with their weights, and the head that reads hidden states out.

    Parameters
    ----------
    targets : int64 tensor, shape (B, T)
        The token after each input token; below 0 where there is none.
    weights : tensor, shape (B, T), optional
        Factor of each target's loss; by default all count alike, and the factors of next tokens sum to 1.
    rows : int64 tensor, shape (N,), optional
        The tokens that are read out, counted through the batch, from `counted_rows`; by default all B * T.
    segments : tensor, shape (B, T), optional
        Of packed documents: no target is that of another document.
    """

    ops: TorchOps
    table: Leaf
    targets: Tensor
    weights: Tensor | None = None
    rows: Tensor | None = None
    segments: Tensor | None = None

    def read(
        self,
        x: Tensor,
        distances: Sequence[int] = (1,),
        *,
        means: bool = False,
        entropies: bool = False,
        teaching: Teaching | None = None,
    ) -> Readings:
        """What one pass through the head tells of the targets at these distances, from hidden states (B, T, C)."""
        assert isinstance(self.table, FloatLinear | Tensor), "codes have no gradient"
        ids = torch.stack([self._targets(each) for each in distances], dim=1).clamp(min=0)
        return self.ops.readings(
            self.picked(x), self.table, ids, means=means, entropies=entropies, teaching=teaching
        )

    def highest(self, losses: Tensor, count: int, reference: Tensor | None) -> Tensor:
        """The `count` tokens of each sequence with the highest excess loss, counted through the batch.

        Parameters
        ----------
        losses : tensor, shape (N,)
            Nats that each target costs.
        reference : tensor, shape (B, T), optional
            Nats that each target costs another model, which are taken off.
        """
        excess = losses if reference is None else losses - self.picked(reference)
        excess = excess.where(self.shares() != 0, -torch.inf)
        if self.rows is not None:
            absent = excess.new_full((self.targets.numel(),), -torch.inf)
            excess = absent.index_copy(0, self.rows, excess)
        return kept_rows(excess.view(self.targets.shape), count)

    def of_kept(self, rows: Tensor) -> "Readout":
        """The same of tokens that are kept, of which targets have a weight that makes up for those of others."""
        kept = replace(self, rows=rows)
        if self.weights is None:
            return kept
        share = (self.shares() != 0).sum() / (kept.shares() != 0).sum().clamp(min=1)
        return replace(kept, weights=self.weights * share)

    def of_teacher(self, teaching: Teaching) -> Teaching:
        """What a teacher says of the tokens that are read out, from what it says of all B * T."""
        if self.rows is None:
            return teaching
        x, head = teaching.x.index_select(0, self.rows), teaching.head
        return replace(
            teaching,
            x=x,
            head=head if head.is_floating_point() else head.index_select(0, self.rows),
        )

    def picked(self, of_tokens: Tensor) -> Tensor:
        """Of something of every token, (B, T, ...), that of those that are read out, (N, ...)."""
        flat = of_tokens.flatten(0, 1)
        return flat if self.rows is None else flat.index_select(0, self.rows)

    def weighed(self, values: Tensor, distance: int = 1) -> Tensor:
        """Values of tokens (N,) times the factor that their target at that distance has; 0 where there is none."""
        shares = self.shares(distance)
        return values.where(shares != 0, 0.0) * shares

    def shares(self, distance: int = 1) -> Tensor:
        """The factor of each token's loss, (N,), for the target at that distance: 0 where there is none.

        A target further on counts as much as the next one, so that parts of a batch add up to it.
        """
        count = self._targets(distance) >= 0
        if self.weights is None:
            return count / (self._targets(1) >= 0).sum().clamp(min=1)
        return self.picked(_later(self.weights, distance, 0)).where(count, 0.0)

    def _targets(self, distance: int) -> Tensor:
        found = _later(self.targets, distance, -1)
        if self.segments is not None and distance > 1:
            found = found.where(_later(self.segments, distance, -1) == self.segments, -1)
        return self.picked(found)


def counted_rows(targets: NDArray[np.int64], farthest: int = 1) -> NDArray[np.int64] | None:
    """The tokens that have a target, or one up to `farthest` tokens on, counted through a batch (B, T).

    `None` if nearly all have one: putting the others aside takes more time than reading them.

    Examples
    --------
    >>> counted_rows(np.array([[-1, 5, 7], [-1, -1, 2]]))
    array([1, 2, 5])
    """
    counts = np.zeros(targets.shape, bool)
    for distance in range(farthest):
        counts[:, : targets.shape[1] - distance] |= targets[:, distance:] >= 0
    return np.flatnonzero(counts) if counts.mean() <= _NEARLY_ALL else None


def _later(of_tokens: Tensor, distance: int, absent: int) -> Tensor:
    """What stands so many tokens on, less 1, in each row (B, T)."""
    moved: Tensor = functional.pad(of_tokens[:, distance - 1 :], (0, distance - 1), value=absent)
    return moved
