"""This file holds what applies one update to all parameters of a model, by the rule of each one's role."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nanochat.errors import TrainingError
from nanochat.training.module import LanguageModel
from nanochat.training.roles import OptimizerSettings, role_of, rule_of, trained_rule
from nanochat.training.rules.rule import Rule, kept, updated
from nanochat.weights import Spec

__all__ = ["MOST_BYTES", "State", "Updater", "require_states"]

# Bytes of parameters that are updated together: the copies of a large model's matrices must not double its memory.
MOST_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True, eq=False)
class State:
    """What the rule of that name keeps of a parameter after so many updates, by kind: see `kept`."""

    rule: str
    updates: int = 0
    kept: Mapping[str, Tensor] = field(default_factory=dict)


class Updater:
    """Applies one update to all trained parameters of a model, in stacks of equal shapes, whose views they become.

    Parameters
    ----------
    states : dict of str to State
        By parameter, what `states` gave before. Those that are absent, or not what the settings' rule keeps, begin
        anew; those of parameters that are not trained stay as they are.
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
        going_on = {
            name: _going_on(states.get(name), rule_of(settings, role_of(name, spec)), spec)
            for name, spec in specs.items()
        }
        self._stacks = list(_stacks(parameters, specs, settings, going_on))
        trained = {name for stack in self._stacks for name in stack.names}
        self._untrained = {name: going_on[name] for name in going_on.keys() - trained}

    def states(self) -> dict[str, State]:
        """What is kept of each parameter, which the next update changes."""
        trained = {
            name: State(
                rule=stack.rule.rule,
                updates=stack.updates,
                kept={kind: tensor[number] for kind, tensor in stack.state.items()},
            )
            for stack in self._stacks
            for number, name in enumerate(stack.names)
        }
        return {**self._untrained, **trained}

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
            values, stack.state = updated(
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


def require_states(
    states: Mapping[str, State],
    specs: Mapping[str, Spec],
    settings: Sequence[OptimizerSettings],
    *,
    source: str,
) -> None:
    """Refuse states that `Updater.states` gives with none of the settings; `source` says whose they are.

    Raises
    ------
    TrainingError
        If that of a parameter is absent, or not as its rule leaves it.
    """
    for name, spec in specs.items():
        state, role = states.get(name), role_of(name, spec)
        if state is None or not any(_fits(state, rule_of(each, role), spec) for each in settings):
            rule = "its rule" if state is None else state.rule
            raise TrainingError(
                f"{source} has no optimizer state of {name} as {rule} keeps it: it is damaged; use an earlier snapshot"
            )


def _going_on(found: State | None, rule: Rule, spec: Spec) -> State:
    return found if found is not None and _fits(found, rule, spec) else State(rule=rule.rule)


def _fits(state: State, rule: Rule, spec: Spec) -> bool:
    """Whether a state is one that the rule has left."""
    found = {kind: (tuple(t.shape), t.dtype) for kind, t in state.kept.items()}
    wanted = {
        kind: (tuple(each.shape), getattr(torch, each.dtype))
        for kind, each in (kept(rule, spec.shape) if state.updates else {}).items()
    }
    return state.rule == rule.rule and found == wanted


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
        alike.setdefault((rule, spec.shape, states[name].updates), []).append(name)
    for (rule, shape, updates), names in alike.items():
        limit = max(1, MOST_BYTES // max(1, 4 * math.prod(shape)))
        for first in range(0, len(names), limit):
            part = names[first : first + limit]
            members = [parameters[name] for name in part]
            values = torch.stack([member.detach() for member in members])
            for member, view in zip(members, values.unbind(), strict=True):
                member.data = view
            state = {
                kind: torch.stack([states[name].kept[kind] for name in part])
                for kind in states[part[0]].kept
            }
            yield _Stack(
                names=part,
                parameters=members,
                rule=rule,
                values=values,
                state=state,
                updates=updates,
            )
