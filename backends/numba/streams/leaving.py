"""This file holds how a loop that tokens leave is launched, now or in a step that is noted to be repeated.

Legend: B sequences, T tokens, C numbers of a token.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba.pending import Values
from nanochat.backends.numba.runtime.costs import ELEMENT
from nanochat.backends.numba.runtime.launch import Launcher
from nanochat.backends.numba.streams import loops

__all__ = ["add_bias", "leave", "select", "skipping"]


@contextmanager
def skipping(launch: Launcher) -> Iterator[None]:
    """Note calls as ones that are skipped once `leave` finds that all tokens have left."""
    if (notes := launch.notes) is not None:
        # Nobody knows yet when the tokens of a later step leave.
        notes.everyone = np.zeros(1, np.int64)
    try:
        yield
    finally:
        if notes is not None:
            notes.everyone = None


def leave(
    launch: Launcher, survival: Values, *, threshold: float
) -> tuple[NDArray[np.bool_], bool]:
    """Which tokens have left, as survival (B, T, 1), and whether all have: in a step that is noted, nobody can say."""
    count = survival.size
    mask, everyone = launch.empty((count,), np.bool_), np.zeros(1, np.int64)
    notes = launch.notes
    before = everyone if notes is None or notes.everyone is None else notes.everyone
    arguments = survival.reshape(count), float(threshold), before, mask, everyone
    with launch.always():
        launch(loops.leave, *arguments, tasks=1, nanoseconds=count * ELEMENT)
    left = mask.reshape(survival.shape)
    if notes is None:
        return left, bool(everyone[0])
    notes.everyone = everyone
    return left, False


def select(launch: Launcher, mask: NDArray[np.bool_], yes: Values, no: Values) -> Values:
    """`yes` (B, T, C) for the tokens of the mask (B, T, 1), else `no`."""
    y = launch.like(yes)
    rows = [array.reshape(mask.size, -1) for array in (yes, no, y)]
    with launch.always():
        tasks, nanoseconds = mask.size, y.size * ELEMENT
        launch(loops.select, mask.reshape(-1), *rows, tasks=tasks, nanoseconds=nanoseconds)
    return y


def add_bias(launch: Launcher, x: Values, bias: Values) -> Values:
    """``x + bias`` for x (..., C) and bias (C,)."""
    y = launch.like(x)
    assert bias.ndim == 1, bias.shape
    assert bias.dtype == x.dtype
    flat, result = (array.reshape(-1, bias.size) for array in (x, y))
    tasks, nanoseconds = len(flat), y.size * ELEMENT
    launch(loops.add_bias, flat, bias, result, tasks=tasks, nanoseconds=nanoseconds)
    return y
