"""This file holds what training reads of logits in torch: some tokens at a time, formed again for the gradient.

Both passes are operators of torch's library. A compiler sees one node, and so cannot keep the logits of several pieces
at once.

Legend: N tokens, K targets of each, C width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanochat.backends.reference.ops import pieces

__all__ = ["Readings", "Teaching", "readings"]

# Rows of one product that is added to the table's gradient, where it has another type: of 128 rows, a piece of a large
# vocabulary, the addition takes longer than the product.
_SUMMED = 512


@dataclass(frozen=True, kw_only=True, eq=False)
class Teaching:
    """Another model's distribution of each token: what its head would multiply, or some of its logits.

    Parameters
    ----------
    x : tensor, shape (N, D)
        Inputs of the head, rounded if it rounds them; or logits of D entries of the vocabulary, which are all that
        the distribution has.
    head : tensor, shape (V, D) or (N, D)
        The head; or which entries they are, int64.
    temperature : float
        What logits of both models are divided by.
    """

    x: Tensor
    head: Tensor
    temperature: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Readings:
    """What is known of each token's logits without keeping them.

    Parameters
    ----------
    losses : tensor, shape (N, K)
        Nats that each target costs.
    partitions : tensor, shape (N,)
        Logarithm of the sum of the exponentials.
    means : tensor, shape (N,)
        Mean logit; empty where it was not asked for.
    entropies : tensor, shape (N,)
        Nats, of the distribution that the logits stand for; empty where they were not asked for.
    divergences : tensor, shape (N,)
        Nats, of that distribution from a teacher's, both at its temperature; empty without one.
    """

    losses: Tensor
    partitions: Tensor
    means: Tensor
    entropies: Tensor
    divergences: Tensor


def readings(
    x: Tensor,
    table: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
    *,
    means: bool = False,
    entropies: bool = False,
    teaching: Teaching | None = None,
) -> Readings:
    """What one pass of inputs (N, C) through a table (V, C) tells of targets (N, K), all with gradients.

    Targets are int64 and at least 0; the products are multiplied as `dtype`. A teacher has no gradient.
    """
    taught: tuple[Tensor | None, Tensor | None, float] = (None, None, 1.0)
    if teaching is not None:
        taught = (teaching.x, teaching.head, teaching.temperature)
    found = _forward(x, table, targets, dtype, means, entropies, *taught)
    return Readings(
        losses=found[0],
        partitions=found[1],
        means=found[2],
        entropies=found[3],
        divergences=found[4],
    )


@torch.library.custom_op("nanochat::readings", mutates_args=())
def _forward(
    x: Tensor,
    table: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
    means: bool,
    entropies: bool,
    teacher_x: Tensor | None,
    teacher_head: Tensor | None,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    found = _empty(x, targets, means, entropies, teacher_x)
    losses, partitions, mean_logits, spread, divergences = found
    factor = table.to(dtype)
    for rows in pieces(len(x), len(table)):
        logits = (x[rows].to(dtype) @ factor.T).to(x.dtype)
        chosen = logits.gather(1, targets[rows])
        if means:
            mean_logits[rows] = logits.mean(dim=1)
        if teacher_x is not None and teacher_head is not None:
            wanted = _taught(teacher_x, teacher_head, rows, table, temperature, dtype)
            logarithms = (logits / temperature).log_softmax(dim=1)
            divergences[rows] = (torch.xlogy(wanted, wanted) - wanted * logarithms).sum(dim=1)
        largest = logits.amax(dim=1)
        logits.sub_(largest[:, None])
        if entropies:
            exponentials = logits.exp()
            sums = exponentials.sum(dim=1)
            inner = logits.mul_(exponentials).sum(dim=1).div_(sums)
            spread[rows] = sums.log() - inner
        else:
            sums = logits.exp_().sum(dim=1)
        partitions[rows] = sums.log_().add_(largest)
        losses[rows] = partitions[rows, None] - chosen
    return found


@torch.library.custom_op("nanochat::readings_backward", mutates_args=())
def _backward(
    of_losses: Tensor | None,
    of_partitions: Tensor | None,
    of_means: Tensor | None,
    of_entropies: Tensor | None,
    of_divergences: Tensor | None,
    x: Tensor,
    table: Tensor,
    targets: Tensor,
    partitions: Tensor,
    entropies: Tensor,
    teacher_x: Tensor | None,
    teacher_head: Tensor | None,
    dtype: torch.dtype,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of inputs and table."""
    of_x, of_table = torch.empty_like(x), torch.zeros_like(table)
    factor = table.to(dtype)
    others = (of_partitions, of_means, of_entropies)
    is_plain = targets.shape[1] == 1 and all(upstream is None for upstream in others)
    summed: list[tuple[Tensor, Tensor]] = []
    for rows in pieces(len(x), len(table)):
        inputs = x[rows].to(dtype)
        logarithms = (inputs @ factor.T).to(x.dtype).sub_(partitions[rows, None])
        of_teacher: Tensor | float = 0.0
        if teacher_x is not None and teacher_head is not None and of_divergences is not None:
            wanted = _taught(teacher_x, teacher_head, rows, table, temperature, dtype)
            of_teacher = (logarithms / temperature).softmax(dim=1).sub_(wanted)
            of_teacher.mul_(of_divergences[rows, None] / temperature)
        if is_plain and of_losses is not None:
            of_logits = logarithms.exp_()
            of_logits.scatter_add_(1, targets[rows], of_logits.new_full((len(inputs), 1), -1.0))
            of_logits.mul_(of_losses[rows])
        else:
            of_logits = _of_logits(
                logarithms,
                targets[rows],
                entropies[rows],
                *(None if each is None else each[rows] for each in (of_losses, *others)),
            )
        if of_divergences is not None:
            of_logits.add_(of_teacher)
        of_logits = of_logits.to(dtype)
        of_x[rows] = of_logits @ factor
        if dtype == table.dtype:
            of_table.addmm_(of_logits.T, inputs)
            continue
        summed.append((of_logits, inputs))
        if len(summed) * len(of_logits) >= _SUMMED or rows.stop >= len(x):
            left, right = (torch.cat(parts) for parts in zip(*summed, strict=True))
            of_table += left.T @ right
            summed.clear()
    return of_x, of_table


