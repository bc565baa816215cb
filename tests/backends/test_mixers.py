"""Attention and Gated DeltaNet alone, on awkward shapes and numbers, with and without a state.

Legend: see `nanochat.ops`.
"""

from typing import Any

import numpy as np
import pytest

from nanochat.errors import ContextLengthError
from nanochat.ops import Slot
from nanochat.weights import Dense
from tests.backends.leaves import AnyOps, Lockstep, Values, normal, prepared

THETA = 10_000.0


def state_of_lengths(ops: AnyOps, slots: list[Slot], lengths: list[int], capacity: int) -> Any:
    """A state whose sequences have seen that many tokens, and remember zeros."""
    states = [ops.new_state(slots, batch=1, capacity=capacity) for _ in lengths]
    for state, length in zip(states, lengths, strict=True):
        ops.advance(state, ops.tokens(np.zeros((1, length), np.int64)))
    return ops.stack(states)


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 7, 3, 10), (1, 129, 2, 64)], ids=str)
def test_rope(lockstep: Lockstep, shape: tuple[int, ...]) -> None:
    lockstep.rope(lockstep.array(normal(*shape)), theta=THETA, state=None)

    lockstep.check()


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("lengths", [[5, 5], [0, 3], [9, 30_000]], ids=str)
def test_rope_after_other_tokens(lockstep: Lockstep, lengths: list[int], tokens: int) -> None:
    state = state_of_lengths(lockstep, [], lengths, capacity=40_000)

    lockstep.rope(lockstep.array(normal(2, tokens, 3, 64)), theta=500_000.0, state=state)

    lockstep.check()


