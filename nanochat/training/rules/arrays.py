"""This file holds what update rules need of arrays: of torch tensors or MLX arrays, which share most functions."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Kept", "State", "beside", "decomposing", "library", "transposed"]

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


def beside(array: Array, numbers: NDArray[np.float32]) -> Array:
    """NumPy's numbers as an array of the same library and device as another."""
    of = library(array)
    return of.asarray(numbers, **({"device": array.device} if of.__name__ == "torch" else {}))


def decomposing(of: Any) -> AbstractContextManager[object]:
    """Where a library decomposes matrices: MLX on the CPU only."""
    return of.stream(of.cpu) if of.__name__ == "mlx.core" else nullcontext()
