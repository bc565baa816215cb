"""This file holds results that are not computed until they are needed.

A norm or an activation is followed by a product, which needs it rounded to int8. What `Pending` stands for is then
rounded while it is computed, in one pass over the numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Pending", "Rounded", "Values", "realize"]

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Rounded:
    """Activations as `quantize` rounds them: codes (N, B, 16 G), the sums of their blocks (N, B), and scales (N, B)."""

    codes: NDArray[np.int8]
    sums: NDArray[np.int32]
    scales: Values


class Fusion(Protocol):
    """Computes an array into `y`, rows (N, C), and rounds it in blocks of so many columns into `rounded`."""

    def __call__(self, y: Values, block: int, rounded: Rounded) -> None: ...


class TurningFusion(Protocol):
    """Computes an array, rotates it by signs in turned blocks into `y`, and rounds that as `Fusion` does."""

    def __call__(
        self, y: Values, block: int, rounded: Rounded, signs: Values, turned: int
    ) -> None: ...


@dataclass(eq=False, kw_only=True)
class Pending:
    """A result that is computed when it is needed, as floats or rounded to int8."""

    shape: tuple[int, ...]
    # Gives the array.
    compute: Callable[[], Values]
    # Computes and rounds it at once.
    fusion: Fusion | None = None
    # Gives the RMSNorm of the array, from the one that pends, gains and epsilon, without computing the array. Given
    # what it is a part of, it need not hold it: a circle would keep activations until Python looks for circles.
    norm: Callable[["Pending", Values, float], "Pending"] | None = None
    # Computes, rotates and rounds it at once.
    turn: TurningFusion | None = None
    values: Values | None = None
    roundings: dict[int, Rounded] = field(default_factory=dict)

    @classmethod
    def of(cls, x: "Array") -> "Pending":
        """X itself if it pends; what stands for it, if it is an array."""
        if isinstance(x, Pending):
            return x
        return cls(shape=x.shape, compute=partial(realize, x), values=x)

    def array(self) -> Values:
        """The array itself, computed once."""
        if self.values is None:
            self.values = self.compute()
        return self.values


# Token ids (int64) and masks (bool) are arrays, too, and go by the same type.
Array = Values | Pending


def realize(x: Array) -> Values:
    """The array itself, computed if `x` stands for one that nobody has needed yet."""
    return x.array() if isinstance(x, Pending) else x