def heads(lockstep: Lockstep, batch: int, tokens: int, h: int, g: int, k: int) -> list[Any]:
    """Queries, keys and values."""
    shapes = [(batch, tokens, h, k), (batch, tokens, g, k), (batch, tokens, g, k)]
    return [lockstep.array(normal(*shape, seed=i)) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize(
    ("batch", "tokens", "h", "g", "k"),
    [(1, 1, 1, 1, 2), (2, 7, 6, 2, 10), (1, 65, 4, 4, 64), (1, 33, 5, 1, 32)],
    ids=str,
)
def test_attention(lockstep: Lockstep, batch: int, tokens: int, h: int, g: int, k: int) -> None:
    q, keys, values = heads(lockstep, batch, tokens, h, g, k)

    lockstep.attention(q, keys, values, state=None, slot=0)

    lockstep.check()


def test_attention_to_one_token_of_many(lockstep: Lockstep) -> None:
    q, keys, values = heads(lockstep, 1, 9, 2, 1, 16)
    strong = lockstep.array(100 * q.reference)

    lockstep.attention(strong, keys, values, state=None, slot=0)

    lockstep.check()


@pytest.mark.parametrize("lengths", [[4, 4], [1, 7, 3]], ids=str)
@pytest.mark.parametrize("tokens", [1, 3])
def test_attention_to_remembered_tokens(
    lockstep: Lockstep, lengths: list[int], tokens: int
) -> None:
    slot = Slot(kind="attention", heads=2, key_dim=10)
    states = []
    for length in lengths:
        state = lockstep.new_state([slot, slot], batch=1, capacity=10)
        q, keys, values = heads(lockstep, 1, length, 6, 2, 10)
        lockstep.attention(q, keys, values, state=state, slot=0)
        lockstep.remember(values, keys, state=state, slot=1)
        lockstep.advance(state, lockstep.tokens(np.zeros((1, length), np.int64)))
        states.append(state)
    whole = lockstep.stack(states)
    q, keys, values = heads(lockstep, len(lengths), tokens, 6, 2, 10)

    lockstep.attention(q, keys, values, state=whole, slot=0)
    lockstep.attention(q, keys, values, state=whole, slot=1)

    lockstep.check()


def test_a_state_takes_as_many_tokens_as_its_capacity_and_no_more(ops: AnyOps) -> None:
    state = ops.new_state([Slot(kind="attention", heads=1, key_dim=2)], batch=1, capacity=3)
    three, one = ops.array(normal(1, 3, 1, 2)), ops.array(normal(1, 1, 1, 2))
    ops.attention(three, three, three, state=state, slot=0)
    ops.advance(state, ops.tokens(np.zeros((1, 3), np.int64)))

    with pytest.raises(ContextLengthError, match="3 tokens seen and 1 more"):
        ops.attention(one, one, one, state=state, slot=0)


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("pieces", [[1], [2], [7], [5, 1, 1], [1, 6]], ids=str)
def test_short_conv(lockstep: Lockstep, taps: int, pieces: list[int]) -> None:
    kernel = prepared(lockstep, Dense(values=normal(13, taps, seed=5)))
    slot = Slot(kind="conv", taps=taps, features=13)
    state = lockstep.new_state([slot], batch=2, capacity=8)

    for tokens in pieces:
        x = lockstep.array(normal(2, tokens, 13, seed=tokens))
        lockstep.short_conv(x, kernel, state=None, slot=0)
        lockstep.short_conv(x, kernel, state=state, slot=0)

    lockstep.check()


def delta_rule(
    lockstep: Lockstep,
    x: list[Values],
    *,
    state: Any = None,
    log_rate: float = 0.0,
) -> None:
    num_heads = x[0].shape[2]
    rates = np.full(num_heads, log_rate, np.float32)
    q, k, v, beta, decay = (lockstep.array(values) for values in x)
    lockstep.delta_rule(
        q,
        k,
        v,
        beta,
        decay,
        prepared(lockstep, Dense(values=rates)),
        prepared(lockstep, Dense(values=normal(num_heads))),
        state=state,
        slot=0,
    )


def delta_inputs(batch: int, tokens: int, h: int, k: int, v: int) -> list[Values]:
    shapes = [(h, k), (h, k), (h, v), (h,), (h,)]
    return [normal(batch, tokens, *shape, seed=i) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize(
    ("batch", "tokens", "h", "k", "v"),
    [(1, 1, 1, 4, 4), (2, 7, 3, 24, 64), (1, 65, 2, 16, 8), (1, 131, 1, 32, 32)],
    ids=str,
)
def test_delta_rule(lockstep: Lockstep, batch: int, tokens: int, h: int, k: int, v: int) -> None:
    delta_rule(lockstep, delta_inputs(batch, tokens, h, k, v))

    lockstep.check()


@pytest.mark.parametrize("pieces", [[5, 1, 1], [1, 70, 1, 9]], ids=str)
def test_delta_rule_in_pieces(lockstep: Lockstep, pieces: list[int]) -> None:
    slot = Slot(kind="delta", heads=3, key_dim=24, value_dim=16)
    state = lockstep.new_state([slot], batch=2, capacity=128)

    for tokens in pieces:
        delta_rule(lockstep, delta_inputs(2, tokens, 3, 24, 16), state=state)

    lockstep.check()


def test_delta_rule_with_one_key_for_all_tokens(lockstep: Lockstep) -> None:
    q, k, v, beta, decay = delta_inputs(1, 130, 2, 16, 16)
    k[:] = k[:, :1]

    # Steps of nearly 1 and hardly a decay: the correction of a chunk is the hardest here.
    delta_rule(lockstep, [q, k, v, beta + 8, decay - 8])

    lockstep.check()


def test_delta_rule_that_forgets_now_and_then(lockstep: Lockstep) -> None:
    q, k, v, beta, decay = delta_inputs(1, 130, 2, 16, 16)
    decay = np.where(np.arange(130)[:, None] % 5 == 0, np.float32(40), decay - 8)

    delta_rule(lockstep, [q, k, v, beta, decay], log_rate=3.0)

    lockstep.check()
