"""This file holds the tokens that a loss counts, and the reading of their hidden states by the head.

Legend: B sequences, T tokens, N tokens that are read out, K targets of each, C width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nanochat.backends.torch.linears import FloatLinear, Leaf
from nanochat.backends.torch.loss import Readings
from nanochat.backends.torch.ops import TorchOps

__all__ = ["Readout"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Readout:
    """Targets of a batch with their weights, and the head that reads hidden states out.

    Parameters
    ----------
    targets : int64 tensor, shape (B, T)
        The token after each input token; below 0 where there is none.
    weights : tensor, shape (B, T), optional
        Factor of each target's loss; by default all count alike, and the factors sum to 1.
    """

    ops: TorchOps
    table: Leaf
    targets: Tensor
    weights: Tensor | None

    def read(
        self,
        x: Tensor,
        distances: Sequence[int] = (1,),
        *,
        means: bool = False,
        entropies: bool = False,
    ) -> Readings:
        """What one pass through the head tells of the targets at these distances, from hidden states (B, T, C)."""
        assert isinstance(self.table, FloatLinear | Tensor), "codes have no gradient"
        ids = torch.stack([self._targets(each).flatten() for each in distances], dim=1)
        return self.ops.readings(
            x.flatten(0, 1), self.table, ids.clamp(min=0), means=means, entropies=entropies
        )

    def weighed(self, values: Tensor, distance: int = 1) -> Tensor:
        """Values of tokens (N,) times the factor that their target at that distance has; 0 where there is none."""
        shares = self.shares(distance)
        return values.where(shares != 0, 0.0) * shares

    def shares(self, distance: int = 1) -> Tensor:
        """The factor of each token's loss, (N,), for the target at that distance: 0 where there is none."""
        count = self._targets(distance) >= 0
        if self.weights is None:
            return (count / count.sum().clamp(min=1)).flatten()
        return _later(self.weights, distance, 0).where(count, 0.0).flatten()

    def _targets(self, distance: int) -> Tensor:
        return _later(self.targets, distance, -1)


def _later(of_tokens: Tensor, distance: int, absent: int) -> Tensor:
    """What stands so many tokens on, less 1, in each row (B, T)."""
    moved: Tensor = functional.pad(of_tokens[:, distance - 1 :], (0, distance - 1), value=absent)
    return moved
