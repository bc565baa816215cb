"""This file holds the update rules of optimizers, and their settings: Muon for matrices, AdamW and Lion.

A rule is a pure function of arrays, written with the operators that torch tensors and MLX arrays share. Learning rates
may be Python numbers. Leading axes of a parameter stack equal shapes, so that one call updates many.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from nanochat.training.values import CHECKED, NotNegative, Positive, Share

__all__ = [
    "KEPT",
    "RULES",
    "SETTINGS",
    "AdamW",
    "Lion",
    "Muon",
    "Rule",
    "State",
    "adamw",
    "lion",
    "muon",
    "orthogonalize",
]

# torch tensors and MLX arrays share operators but no type.
Array = Any
State = dict[str, Array]

# Polar Express: five cubic-in-the-square polynomials, each optimal after the ones before it.
# N. Amsel et al., 2025, arXiv:2505.16932, table 1.
_POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Muon:
    """Nesterov momentum, made orthogonal, for matrices.

    Parameters
    ----------
    rule : "muon"
    rate : float
        Peak learning rate.
    weight_decay : float
        Share of the learning rate by which a parameter shrinks.
    momentum : float
        Of the average of gradients.
    iterations : int
        Polynomials that make the average orthogonal, up to five.
    """

    rule: Literal["muon"] = "muon"
    rate: Positive = 0.02
    weight_decay: NotNegative = 0.0
    momentum: Share = 0.95
    iterations: Annotated[int, Field(ge=1, le=len(_POLAR_EXPRESS), strict=True)] = len(
        _POLAR_EXPRESS
    )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class AdamW:
    """Adam with decoupled weight decay.

    Parameters
    ----------
    rule : "adamw"
    rate : float
        Peak learning rate.
    weight_decay : float
        Share of the learning rate by which a parameter shrinks.
    first_beta, second_beta : float
        Of the averages of gradients and of their squares.
    epsilon : float
        Is added to the root of the second.
    """

    rule: Literal["adamw"] = "adamw"
    rate: Positive = 0.01
    weight_decay: NotNegative = 0.0
    first_beta: Share = 0.9
    second_beta: Share = 0.95
    epsilon: Positive = 1e-8


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Lion:
    """The sign of an interpolated momentum; about a tenth of AdamW's learning rate.

    Parameters
    ----------
    rule : "lion"
    rate : float
        Peak learning rate.
    weight_decay : float
        Share of the learning rate by which a parameter shrinks.
    first_beta, second_beta : float
        Of the momentum in the direction, and in the average that is kept.
    """

    rule: Literal["lion"] = "lion"
    rate: Positive = 0.001
    weight_decay: NotNegative = 0.0
    first_beta: Share = 0.9
    second_beta: Share = 0.99


Rule = Annotated[Muon | AdamW | Lion, Field(discriminator="rule")]


def muon(
    parameter: Array, gradient: Array, state: State, settings: Muon, *, rate: float, step: int
) -> tuple[Array, State]:
    """Parameters and state after a step of Muon; for matrices (..., R, C).

    The update is scaled by ``sqrt(max(1, R / C))``, so one learning rate (about 0.02) serves every shape.

    References
    ----------
    .. [1] github.com/KellerJordan/Muon, commit 857d1ad.
    """
    del step
    average = state.get("average")
    average = gradient if average is None else average * settings.momentum + gradient
    update = orthogonalize(gradient + average * settings.momentum, settings.iterations)
    rows, columns = parameter.shape[-2:]
    scaled = rate * max(1.0, rows / columns) ** 0.5
    return parameter * (1 - rate * settings.weight_decay) - update * scaled, {"average": average}


def adamw(
    parameter: Array, gradient: Array, state: State, settings: AdamW, *, rate: float, step: int
) -> tuple[Array, State]:
    """Parameters and state after a step of AdamW; `step` counts those of this state, from 1.

    References
    ----------
    .. [1] I. Loshchilov and F. Hutter, 2019, algorithm 2. arXiv:1711.05101
    """
    first_beta, second_beta = settings.first_beta, settings.second_beta
    first = state.get("first", gradient * 0) * first_beta + gradient * (1 - first_beta)
    second = state.get("second", gradient * 0) * second_beta + gradient**2 * (1 - second_beta)
    mean = first / (1 - first_beta**step)
    root = (second / (1 - second_beta**step)) ** 0.5
    parameter = parameter * (1 - rate * settings.weight_decay)
    parameter = parameter - mean / (root + settings.epsilon) * rate
    return parameter, {"first": first, "second": second}


def lion(
    parameter: Array, gradient: Array, state: State, settings: Lion, *, rate: float, step: int
) -> tuple[Array, State]:
    """Parameters and state after a step of Lion.

    References
    ----------
    .. [1] X. Chen et al., 2023, algorithm 2. arXiv:2302.06675
    """
    del step
    first_beta, second_beta = settings.first_beta, settings.second_beta
    average = state.get("average", gradient * 0)
    direction = average * first_beta + gradient * (1 - first_beta)
    # Neither operator nor method for the sign is common to torch and MLX; a comparison is.
    sign = (direction > 0) * 1.0 - (direction < 0) * 1.0
    parameter = parameter * (1 - rate * settings.weight_decay) - sign * rate
    return parameter, {"average": average * second_beta + gradient * (1 - second_beta)}


def orthogonalize(matrix: Array, iterations: int = len(_POLAR_EXPRESS)) -> Array:
    """The nearest matrix with singular values of about 1 (0.86 to 1.14), over the last two axes.

    Each polynomial is one of the Gram matrix. Where that is a third as large, all of them are multiplied first: 1.4 to
    1.8 times as fast there, equal to 3e-5, and no faster where it is half as large.

    References
    ----------
    .. [1] N. Amsel et al., "The Polar Express", 2025. arXiv:2505.16932
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = _transpose(matrix) if tall else matrix
    norm = (x**2).sum((-2, -1), keepdims=True) ** 0.5
    x = x / (norm * 1.01 + 1e-7)
    if x.shape[-1] >= 3 * x.shape[-2]:
        x = _by_gram(x, iterations)
    else:
        for a, b, c in _POLAR_EXPRESS[:iterations]:
            gram = x @ _transpose(x)
            x = x * a + (gram * b + gram @ gram * c) @ x
    return _transpose(x) if tall else x