def _taught(
    x: Tensor, head: Tensor, rows: slice, table: Tensor, temperature: float, dtype: torch.dtype
) -> Tensor:
    """A teacher's probabilities of a piece, for a vocabulary as large as that of the table."""
    if head.is_floating_point():
        logits = (x[rows].to(dtype) @ head.to(dtype).T).to(x.dtype)
    else:
        logits = x.new_full((len(x[rows]), len(table)), -torch.inf)
        logits.scatter_(1, head[rows], x[rows])
    return logits.div_(temperature).softmax(dim=1)


def _of_logits(
    logarithms: Tensor,
    targets: Tensor,
    entropies: Tensor,
    of_losses: Tensor | None,
    of_partitions: Tensor | None,
    of_means: Tensor | None,
    of_entropies: Tensor | None,
) -> Tensor:
    """Gradient of the logits of a piece, of whose probabilities the logarithms are given and overwritten."""
    # Partitions give the probabilities, losses are partitions less a logit, and an entropy gives -p (log p + entropy).
    factors = logarithms.new_zeros(len(logarithms))
    if of_losses is not None:
        factors = factors + of_losses.sum(dim=1)
    if of_partitions is not None:
        factors = factors + of_partitions
    if of_entropies is None:
        found = logarithms.exp_().mul_(factors[:, None])
    else:
        shares = logarithms.exp()
        factors = factors - of_entropies * entropies
        found = logarithms.mul_(-of_entropies[:, None]).add_(factors[:, None]).mul_(shares)
    if of_losses is not None:
        found.scatter_add_(1, targets, -of_losses)
    if of_means is not None:
        found.add_(of_means[:, None] / found.shape[1])
    return found


def _empty(
    x: Tensor, targets: Tensor, means: bool, entropies: bool, teacher_x: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    count = len(x)
    return (
        x.new_empty(targets.shape),
        x.new_empty(count),
        x.new_empty(count if means else 0),
        x.new_empty(count if entropies else 0),
        x.new_empty(0 if teacher_x is None else count),
    )


@_forward.register_fake
def _(
    x: Tensor,
    _: Tensor,
    targets: Tensor,
    __: torch.dtype,
    means: bool,
    entropies: bool,
    teacher_x: Tensor | None,
    *___: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _empty(x, targets, means, entropies, teacher_x)


@_backward.register_fake
def _(*given: Any) -> tuple[Tensor, Tensor]:
    x, table = given[5:7]
    return torch.empty_like(x), torch.empty_like(table)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, table, targets, ctx.dtype, _, _, teacher_x, teacher_head, ctx.temperature = inputs
    # What a loss does not use is not part of its gradient, instead of zeros.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, table, targets, output[1], output[3], teacher_x, teacher_head)


def _gradients(ctx: Any, *upstreams: Tensor | None) -> tuple[Tensor | None, ...]:
    # What was not asked for is empty, and so is its gradient.
    given = (None if each is None or not each.numel() else each for each in upstreams)
    found = _backward(*given, *ctx.saved_tensors, ctx.dtype, ctx.temperature)
    return *found, *[None] * 7


_forward.register_autograd(_gradients, setup_context=_keep)
