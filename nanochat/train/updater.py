"""This file holds what applies one update to all parameters of a model, by the rule of each one's role."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanochat.errors import TrainingError
from nanochat.train.module import LanguageModel
from nanochat.train.roles import OptimizerSettings, role_of, rule_of
from nanochat.train.rules import RULES, Rule
from nanochat.weights import Spec

__all__ = ["Updater"]


class Updater:
    """Applies one update to all parameters of a model, in stacks of equal shapes.

    Attributes
    ----------
    state : dict of str to dict of str to tensor
        Per group, the tensors of its rule, stacked like its parameters.
    """

    def __init__(
        self, model: LanguageModel, specs: Mapping[str, Spec], settings: OptimizerSettings
    ) -> None:
        self._clip = settings.clip
        self._parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        self._groups = _groups(specs, settings)
        self.state: dict[str, dict[str, Tensor]] = {name: {} for name in self._groups}

    def restore(self, state: Mapping[str, Mapping[str, Tensor]], source: str) -> None:
        """Take over the state of a snapshot, if it is of this model under this recipe."""
        for key, group in self._groups.items():
            shape = (len(group.names), *self._parameters[group.names[0]].shape)
            found = state.get(key, {})
            if not found or any(tuple(tensor.shape) != shape for tensor in found.values()):
                raise TrainingError(
                    f"{source} has no optimizer state {key} of shape {shape}: it is damaged, or of a recipe with other "
                    "rules or rates; use an earlier snapshot, or keep the recipe's rates"
                )
            self.state[key] = dict(found)

    def gradients(self) -> dict[str, Tensor]:
        """The gradients that the last pass left, by name; a parameter that it did not use has none."""
        return {name: p.grad for name, p in self._parameters.items() if p.grad is not None}

    @torch.no_grad()
    def update(self, step: int, *, norm: Tensor, factor: float) -> None:
        """Clip the gradients, update every parameter for this step (from 0), and drop the gradients.

        Parameters
        ----------
        norm : scalar tensor
            Of all gradients, before clipping. Whoever measured it has seen that it is finite.
        factor : float
            Share of the peak learning rates, from `nanochat.train.recipe.learning_rate_factor`.
        """
        shrink = (self._clip / (norm + 1e-12)).clamp(max=1.0)
        for key, group in self._groups.items():
            parameters = [self._parameters[name] for name in group.names]
            # A parameter that this step did not use (an expert without tokens) has no gradient.
            stacked = torch.stack(
                [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            )
            new, self.state[key] = RULES[group.rule.rule](
                torch.stack([p.detach() for p in parameters]),
                stacked * shrink,
                self.state[key],
                group.rule,
                rate=group.rule.rate * factor,
                step=step + 1,
            )
            for parameter, value in zip(parameters, new.unbind(), strict=True):
                parameter.copy_(value)
                parameter.grad = None


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Parameters of one shape that share a rule."""

    names: tuple[str, ...]
    rule: Rule


def _groups(specs: Mapping[str, Spec], settings: OptimizerSettings) -> dict[str, _Group]:
    alike: dict[tuple[Rule, tuple[int, ...]], list[str]] = {}
    for name, spec in specs.items():
        rule = rule_of(settings, role_of(name, spec))
        alike.setdefault((rule, spec.shape), []).append(name)
    groups = {}
    for (rule, shape), names in alike.items():
        # Bounded stacks: the copies of a large model's matrices must not double its memory.
        limit = max(1, (1 << 26) // max(1, math.prod(shape)))
        for first in range(0, len(names), limit):
            part = tuple(names[first : first + limit])
            groups[f"{rule.rule}:{part[0]}"] = _Group(names=part, rule=rule)
    return groups
