"""This file holds what restricts a text to a form: which tokens may follow those that were chosen.

`nanochat.text.grammar` has some; anything of these two shapes will do.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Constraint", "Matcher"]


class Matcher(Protocol):
    """A text that grows within a form."""

    @property
    def error(self) -> str | None:
        """Why it cannot go on, if it cannot; then it allows what ends a text."""
        ...

    def fill(self, allowed: NDArray[np.uint32]) -> None:
        """Write which tokens may follow, as `nanochat.draws.Draws.allowed` has them: one at least."""
        ...

    def push(self, token: int) -> None:
        """Go on with a token that was allowed."""
        ...

    def count(self, tokens: Sequence[int]) -> int:
        """How many of some tokens may follow, one after the other; those after that are not looked at."""
        ...

    def forced(self) -> list[int]:
        """Tokens that must follow, or others of the same bytes; none where there is a choice."""
        ...

    def copy(self) -> "Matcher":
        """The same text, which grows for itself."""
        ...


class Constraint(Protocol):
    """A form of texts."""

    def matcher(self) -> Matcher:
        """A text of it that has not begun."""
        ...
