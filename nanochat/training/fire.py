"""This file holds FIRE: matrices of a model that has learned are made nearly orthogonal, so that it learns anew.

The nearest orthogonal matrix keeps most of what was learned, and has room in all directions. A few iterations come as
near as the published recipe goes: small singular values stay small.

References
----------
.. [1] I. Han et al., "FIRE: Frobenius-Isometry Reinitialization for Balancing the Stability-Plasticity Tradeoff", 2026,
   section 4. arXiv:2602.08040
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from nanochat.training.module import LanguageModel
from nanochat.training.roles import OptimizerSettings, role_of, trained_rule
from nanochat.training.rules.muon import orthogonalize
from nanochat.training.values import CHECKED, Count
from nanochat.weights import Spec

__all__ = ["Fire", "fired", "reinitialized"]

# Of the cubic Newton-Schulz iteration, x -> 1.5 x - 0.5 x x' x.
_CUBIC = (1.5, -0.5, 0.0)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Fire:
    """How matrices are made orthogonal where a phase begins.

    Parameters
    ----------
    iterations : int
        Of Newton and Schulz: with five, singular values from 0.05 of the norm grow to 0.37, with ten to 1.
    scale : {"kept", "shape"}
        How large they are then: their mean magnitude as before, by which ternary matrices are rounded, or, as
        published, all singular values near ``sqrt(R / C)`` for R rows and C columns.
    """

    iterations: Count = 5
    scale: Literal["kept", "shape"] = "kept"


@torch.no_grad()
def fired(
    model: LanguageModel,
    specs: Mapping[str, Spec],
    optimizer: OptimizerSettings,
    settings: Fire,
) -> list[str]:
    """Reinitialise the matrices of a model that are trained, in place, and return their names."""
    names = [
        name
        for name, spec in specs.items()
        if role_of(name, spec) == "matrices" and trained_rule(optimizer, name, spec) is not None
    ]
    for name in names:
        parameter = model.get_parameter(name)
        parameter.copy_(reinitialized(parameter, settings))
    return names


def reinitialized(matrices: Tensor, settings: Fire) -> Tensor:
    """Matrices (..., R, C), nearly orthogonal."""
    near: Tensor = orthogonalize(matrices, [_CUBIC] * settings.iterations, margin=1.0)
    rows, columns = matrices.shape[-2:]
    if settings.scale == "shape":
        return near * math.sqrt(rows / columns)
    before, now = (x.abs().mean((-2, -1), keepdim=True) for x in (matrices, near))
    return near * (before / now.clamp(min=1e-30))
