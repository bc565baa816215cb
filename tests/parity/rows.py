"""This file holds how tests step the rows of a state: rows of given lengths, and the flat tokens of a batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat.config import ModelConfig
from nanochat.model import forward
from nanochat.ops import Ops, Slot
from nanochat.slots import slots

__all__ = ["continue_rows", "flat", "new_rows", "run_step", "state_of_lengths", "stepping"]

AnyOps = Ops[Any, Any, Any]
Values = NDArray[np.float32]
Ids = Sequence[int] | NDArray[np.int64]


def state_of_lengths(
    ops: AnyOps, slots: Sequence[Slot], lengths: Sequence[int], capacity: int
) -> Any:
    """A state whose rows 0, 1, ... have seen that many tokens, and remember zeros."""
    state = ops.new_state(slots, rows=len(lengths), capacity=capacity)
    for length in lengths:
        row = state.admit()
        if length:
            with stepping(state, [row], [length]):
                pass
    return state


def new_rows(ops: AnyOps, config: ModelConfig, rows: int, capacity: int) -> Any:
    """A state of a model, with so many empty rows."""
    return state_of_lengths(ops, slots(config), [0] * rows, capacity)


@contextmanager
def stepping(state: Any, rows: Sequence[int], counts: Sequence[int]) -> Iterator[None]:
    """A step of the rows; what is inside are its operations."""
    state.begin(rows, counts)
    yield
    state.end()


def flat(x: NDArray[Any]) -> NDArray[Any]:
    """The flat tokens of a step of rows that get equally many, (B, T, ...) to (1, B T, ...)."""
    return x.reshape(1, -1, *x.shape[2:])


def run_step(
    ops: AnyOps,
    weights: Any,
    config: ModelConfig,
    state: Any,
    rows: Sequence[int],
    tokens: Sequence[Ids],
    *,
    only_last: bool = False,
) -> Values:
    """Logits after all tokens of the rows, (N, V), or after the last one of each, (M, V)."""
    ids = np.concatenate([np.array(each, np.int64) for each in tokens])
    with stepping(state, rows, [len(each) for each in tokens]):
        logits = forward(ops.tokens(ids[None]), weights, config, ops, state, only_last=only_last)
        found: Values = ops.numpy(logits)[0]
    return found


def continue_rows(
    ops: AnyOps, weights: Any, config: ModelConfig, state: Any, tokens: NDArray[np.int64]
) -> Values:
    """Logits after all tokens (B, T) that continue the rows 0, 1, ... of a state, (B, T, V)."""
    logits = run_step(ops, weights, config, state, range(len(tokens)), list(tokens))
    return logits.reshape(*tokens.shape, -1)
