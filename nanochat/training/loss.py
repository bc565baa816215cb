"""This file holds the loss that training minimises: the sum of its terms, by name.

The first is the cross-entropy of the next token; loops, extra heads and mixtures of experts add theirs. Those of tokens
are sums over them with one weight each. Which weights decides what is trained: pretraining has equal ones, fine-tuning
masks those of the prompt, a policy gradient has advantages.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nanochat.backends.torch.linears import Leaf
from nanochat.backends.torch.loss import Readings, Teaching
from nanochat.backends.torch.ops import TorchOps
from nanochat.model import TrainingOutputs
from nanochat.training.objectives.exits import exit_distribution, exit_entropies, gate_losses
from nanochat.training.objectives.experts import balance, router_z
from nanochat.training.objectives.filtering import Kept, num_kept, still_where_dropped
from nanochat.training.objectives.readout import Readout
from nanochat.training.objectives.settings import Objective
from nanochat.training.objectives.tokens import (
    cross_entropies,
    distances_of,
    divergences,
    entropies,
    later_losses,
    uniform_losses,
    z_losses,
)

__all__ = ["choose_tokens", "terms"]


def terms(
    outputs: TrainingOutputs[Tensor, Leaf],
    targets: Tensor,
    ops: TorchOps,
    objective: Objective,
    *,
    top_k: int,
    weights: Tensor | None = None,
    rows: Tensor | None = None,
    segments: Tensor | None = None,
    reference: Tensor | None = None,
    kept: Kept | None = None,
    teaching: Teaching | None = None,
) -> dict[str, Tensor]:
    """What is minimised, and the terms of it that the model has, scalars, in nats where they are entropies.

    * *objective*: what is minimised, the sum of the others with their factors.
    * *loss*: cross-entropy of the next token, after the last loop step, whatever is minimised: runs compare by it.
    * *kept_loss*: the same of the tokens that are kept, where not all are. It then stands for *loss* in the objective,
      and all other terms of tokens are those of the kept ones.
    * *expected_cross_entropy*, *exit_entropy*: of a loop. Each step's cross-entropy by the probability of leaving
      after it, which then stands for *loss* in the objective; and the entropy of that choice.
    * *exit_improvement*: where it alone trains the gate, which is told whether the next step makes a token cheaper.
    * *label_smoothing*: cross-entropy with targets of which all tokens are alike. It takes that share of the place of
      the real one.
    * *z_loss*, *entropy*: squared log partition and entropy of the predicted distributions. Like the one before they
      are those of a loop's steps by the probability of leaving after each.
    * *later_tokens*: cross-entropies of the tokens after the next one, by the same logits, times their factors: sums
      over those that there are, by the number of next tokens.
    * *distillation*: divergence from a teacher's distributions at the temperature, whose square belongs to its factor.
    * *ahead*: the same of the extra heads, their mean.
    * *balance*, *router_z*: means over the mixtures of experts.

    A term of factor 0 is not part of the sum. It is measured all the same where that takes no pass through the head.

    Parameters
    ----------
    targets : int64 tensor, shape (B, T)
        The token after each input token; below 0 where there is none.
    top_k : int
        Experts that serve a token; unused without experts.
    weights : tensor, shape (B, T), optional
        Factor of each target's loss in the sums. By default targets count alike and the factors of next tokens sum to
        1: their sums are means. A mask over its sum trains on a part of the text only; advantages over the number of
        targets give the policy gradient of sampled tokens.
    rows : int64 tensor, optional
        From `nanochat.training.objectives.readout.counted_rows`: the tokens that the head reads. Others must have no
        target that counts. By default it reads all.
    segments : tensor, shape (B, T), optional
        Of packed documents: tokens further on are none of another document.
    reference : tensor, shape (B, T), optional
        Nats that each target costs a reference model, of whose excess tokens are chosen where some are kept only.
    kept : Kept, optional
        From `choose_tokens`, where the tokens were chosen before this pass.
    teaching : Teaching, optional
        A teacher's distributions of all B * T tokens, at the temperature of the objective; needed for *distillation*.
    """
    readout = Readout(
        ops=ops, table=outputs.table, targets=targets, weights=weights, rows=rows, segments=segments
    )
    if objective.exits == "improvement":
        return _of_gate(readout, outputs, objective)
    found: dict[str, Tensor] = {}
    routing: Sequence[Tensor] = outputs.routing
    if objective.keep_tokens < 1:
        kept = kept or _chosen(readout, outputs, objective, reference)
        if objective.drop_attention_gradients:
            is_kept = kept.mask(targets.shape)
            routing = [still_where_dropped(logits, is_kept) for logits in routing]
        found["loss"] = kept.loss
        readout = readout.of_kept(kept.rows)
    steps = _Steps(readout, outputs, objective, teaching)
    losses = steps.weighed(cross_entropies)
    found["kept_loss" if "loss" in found else "loss"] = losses[-1].sum()
    minimised = _Sum(found, losses[-1].sum())
    add = minimised.add
    if steps.exits is not None:
        of_exits = exit_entropies(steps.exits)
        found["expected_cross_entropy"] = minimised.total = steps.expected(losses)
        add("exit_entropy", -objective.exit_entropy, readout.weighed(of_exits).sum())
    if objective.label_smoothing:
        minimised.total = minimised.total - objective.label_smoothing * steps.expected(losses)
        add("label_smoothing", objective.label_smoothing, steps.mean(uniform_losses))
    if objective.z_loss:
        add("z_loss", objective.z_loss, steps.mean(z_losses))
    if objective.entropy:
        add("entropy", -objective.entropy, steps.mean(entropies))
    if any(objective.later_tokens):
        add("later_tokens", 1, steps.later(objective.later_tokens))
    if objective.distillation:
        factor = objective.distillation * objective.temperature**2
        add("distillation", factor, steps.mean(divergences))
    if outputs.ahead and objective.ahead:
        add("ahead", objective.ahead, _ahead(readout, outputs.ahead))
    if routing:
        add("balance", objective.balance, balance(routing, top_k))
        add("router_z", objective.router_z, router_z(routing))
    return {"objective": minimised.total, **found}


class _Sum:
    """What is minimised, as its terms are added, which are put down by their names."""

    def __init__(self, found: dict[str, Tensor], total: Tensor) -> None:
        self.found = found
        self.total = total

    def add(self, name: str, factor: float, term: Tensor) -> None:
        """Add a term; one of factor 0 is measured, and has no part in the sum."""
        self.found[name] = term
        if factor:
            self.total = self.total + factor * term


class _Steps:
    """What the head reads after each step of a loop, or once, with the probability of leaving after each."""

    def __init__(
        self,
        readout: Readout,
        outputs: TrainingOutputs[Tensor, Leaf],
        objective: Objective,
        teaching: Teaching | None,
    ) -> None:
        self.readout = readout
        taught = None if teaching is None else readout.of_teacher(teaching)
        self.readings = [
            readout.read(
                x,
                distances_of(objective.later_tokens),
                means=objective.label_smoothing > 0,
                entropies=objective.entropy > 0,
                teaching=taught,
            )
            for x in outputs.steps
        ]
        survival = [readout.picked(each) for each in outputs.survival]
        self.exits = exit_distribution(survival) if survival else None

    def weighed(self, term: Callable[[Readings], Tensor]) -> list[Tensor]:
        """A term of every token (N,) times the factor of its target, after each step."""
        return [self.readout.weighed(term(each)) for each in self.readings]

    def expected(self, values: Sequence[Tensor]) -> Tensor:
        """Values of tokens (N,) after each step by the probability of leaving there, all together."""
        if self.exits is None:
            return values[-1].sum()
        return (self.exits * torch.stack([*values])).sum()

    def mean(self, term: Callable[[Readings], Tensor]) -> Tensor:
        """What is expected of a term, over the tokens that count."""
        return self.expected(self.weighed(term))

    def later(self, factors: Sequence[float]) -> Tensor:
        """What is expected of the tokens after the next one, by their factors."""
        return self.expected([later_losses(each, self.readout, factors) for each in self.readings])


def choose_tokens(
    outputs: TrainingOutputs[Tensor, Leaf],
    targets: Tensor,
    ops: TorchOps,
    objective: Objective,
    *,
    weights: Tensor | None = None,
    rows: Tensor | None = None,
    segments: Tensor | None = None,
    reference: Tensor | None = None,
) -> Kept:
    """The tokens that `terms` would keep, from the same arguments."""
    readout = Readout(
        ops=ops, table=outputs.table, targets=targets, weights=weights, rows=rows, segments=segments
    )
    return _chosen(readout, outputs, objective, reference)


@torch.no_grad()
def _chosen(
    readout: Readout,
    outputs: TrainingOutputs[Tensor, Leaf],
    objective: Objective,
    reference: Tensor | None,
) -> Kept:
    losses = cross_entropies(readout.read(outputs.steps[-1]))
    count = num_kept(objective.keep_tokens, readout.targets.shape[1])
    rows = readout.highest(losses, count, reference)
    return Kept(rows=rows, loss=readout.weighed(losses).sum())


def _of_gate(
    readout: Readout, outputs: TrainingOutputs[Tensor, Leaf], objective: Objective
) -> dict[str, Tensor]:
    """The terms where the gate alone is trained: the head is read without gradients."""
    survival = [readout.picked(each) for each in outputs.survival]
    with torch.no_grad():
        losses = [cross_entropies(readout.read(x)) for x in outputs.steps]
        exits = exit_distribution(survival)
        expected = (exits * torch.stack([readout.weighed(each) for each in losses])).sum()
        entropy = readout.weighed(exit_entropies(exits)).sum()
    slope, margin = objective.exit_slope, objective.exit_margin
    improvement = readout.weighed(gate_losses(survival, losses, slope=slope, margin=margin)).sum()
    return {
        "objective": improvement,
        "loss": readout.weighed(losses[-1]).sum(),
        "expected_cross_entropy": expected,
        "exit_entropy": entropy,
        "exit_improvement": improvement,
    }


def _ahead(readout: Readout, heads: Sequence[Tensor]) -> Tensor:
    """Mean cross-entropy of extra heads, the first of which predicts the token after the next."""
    found = [
        readout.weighed(cross_entropies(readout.read(x, (distance,))), distance).sum()
        for distance, x in enumerate(heads, 2)
    ]
    return torch.stack(found).mean()
