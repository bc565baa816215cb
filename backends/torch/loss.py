"""This file holds the cross-entropy in torch: logits of some tokens at a time, formed again for the gradient.

Both passes are operators of torch's library. A compiler sees one node, and so cannot keep the logits of several pieces
at once.

Legend: N tokens, C width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from nanochat.backends.reference.ops import pieces

__all__ = ["token_losses"]


def token_losses(x: Tensor, table: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Nats that each target costs, (N,), for inputs (N, C) and a table (V, C) that are multiplied as `dtype`.

    Targets are int64 and at least 0.
    """
    losses: Tensor = _forward(x, table, targets, dtype)[0]
    return losses


@torch.library.custom_op("nanochat::cross_entropy", mutates_args=())
def _forward(
    x: Tensor, table: Tensor, targets: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Losses, and the logarithm of each token's sum of exponentials, both (N,)."""
    losses, partitions = x.new_empty(len(x)), x.new_empty(len(x))
    factor = table.to(dtype)
    for rows in pieces(len(x), len(table)):
        logits = (x[rows].to(dtype) @ factor.T).to(x.dtype)
        chosen = logits.gather(1, targets[rows, None])[:, 0]
        largest = logits.amax(dim=1)
        sums = logits.sub_(largest[:, None]).exp_().sum(dim=1)
        partitions[rows] = sums.log_().add_(largest)
        losses[rows] = partitions[rows] - chosen
    return losses, partitions


@torch.library.custom_op("nanochat::cross_entropy_backward", mutates_args=())
def _backward(
    upstream: Tensor,
    x: Tensor,
    table: Tensor,
    targets: Tensor,
    partitions: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Gradients of inputs and table."""
    of_x, of_table = torch.empty_like(x), torch.zeros_like(table)
    factor = table.to(dtype)
    for rows in pieces(len(x), len(table)):
        inputs = x[rows].to(dtype)
        shares = (inputs @ factor.T).to(x.dtype).sub_(partitions[rows, None]).exp_()
        shares.scatter_add_(1, targets[rows, None], shares.new_full((len(inputs), 1), -1.0))
        of_logits = shares.mul_(upstream[rows, None]).to(dtype)
        of_x[rows] = of_logits @ factor
        if dtype == table.dtype:
            of_table.addmm_(of_logits.T, inputs)
        else:
            of_table += of_logits.T @ inputs
    return of_x, of_table


@_forward.register_fake
def _(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return x.new_empty(len(x)), x.new_empty(len(x))


@_backward.register_fake
def _(_: Tensor, x: Tensor, table: Tensor, *__: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(table)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, table, targets, ctx.dtype = inputs
    ctx.save_for_backward(x, table, targets, output[1])


def _gradients(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
    return *_backward(upstream, *ctx.saved_tensors, ctx.dtype), None, None


_forward.register_autograd(_gradients, setup_context=_keep)
