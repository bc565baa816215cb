"""This file holds the optimizers: Muon for matrices, AdamW or Lion for everything else.

A rule is a pure function of arrays, ``rule(parameter, gradient, state, hyper) -> parameter, state``, written with the
operators that torch tensors and MLX arrays share; learning rates may be Python numbers. Leading axes of a parameter
stack equal shapes, so that one call updates many matrices.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nanochat.errors import TrainingError
from nanochat.train.module import LanguageModel
from nanochat.train.recipe import Recipe
from nanochat.weights import Spec

__all__ = ["Hyper", "Rule", "Updater", "adamw", "lion", "muon", "orthogonalize"]

# torch tensors and MLX arrays share operators but no type.
Array = Any
State = dict[str, Array]
Rule = Literal["muon", "adamw", "lion"]

# Polar Express: five cubic-in-the-square polynomials, each optimal after the ones before it.
# N. Amsel et al., 2025, arXiv:2505.16932, table 1.
_POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


@dataclass(frozen=True, kw_only=True)
class Hyper:
    """Numbers of one update; `step` counts from 1. `momentum` is Muon's, `betas` those of AdamW and Lion."""

    learning_rate: float
    step: int
    weight_decay: float = 0.0
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8


def muon(parameter: Array, gradient: Array, state: State, hyper: Hyper) -> tuple[Array, State]:
    """Nesterov momentum, made orthogonal; for matrices (..., R, C).

    The update is scaled by ``sqrt(max(1, R / C))``, so one learning rate (about 0.02) serves every shape.

    References
    ----------
    .. [1] github.com/KellerJordan/Muon, commit 857d1ad.
    """
    average = state.get("average")
    average = gradient if average is None else average * hyper.momentum + gradient
    update = orthogonalize(gradient + average * hyper.momentum)
    rows, columns = parameter.shape[-2:]
    rate = hyper.learning_rate * max(1.0, rows / columns) ** 0.5
    parameter = parameter * (1 - hyper.learning_rate * hyper.weight_decay) - update * rate
    return parameter, {"average": average}


def adamw(parameter: Array, gradient: Array, state: State, hyper: Hyper) -> tuple[Array, State]:
    """Adam with decoupled weight decay.

    References
    ----------
    .. [1] I. Loshchilov and F. Hutter, 2019, algorithm 2. arXiv:1711.05101
    """
    first_beta, second_beta = hyper.betas
    first = state.get("first", gradient * 0) * first_beta + gradient * (1 - first_beta)
    second = state.get("second", gradient * 0) * second_beta + gradient**2 * (1 - second_beta)
    mean = first / (1 - first_beta**hyper.step)
    root = (second / (1 - second_beta**hyper.step)) ** 0.5
    parameter = parameter * (1 - hyper.learning_rate * hyper.weight_decay)
    parameter = parameter - mean / (root + hyper.epsilon) * hyper.learning_rate
    return parameter, {"first": first, "second": second}


def lion(parameter: Array, gradient: Array, state: State, hyper: Hyper) -> tuple[Array, State]:
    """The sign of an interpolated momentum; about a tenth of AdamW's learning rate.

    References
    ----------
    .. [1] X. Chen et al., 2023, algorithm 2. arXiv:2302.06675
    """
    first_beta, second_beta = hyper.betas
    average = state.get("average", gradient * 0)
    direction = average * first_beta + gradient * (1 - first_beta)
    # Neither operator nor method for the sign is common to torch and MLX; a comparison is.
    sign = (direction > 0) * 1.0 - (direction < 0) * 1.0
    parameter = parameter * (1 - hyper.learning_rate * hyper.weight_decay)
    parameter = parameter - sign * hyper.learning_rate
    return parameter, {"average": average * second_beta + gradient * (1 - second_beta)}


def orthogonalize(matrix: Array) -> Array:
    """The nearest matrix with singular values of about 1 (0.86 to 1.14), over the last two axes.

    References
    ----------
    .. [1] N. Amsel et al., "The Polar Express", 2025. arXiv:2505.16932
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = _transpose(matrix) if tall else matrix
    norm = (x**2).sum((-2, -1), keepdims=True) ** 0.5
    x = x / (norm * 1.01 + 1e-7)
    for a, b, c in _POLAR_EXPRESS:
        gram = x @ _transpose(x)
        x = x * a + (gram * b + gram @ gram * c) @ x
    return _transpose(x) if tall else x


def _transpose(x: Array) -> Array:
    return x.swapaxes(-2, -1)


_RULES: Mapping[Rule, Callable[[Array, Array, State, Hyper], tuple[Array, State]]] = {
    "muon": muon,
    "adamw": adamw,
    "lion": lion,
}


class Updater:
    """Applies one update to all parameters of a model, in stacks of equal shapes.

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
        shrink = (self._recipe.clip / (norm + 1e-12)).clamp(max=1.0)
        for key, group in self._groups.items():
            parameters = [self._parameters[name] for name in group.names]
            # A parameter that this step did not use (an expert without tokens) has no gradient.
            stacked = torch.stack(
                [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            )
            new, self.state[key] = _RULES[group.rule](
                torch.stack([p.detach() for p in parameters]),
                stacked * shrink,
                self.state[key],
                Hyper(
                    learning_rate=group.rate * factor,
                    step=step + 1,
                    weight_decay=group.weight_decay,
                ),
            )
            for parameter, value in zip(parameters, new.unbind(), strict=True):
                parameter.copy_(value)
                parameter.grad = None


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Parameters of one shape that share a rule and a peak learning rate."""

    names: tuple[str, ...]
    rule: Rule
    rate: float
    weight_decay: float


def _groups(specs: Mapping[str, Spec], recipe: Recipe) -> dict[str, _Group]:
    alike: dict[tuple[Rule, float, float, tuple[int, ...]], list[str]] = {}
    for name, spec in specs.items():
        rule: Rule = recipe.table_rule
        rate, decay = recipe.vector_rate, 0.0
        if spec.kind == "ternary":
            rule, rate, decay = "muon", recipe.matrix_rate, recipe.weight_decay
        elif spec.initial in ("embedding", "head"):
            rate = recipe.table_rate
        alike.setdefault((rule, rate, decay, spec.shape), []).append(name)
    groups = {}
    for (rule, rate, decay, shape), names in alike.items():
        # Bounded stacks: the copies of a large model's matrices must not double its memory.
        limit = max(1, (1 << 26) // max(1, math.prod(shape)))
        for first in range(0, len(names), limit):
            part = tuple(names[first : first + limit])
            groups[f"{rule}:{part[0]}"] = _Group(
                names=part, rule=rule, rate=rate, weight_decay=decay
            )
    return groups
