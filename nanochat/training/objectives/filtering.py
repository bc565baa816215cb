"""This file holds the choice of the tokens that a sequence is trained on: those of the highest excess loss.

References
----------
.. [1] "Collider: Efficient Token Filtering for Large Language Model Training", 2025, section 3. arXiv:2502.00340
.. [2] Z. Lin et al., "Rho-1: Not All Tokens Are What You Need", 2024, section 2.2. arXiv:2404.07965
"""

import torch
from torch import Tensor

__all__ = ["kept_rows", "num_kept"]


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
