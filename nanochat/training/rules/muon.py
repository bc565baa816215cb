"""This file holds Muon: its settings, its update, and what it keeps."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from nanochat.training.rules.arrays import Array, Kept, State, transposed
from nanochat.training.rules.blocks import dequantized, kept_as_codes, quantized
from nanochat.training.rules.low_rank import Projected
from nanochat.training.values import CHECKED, Positive, Share, Whole

__all__ = ["Muon", "kept_by_muon", "muon", "orthogonalize"]

# Polar Express: five cubic-in-the-square polynomials, each optimal after the ones before it.
# N. Amsel et al., 2025, arXiv:2505.16932, table 1.
_POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
# What the norm is multiplied by for them, by which a matrix is divided before.
_MARGIN = 1.01
# Jordan's quintic, the same five times; github.com/KellerJordan/Muon, commit 857d1ad.
_JORDAN = ((3.4445, -4.7750, 2.0315),) * 5
_POLYNOMIALS = {"polar-express": (_POLAR_EXPRESS, _MARGIN), "jordan": (_JORDAN, 1.0)}
# Polynomials of one Gram matrix.
_MOST_BY_GRAM = 5


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Muon(Projected):
    """Momentum, made orthogonal, for matrices; NorMuon with a `row_beta`, 8-bit Muon with an average in int8.

    Parameters
    ----------
    rule : "muon"
    momentum : float
        Of the average of gradients.
    first_momentum, momentum_warmup_steps : float, int
        From what it rises to that, and in how many steps.
    average : {"float32", "int8"}
        What the average is kept in; int8 has a scale for 2,048 numbers, and takes a quarter of the memory.
    nesterov : bool
        Whether the gradient counts once more than in that average.
    polynomials : {"polar-express", "jordan"}
        What makes the average orthogonal: singular values of 0.86 to 1.14, or of 0.68 to 1.13.
    iterations : int
        How many of them, up to five.
    row_beta : float
        Of the average of each row's squares in the orthogonal matrix, by whose root it is divided, such as 0.95; 0
        leaves rows as they are.
    scale : {"shape", "spectral", "rms"}
        For R rows and C columns, an update has ``sqrt(max(1, R / C))`` times the rate, or ``sqrt(R / C)``, or ``0.2
        sqrt(max(R, C))``, with which AdamW's rates serve.
    """

    rule: Literal["muon"] = "muon"
    rate: Positive = 0.02
    momentum: Share = 0.95
    first_momentum: Share = 0.85
    momentum_warmup_steps: Whole = 0
    average: Literal["float32", "int8"] = "float32"
    nesterov: bool = True
    polynomials: Literal["polar-express", "jordan"] = "polar-express"
    iterations: Annotated[int, Field(ge=1, le=len(_POLAR_EXPRESS), strict=True)] = len(
        _POLAR_EXPRESS
    )
    row_beta: Share = 0.0
    scale: Literal["shape", "spectral", "rms"] = "shape"


def muon(
    gradient: Array, state: State, settings: Muon, *, shape: Sequence[int], rate: float, step: int
) -> tuple[Array, State]:
    """What a step of Muon adds to matrices of that shape (..., R, C), and the state after it.

    References
    ----------
    .. [1] K. Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024. github.com/KellerJordan/Muon
    .. [2] J. Liu et al., "Muon is Scalable for LLM Training", 2025, section 2.2, of the scale "rms". arXiv:2502.16982
    .. [3] Z. Li et al., "NorMuon", 2025, algorithm 1. arXiv:2510.05491
    .. [4] A. Gupta et al., "Effective Quantization of Muon Optimizer States", 2025, section 3. arXiv:2509.23106
    """
    momentum = _momentum(settings, step)
    before = state.get("average", 0.0)
    if "codes" in state:
        before = dequantized(state["codes"], state["scales"])
    average = before * momentum + gradient
    seen = gradient + average * momentum if settings.nesterov else average
    polynomials, margin = _POLYNOMIALS[settings.polynomials]
    update = orthogonalize(seen, polynomials[: settings.iterations], margin=margin)
    left = {"average": average}
    if settings.average == "int8":
        left = dict(zip(("codes", "scales"), quantized(average), strict=True))
    if settings.row_beta:
        update, left["rows"] = _even(update, state.get("rows", 0.0), settings.row_beta)
    return update * (-rate * _scale(settings, *shape[-2:])), left


def kept_by_muon(settings: Muon, shape: Sequence[int]) -> dict[str, Kept]:
    """What it keeps of a parameter of that shape."""
    found = {"average": Kept(shape)}
    if settings.average == "int8":
        found = dict(zip(("codes", "scales"), kept_as_codes(shape), strict=True))
    if settings.row_beta:
        found["rows"] = Kept((*shape[:-1], 1))
    return found


def orthogonalize(
    matrix: Array,
    polynomials: Sequence[tuple[float, float, float]] = _POLAR_EXPRESS,
    *,
    margin: float = _MARGIN,
) -> Array:
    """The nearest matrix with singular values of about 1, over the last two axes.

    Before, it is divided by its norm times the margin.

    Each polynomial is one of the Gram matrix. Where that is a third as large, all of them are multiplied first: 1.4 to
    1.8 times as fast there, equal to 3e-5, and no faster where it is half as large.

    References
    ----------
    .. [1] N. Amsel et al., "The Polar Express", 2025. arXiv:2505.16932
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = transposed(matrix) if tall else matrix
    norm = (x**2).sum((-2, -1), keepdims=True) ** 0.5
    x = x / (norm * margin + 1e-7)
    if x.shape[-1] >= 3 * x.shape[-2]:
        # The matrix that is multiplied drifts from that of x, and after many polynomials has nothing to do with it.
        for first in range(0, len(polynomials), _MOST_BY_GRAM):
            x = _by_gram(x, polynomials[first : first + _MOST_BY_GRAM])
    else:
        for a, b, c in polynomials:
            gram = x @ transposed(x)
            x = x * a + (gram * b + gram @ gram * c) @ x
    return transposed(x) if tall else x


