"""This file holds the orders in which a run reads sequences: one for each epoch, the same for ever."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["epoch_order", "window_starts"]


def window_starts(
    num_tokens: int, num_windows: int, length: int, seeds: tuple[int, ...]
) -> NDArray[np.int64]:
    """Where each window of one epoch starts, which is cut at an offset of its own, in the order of its samples."""
    random = _random(seeds)
    slack = min(length - 1, num_tokens - 1 - num_windows * length)
    offset = int(random.random_raw()) % (slack + 1)
    order = np.argsort(random.random_raw(num_windows), kind="stable")
    return offset + length * order.astype(np.int64)


def epoch_order(count: int, seeds: tuple[int, ...]) -> NDArray[np.int64]:
    """The numbers below `count` in the order of one epoch.

    Examples
    --------
    >>> epoch_order(5, (0, 1)).tolist()
    [3, 4, 2, 1, 0]
    """
    return np.argsort(_random(seeds).random_raw(count), kind="stable")


def _random(seeds: tuple[int, ...]) -> np.random.Philox:
    # Bit generators are stable across versions of NumPy; Generator.permutation is not (NEP 19).
    return np.random.Philox(np.random.SeedSequence(seeds))
