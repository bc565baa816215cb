"""This file holds what applies one update to all parameters of a model, by the rule of each one's role."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanochat.errors import TrainingError
from nanochat.training.module import LanguageModel
from nanochat.training.roles import OptimizerSettings, trained_rule
from nanochat.training.rules import KEPT, RULES, Rule
from nanochat.weights import Spec

__all__ = ["UPDATES", "State", "Updater", "carried"]

# What a rule keeps of a parameter, and under `UPDATES` how often it was updated.
State = Mapping[str, Tensor]
UPDATES = "updates"

# Bytes of parameters that are updated together: the copies of a large model's matrices must not double its memory.
_MOST_BYTES = 1 << 28


class Updater:
    """Applies one update to all trained parameters of a model, in stacks of equal shapes, whose views they become.

    Parameters
    ----------
    states : dict of str to dict of str to tensor
        By parameter, what `states` gave in a run before; those that are absent begin anew.
    """

    def __init__(
        self,
        model: LanguageModel,
        specs: Mapping[str, Spec],
        settings: OptimizerSettings,
        states: Mapping[str, State],
    ) -> None:
        self._clip = settings.clip
        parameters = dict(model.named_parameters())
        self._stacks = list(_stacks(parameters, specs, settings, states))

    def states(self) -> dict[str, dict[str, Tensor]]:
        """What is kept of each parameter, which the next update changes."""
        return {
            name: {
                **{kind: tensor[number] for kind, tensor in stack.state.items()},
                UPDATES: torch.tensor(stack.updates),
            }
            for stack in self._stacks
            for number, name in enumerate(stack.names)
            if stack.updates
        }

    def gradients(self) -> dict[str, Tensor]:
        """The gradients that the last pass left, by name; a parameter that it did not use has none."""
        return {
            name: parameter.grad
            for stack in self._stacks
            for name, parameter in zip(stack.names, stack.parameters, strict=True)
            if parameter.grad is not None
        }

    @torch.no_grad()
    def update(self, *, norm: Tensor, factor: float) -> None:
        """Clip the gradients, update every parameter, and drop the gradients.

        Parameters
        ----------
        norm : scalar tensor
            Of all gradients, before clipping. Whoever measured it has seen that it is finite.
        factor : float
            Share of the peak learning rates, from `nanochat.training.phases.learning_rate_factor`.
        """
        shrink = (self._clip / (norm + 1e-12)).clamp(max=1.0)
        for stack in self._stacks:
            # A parameter that this step did not use (an expert without tokens) has no gradient.
            gradients = torch.stack(
                [torch.zeros_like(p) if p.grad is None else p.grad for p in stack.parameters]
            )
            stack.updates += 1
            values, stack.state = RULES[stack.rule.rule](
                stack.values,
                gradients.mul_(shrink),
                stack.state,
                stack.rule,
                rate=stack.rule.rate * factor,
                step=stack.updates,
            )
            stack.values.copy_(values)
            for parameter in stack.parameters:
                parameter.grad = None


def carried(
    states: Mapping[str, State],
    specs: Mapping[str, Spec],
    *,
    old: OptimizerSettings,
    new: OptimizerSettings,
    source: str,
) -> dict[str, State]:
    """Those states that go on under other settings: where a parameter's rule is still of the same kind.

    Raises
    ------
    TrainingError
        If one of them is not as the rule left it; `source` says whose they are.
    """
    kept = {}
    for name, spec in specs.items():
        before, after = trained_rule(old, name, spec), trained_rule(new, name, spec)
        if before is None or after is None or before.rule != after.rule:
            continue
        state = states.get(name, {})
        shapes = {kind: tuple(tensor.shape) for kind, tensor in state.items()}
        if shapes != {**dict.fromkeys(KEPT[after.rule], spec.shape), UPDATES: ()}:
            raise TrainingError(
                f"{source} has no optimizer state of {name} as {after.rule} keeps it: it is damaged; use an earlier "
                "snapshot"
            )
        kept[name] = state
    return kept


@dataclass(kw_only=True)
class _Stack:
    """Parameters of one shape that share a rule and the number of updates, and are views of `values`."""

    names: list[str]
    parameters: list[nn.Parameter]
    rule: Rule
    values: Tensor
    state: dict[str, Tensor]
    updates: int


def _stacks(
    parameters: Mapping[str, nn.Parameter],
    specs: Mapping[str, Spec],
    settings: OptimizerSettings,
    states: Mapping[str, State],
) -> Iterator[_Stack]:
    alike: dict[tuple[Rule, tuple[int, ...], int], list[str]] = {}
    for name, spec in specs.items():
        rule = trained_rule(settings, name, spec)
        parameters[name].requires_grad_(rule is not None)
        if rule is None:
            continue
        updates = int(states[name][UPDATES]) if name in states else 0
        alike.setdefault((rule, spec.shape, updates), []).append(name)
    for (rule, shape, updates), names in alike.items():
        limit = max(1, _MOST_BYTES // max(1, 4 * math.prod(shape)))
        for first in range(0, len(names), limit):
            part = names[first : first + limit]
            members = [parameters[name] for name in part]
            values = torch.stack([member.detach() for member in members])
            for member, view in zip(members, values.unbind(), strict=True):
                member.data = view
            state = {
                kind: torch.stack([states[name][kind] for name in part])
                for kind in (KEPT[rule.rule] if updates else ())
            }
            yield _Stack(
                names=part,
                parameters=members,
                rule=rule,
                values=values,
                state=state,
                updates=updates,
            )