def _by_gram(x: Array, iterations: int) -> Array:
    """The same for a wide matrix: the product of the polynomials is a number plus a matrix, and meets x once."""
    gram = x @ _transpose(x)
    number, matrix, rest = 1.0, None, None
    for before, (a, b, c) in pairwise([(0.0, 0.0, 0.0), *_POLAR_EXPRESS[:iterations]]):
        if matrix is not None:
            # The Gram matrix after a polynomial has it as a factor on both sides.
            for _ in range(2):
                gram = gram * before[0] + rest @ gram
        rest = gram * b + gram @ gram * c
        matrix = rest if matrix is None else matrix * a + rest * number + rest @ matrix
        number *= a
    return x * number + matrix @ x


def _transpose(x: Array) -> Array:
    return x.swapaxes(-2, -1)


# The update of each, and what it keeps from step to step, of the parameter's shape.
_UPDATES: Mapping[type[Rule], tuple[Callable[..., tuple[Array, State]], tuple[str, ...]]] = {
    Muon: (muon, ("average",)),
    AdamW: (adamw, ("first", "second")),
    Lion: (lion, ("average",)),
}
SETTINGS: Mapping[str, type[Rule]] = {kind().rule: kind for kind in _UPDATES}
RULES = {name: _UPDATES[kind][0] for name, kind in SETTINGS.items()}
KEPT = {name: _UPDATES[kind][1] for name, kind in SETTINGS.items()}
