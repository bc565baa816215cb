"""This file holds what update rules need of arrays: of torch tensors or MLX arrays, which share most functions."""

import sys
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

__all__ = ["Array", "Kept", "State", "library", "transposed"]

# The two have no type in common.
Array = Any
State = dict[str, Array]


class Kept(NamedTuple):
    """Shape and type of an array that a rule keeps from step to step."""

    shape: Sequence[int]
    dtype: Literal["float32", "int8"] = "float32"


def library(array: Array) -> Any:
    """The module whose functions take such an array: torch or mlx.core, which nothing here imports."""
    return sys.modules[type(array).__module__]


def transposed(matrices: Array) -> Array:
    """Matrices with rows for columns, whatever axes stand before them."""
    return matrices.swapaxes(-2, -1)
