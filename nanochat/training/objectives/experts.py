"""This file holds the terms of the routers, which choose each token's experts in a mixture.

References
----------
.. [1] W. Fedus et al., "Switch Transformers", 2021, equation 4. arXiv:2101.03961
.. [2] B. Zoph et al., "ST-MoE", 2022, equation 5. arXiv:2202.08906
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["balance", "router_z"]


def balance(routing: Sequence[Tensor], top_k: int) -> Tensor:
    """How unevenly tokens go to experts, 1 when even: the mean over the routers, from their logits (B, T, experts).

    Of each it is the number of experts times the sum over them of their share of the tokens times their mean
    probability.
    """
    return torch.stack([_of_router(logits, top_k) for logits in routing]).mean()


def router_z(routing: Sequence[Tensor]) -> Tensor:
    """Squared logarithm of the sum of exponentials of a router's logits, the mean over tokens and routers."""
    return torch.stack([logits.logsumexp(dim=-1).square().mean() for logits in routing]).mean()


def _of_router(logits: Tensor, top_k: int) -> Tensor:
    count = logits.shape[-1]
    rows = logits.flatten(0, -2)
    chosen = functional.one_hot(rows.topk(top_k, dim=-1).indices, count).sum(dim=1)
    share = chosen.float().mean(dim=0) / top_k
    return count * (share * rows.softmax(dim=-1).mean(dim=0)).sum()
