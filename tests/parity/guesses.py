"""This file holds the choice of guesses for tests, which does not depend on what steps take."""

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["some_guesses"]


def some_guesses(*, seed: int) -> Callable[..., list[int]]:
    """In place of `nanochat.generation.costs.Chooser.choose`: some of each text's guesses, or all, or none."""
    generator = np.random.default_rng(seed)

    def choose(_: object, unread: Any, chances: Any, **__: object) -> list[int]:
        del unread
        return [int(generator.integers(0, len(row) + 1)) for row in chances]

    return choose
