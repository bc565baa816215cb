"""This file holds the tokens that a loss counts, and the reading of their hidden states by the head.

Legend: B sequences, T tokens, N tokens that are read out, C width.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from nanochat.backends.torch.linears import Leaf
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

    def shares(self, distance: int = 1) -> Tensor:
        """The factor of each token's loss, (N,), for the target at that distance: 0 where there is none."""
        targets = self._targets(distance)
        if self.weights is None:
            count = targets >= 0
            return (count / count.sum().clamp(min=1)).flatten()
        return _later(self.weights, distance, 0).flatten()

    def cross_entropies(self, x: Tensor, distance: int = 1) -> Tensor:
        """Nats times factor of each token, (N,), from its hidden state in (B, T, C)."""
        ids, shares = self._targets(distance).flatten(), self.shares(distance)
        found = self.ops.cross_entropy(x.flatten(0, 1)[None], self.table, ids[None], shares[None])
        return found[0]

    def _targets(self, distance: int) -> Tensor:
        return _later(self.targets, distance, -1)


def _later(of_tokens: Tensor, distance: int, absent: int) -> Tensor:
    """What stands so many tokens on, less 1, in each row (B, T)."""
    moved: Tensor = functional.pad(of_tokens[:, distance - 1 :], (0, distance - 1), value=absent)
    return moved