def _by_gram(x: Array, polynomials: Sequence[tuple[float, float, float]]) -> Array:
    """The same for a wide matrix: the product of the polynomials is a number plus a matrix, and meets x once."""
    gram = x @ transposed(x)
    number, matrix, rest = 1.0, None, None
    for before, (a, b, c) in pairwise([(0.0, 0.0, 0.0), *polynomials]):
        if matrix is not None:
            # The Gram matrix after a polynomial has it as a factor on both sides.
            for _ in range(2):
                gram = gram * before[0] + rest @ gram
        rest = gram * b + gram @ gram * c
        matrix = rest if matrix is None else matrix * a + rest * number + rest @ matrix
        number *= a
    return x * number + matrix @ x


def _scale(settings: Muon, rows: int, columns: int) -> float:
    match settings.scale:
        case "shape":
            return math.sqrt(max(1.0, rows / columns))
        case "spectral":
            return math.sqrt(rows / columns)
        case "rms":
            return 0.2 * math.sqrt(max(rows, columns))


def _momentum(settings: Muon, step: int) -> float:
    """That of a step, counted from 1."""
    if step > settings.momentum_warmup_steps:
        return settings.momentum
    share = (step - 1) / settings.momentum_warmup_steps
    return settings.first_momentum + (settings.momentum - settings.first_momentum) * share


def _even(update: Array, squares: Array, beta: float) -> tuple[Array, Array]:
    """Rows of about the same length, and the average of their squares; the matrix is as large as before."""
    squares = squares * beta + (update**2).mean(-1, keepdims=True) * (1 - beta)
    even = update / (squares**0.5 + 1e-10)
    sizes = [(x**2).sum((-2, -1), keepdims=True) ** 0.5 for x in (update, even)]
    return even * (sizes[0] / (sizes[1] + 1e-10)), squares
