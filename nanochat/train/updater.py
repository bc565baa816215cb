"""This file holds the torch side of the optimizers: which rule updates which parameter, in stacks of equal shapes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanochat.errors import TrainingError
from nanochat.train.module import LanguageModel
from nanochat.train.optimizers import Hyper, Rule, rule_of
from nanochat.train.recipe import Recipe, learning_rate_factor
from nanochat.weights import Spec

__all__ = ["Updater"]


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Parameters of one shape that share a rule and a peak learning rate."""

    names: tuple[str, ...]
    rule: Rule
    rate: float
    weight_decay: float


class Updater:
    """Applies one update to all parameters of a model.

    Attributes
    ----------
    state : dict of str to dict of str to tensor
        Per group, the tensors of its rule, stacked like its parameters.
    """

    def __init__(self, model: LanguageModel, specs: Mapping[str, Spec], recipe: Recipe) -> None:
        self._recipe = recipe
        self._parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        self._groups = _groups(specs, recipe)
        self.state: dict[str, dict[str, Tensor]] = {name: {} for name in self._groups}

    def restore(self, state: Mapping[str, Mapping[str, Tensor]], source: str) -> None:
        """Take over the state of a snapshot.

        Raises
        ------
        TrainingError
            If it is not the state of this model under this recipe.
        """
        for key, group in self._groups.items():
            shape = (len(group.names), *self._parameters[group.names[0]].shape)
            found = state.get(key, {})
            if not found or any(tuple(tensor.shape) != shape for tensor in found.values()):
                raise TrainingError(
                    f"{source} has no optimizer state {key} of shape {shape}: it is damaged, or of a recipe with other "
                    "rules or rates; use an earlier snapshot, or keep the recipe's rates"
                )
            self.state[key] = dict(found)

    @torch.no_grad()
    def update(self, step: int) -> Tensor:
        """Clip the gradients, update every parameter for this step (from 0), and drop the gradients.

        Returns
        -------
        scalar tensor
            The global gradient norm before clipping.
        """
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        norm: Tensor = torch.stack([gradient.norm() for gradient in gradients]).norm()
        shrink = (self._recipe.clip / (norm + 1e-12)).clamp(max=1.0)
        factor = learning_rate_factor(self._recipe, step)
        for key, group in self._groups.items():
            parameters = [self._parameters[name] for name in group.names]
            # A parameter that this step did not use (an expert without tokens) has no gradient.
            stacked = torch.stack(
                [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            )
            hyper = Hyper(
                learning_rate=group.rate * factor, step=step + 1, weight_decay=group.weight_decay
            )
            new, self.state[key] = rule_of(group.rule)(
                torch.stack([p.detach() for p in parameters]),
                stacked * shrink,
                self.state[key],
                hyper,
            )
            for parameter, value in zip(parameters, new.unbind(), strict=True):
                parameter.copy_(value)
                parameter.grad = None
        return norm


def _groups(specs: Mapping[str, Spec], recipe: Recipe) -> dict[str, _Group]:
    names: dict[tuple[Rule, float, float, tuple[int, ...]], list[str]] = {}
    for name, spec in specs.items():
        if spec.kind == "ternary":
            key: tuple[Rule, float, float, tuple[int, ...]] = (
                "muon",
                recipe.matrix_rate,
                recipe.weight_decay,
                spec.shape,
            )
        elif spec.initial in ("embedding", "head"):
            key = (recipe.table_rule, recipe.table_rate, 0.0, spec.shape)
        else:
            key = (recipe.table_rule, recipe.vector_rate, 0.0, spec.shape)
        names.setdefault(key, []).append(name)
    groups = {}
    for (rule, rate, decay, shape), members in names.items():
        # Bounded stacks: the copies of a large model's matrices must not double its memory.
        limit = max(1, (1 << 26) // max(1, math.prod(shape)))
        for first in range(0, len(members), limit):
            part = tuple(members[first : first + limit])
            groups[f"{rule}:{part[0]}"] = _Group(
                names=part, rule=rule, rate=rate, weight_decay=decay
            )
    return groups
