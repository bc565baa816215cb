"""Attention and Gated DeltaNet alone, on awkward shapes and numbers, with and without a state.

Legend: see `nanochat.ops`.
"""

from typing import Any, get_args

import numpy as np
import pytest

from nanochat.backends.reference.ops import ReferenceOps
from nanochat.errors import ContextLengthError
from nanochat.ops import Slot, Storage
from nanochat.proof.tolerances import TOLERANCES, rms_error
from nanochat.rotary import Rotation
from nanochat.weights import Dense
from tests.backends.leaves import AnyOps, Lockstep, Values, normal, prepared
from tests.parity.rows import flat, state_of_lengths, stepping


def rotation(dims: int, *, theta: float = 10_000.0, magnitude: float = 1.0) -> Rotation:
    frequencies = theta ** (-2 * np.arange(dims // 2) / dims)
    return Rotation(frequencies=tuple(frequencies.tolist()), magnitude=magnitude)


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 7, 3, 10), (1, 129, 2, 64)], ids=str)
def test_rope(lockstep: Lockstep, shape: tuple[int, ...]) -> None:
    lockstep.rope(lockstep.array(normal(*shape)), rotation=rotation(shape[3]), state=None)

    lockstep.check()


@pytest.mark.parametrize("dims", [2, 6, 64])
def test_rope_of_some_features_with_a_magnitude(lockstep: Lockstep, dims: int) -> None:
    x = lockstep.array(normal(2, 7, 3, 70))

    lockstep.rope(x, rotation=rotation(dims, magnitude=1.1386), state=None)

    lockstep.check()


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("lengths", [[5, 5], [0, 3], [9, 30_000]], ids=str)
def test_rope_after_other_tokens(lockstep: Lockstep, lengths: list[int], tokens: int) -> None:
    state = state_of_lengths(lockstep, [], lengths, capacity=40_000)

    with stepping(state, [0, 1], [tokens, tokens]):
        x = lockstep.array(flat(normal(2, tokens, 3, 64)))
        lockstep.rope(x, rotation=rotation(64, theta=500_000.0), state=state)

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
    state = state_of_lengths(lockstep, [slot, slot], [0] * len(lengths), 10)
    for row, length in enumerate(lengths):
        q, keys, values = heads(lockstep, 1, length, 6, 2, 10)
        with stepping(state, [row], [length]):
            lockstep.attention(q, keys, values, state=state, slot=0)
            lockstep.append_kv(values, keys, state=state, slot=1)
    q, keys, values = heads(lockstep, 1, len(lengths) * tokens, 6, 2, 10)

    with stepping(state, range(len(lengths)), [tokens] * len(lengths)):
        lockstep.attention(q, keys, values, state=state, slot=0)
        lockstep.attention(q, keys, values, state=state, slot=1)

    lockstep.check()


def test_a_state_takes_as_many_tokens_as_its_capacity_and_no_more(ops: AnyOps) -> None:
    state = state_of_lengths(ops, [Slot(kind="attention", heads=1, key_dim=2)], [0], capacity=3)
    three = ops.array(normal(1, 3, 1, 2))
    with stepping(state, [0], [3]):
        ops.attention(three, three, three, state=state, slot=0)

    with pytest.raises(ContextLengthError, match="3 tokens seen and 1 more"):
        state.begin([0], [1])


every_storage = pytest.mark.parametrize("storage", get_args(Storage))


@every_storage
@pytest.mark.parametrize(
    ("h", "g", "k", "pieces"),
    [
        (1, 1, 2, [1, 1, 1]),
        (6, 2, 10, [5, 1, 3]),
        (7, 1, 33, [31, 1, 1, 2]),
        (10, 2, 64, [65, 1]),
        (9, 1, 16, [1020, 3, 1, 5]),
        (3, 3, 32, [70, 1200, 1]),
        (6, 2, 256, [70, 1, 3]),
    ],
    ids=str,
)
def test_attention_to_what_is_kept(
    lockstep: Lockstep, storage: Any, h: int, g: int, k: int, pieces: list[int]
) -> None:
    slot = Slot(kind="attention", heads=g, key_dim=k, storage=storage)
    state = state_of_lengths(lockstep, [slot], [0, 0], capacity=sum(pieces))

    for tokens in pieces:
        q, keys, values = heads(lockstep, 1, 2 * tokens, h, g, k)
        with stepping(state, [0, 1], [tokens, tokens]):
            lockstep.attention(q, keys, values, state=state, slot=0)

    lockstep.check()


@every_storage
def test_a_batch_of_different_lengths_attends_to_what_is_kept(
    lockstep: Lockstep, storage: Any
) -> None:
    slot = Slot(kind="attention", heads=2, key_dim=10, storage=storage)
    state = state_of_lengths(lockstep, [slot, slot], [0, 0, 0], capacity=300)
    for row, length in enumerate([1, 140, 3]):
        _, keys, values = heads(lockstep, 1, length, 2, 2, 10)
        with stepping(state, [row], [length]):
            lockstep.append_kv(values, keys, state=state, slot=0)
            lockstep.append_kv(keys, values, state=state, slot=1)
    q, keys, values = heads(lockstep, 1, 6, 6, 2, 10)

    with stepping(state, [0, 1, 2], [2, 2, 2]):
        lockstep.attention(q, keys, values, state=state, slot=0)
        lockstep.attention(q, keys, values, state=state, slot=1)

    lockstep.check()


@every_storage
def test_rows_attend_to_what_is_kept_however_many_tokens_each_gets(
    lockstep: Lockstep, storage: Any
) -> None:
    slot = Slot(kind="attention", heads=2, key_dim=10, storage=storage)
    state = state_of_lengths(lockstep, [slot], [0, 0, 0], capacity=300)

    for counts in ([130, 1, 7], [1, 3, 1], [2, 140, 140], [1, 1, 1]):
        q, keys, values = heads(lockstep, 1, sum(counts), 6, 2, 10)
        # The pages of a row do not lie in order then.
        with stepping(state, [2, 0, 1], counts):
            lockstep.attention(q, keys, values, state=state, slot=0)

    lockstep.check()


@every_storage
def test_a_fork_attends_to_what_its_row_kept_and_not_to_what_that_keeps_later(
    lockstep: Lockstep, storage: Any
) -> None:
    slot = Slot(kind="attention", heads=2, key_dim=10, storage=storage)
    state = lockstep.new_state([slot], rows=2, capacity=300)
    state.admit()
    q, keys, values = heads(lockstep, 1, 140, 6, 2, 10)
    with stepping(state, [0], [140]):
        lockstep.attention(q, keys, values, state=state, slot=0)
    state.fork(0)

    for rows, seed in (([0], 1), ([1], 2), ([0, 1], 3)):
        shapes = [(1, 5 * len(rows), n, 10) for n in (6, 2, 2)]
        q, keys, values = (lockstep.array(normal(*shape, seed=seed)) for shape in shapes)
        with stepping(state, rows, [5] * len(rows)):
            lockstep.attention(q, keys, values, state=state, slot=0)

    lockstep.check()


@every_storage
def test_prompts_read_at_once_and_step_by_step_attend_alike(ops: AnyOps, storage: Any) -> None:
    slot = Slot(kind="attention", heads=2, key_dim=24, storage=storage)
    q, k, v = (normal(2, 9, n, 24, seed=n) for n in (4, 2, 2))

    def attended(state: Any, part: slice) -> Values:
        given = [ops.array(flat(x[:, part])) for x in (q, k, v)]
        with stepping(state, [0, 1], [given[0].shape[1] // 2] * 2):
            y = ops.numpy(ops.attention(*given, state=state, slot=0))
        return y.reshape(2, -1, 2, 24)

    state = state_of_lengths(ops, [slot], [0, 0], capacity=9)
    steps = [attended(state, slice(t, t + 1)) for t in range(9)]

    whole = attended(state_of_lengths(ops, [slot], [0, 0], capacity=9), slice(9))

    error = rms_error(whole, np.concatenate(steps, axis=1))
    assert error <= TOLERANCES["attention"].limit


@every_storage
@pytest.mark.parametrize("width", [1, 31, 64, 97])
def test_what_is_kept_is_rounded_alike_to_the_bit(ops: AnyOps, storage: Any, width: int) -> None:
    sizes = np.array([1, 0, 1e-40, 1e-37, 3e-5, 6e4, 1e30], np.float32)[:, None, None]
    if storage == "float16":
        sizes = np.minimum(sizes, np.float32(1e4))
    v = normal(1, 70, 2, width) * np.tile(sizes, (10, 1, 1))
    slot = Slot(kind="attention", heads=2, key_dim=width, storage=storage)

    def given_back(ops: AnyOps) -> Values:
        state = state_of_lengths(ops, [slot], [0] * 70, capacity=1)
        ones = ops.array(np.ones_like(v))
        with stepping(state, range(70), [1] * 70):
            # All of the weight is on a row's only value.
            return ops.numpy(ops.attention(ones, ones, ops.array(v), state=state, slot=0))

    np.testing.assert_array_equal(given_back(ops), given_back(ReferenceOps()))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@every_storage
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["key", "value"])
def test_what_is_not_finite_reaches_every_head_that_attends_to_it(
    ops: AnyOps, storage: Any, bad: float, place: str
) -> None:
    slot = Slot(kind="attention", heads=2, key_dim=6, storage=storage)
    state = state_of_lengths(ops, [slot], [0], capacity=4)
    q, k, v = normal(1, 3, 4, 6), normal(1, 3, 2, 6, seed=1), normal(1, 3, 2, 6, seed=2)
    # A query along the bad feature, so that minus infinity there makes the score plus infinity.
    q[:, 2, :2, 3] = np.sign(bad) if np.isinf(bad) else 1
    (k if place == "key" else v)[0, 2, 0, 3] = bad

    for t in range(3):
        part = [ops.array(x[:, t : t + 1]) for x in (q, k, v)]
        with stepping(state, [0], [1]):
            y = ops.numpy(ops.attention(*part, state=state, slot=0))[0, 0]

    assert not np.isfinite(y[:2, 3]).any()
    assert np.isfinite(y[2:]).all()


@every_storage
def test_magnitudes_of_every_size_are_kept(lockstep: Lockstep, storage: Any) -> None:
    slot = Slot(kind="attention", heads=7, key_dim=8, storage=storage)
    state = state_of_lengths(lockstep, [slot], [0], capacity=2)
    sizes = np.array([[0], [1e-45], [1e-38], [6e-8], [1], [60_000], [3e4]], np.float32)
    k, v = (
        normal(1, 2, 7, 8) * np.minimum(sizes, np.float32(100)),
        normal(1, 2, 7, 8, seed=1) * (sizes / np.float32(10)),
    )

    keys, values = lockstep.array(k), lockstep.array(v)
    with stepping(state, [0], [2]):
        lockstep.attention(keys, keys, values, state=state, slot=0)

    lockstep.check()


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("pieces", [[1], [2], [7], [5, 1, 1], [1, 6]], ids=str)
def test_short_conv(lockstep: Lockstep, taps: int, pieces: list[int]) -> None:
    kernel = prepared(lockstep, Dense(values=normal(13, taps, seed=5)))
    slot = Slot(kind="conv", taps=taps, features=13)
    state = state_of_lengths(lockstep, [slot], [0, 0], capacity=8)

    for tokens in pieces:
        x = normal(2, tokens, 13, seed=tokens)
        lockstep.short_conv(lockstep.array(x), kernel, state=None, slot=0)
        with stepping(state, [0, 1], [tokens, tokens]):
            lockstep.short_conv(lockstep.array(flat(x)), kernel, state=state, slot=0)

    lockstep.check()


@pytest.mark.parametrize("taps", [1, 2, 4])
def test_short_conv_of_rows_that_get_unequally_many_tokens(lockstep: Lockstep, taps: int) -> None:
    kernel = prepared(lockstep, Dense(values=normal(13, taps, seed=5)))
    slot = Slot(kind="conv", taps=taps, features=13)
    state = state_of_lengths(lockstep, [slot], [0, 0, 0], capacity=20)

    for rows, counts in (([0, 1, 2], [1, 5, 2]), ([2, 0], [2, 1]), ([1, 2, 0], [1, 7, 1])):
        x = lockstep.array(normal(1, sum(counts), 13, seed=counts[0]))
        with stepping(state, rows, counts):
            lockstep.short_conv(x, kernel, state=state, slot=0)

    lockstep.check()


def delta_rule(
    lockstep: Lockstep,
    x: list[Values],
    *,
    state: Any = None,
    log_rate: float = 0.0,
) -> None:
    num_heads = x[2].shape[2]
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


def delta_inputs(
    batch: int, tokens: int, h: int, k: int, v: int, *, key_heads: int = 0
) -> list[Values]:
    g = key_heads or h
    shapes = [(g, k), (g, k), (h, v), (h,), (h,)]
    return [normal(batch, tokens, *shape, seed=i) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize(
    ("batch", "tokens", "h", "k", "v"),
    [(1, 1, 1, 4, 4), (2, 7, 3, 24, 64), (1, 65, 2, 16, 8), (1, 131, 1, 32, 32)],
    ids=str,
)
def test_delta_rule(lockstep: Lockstep, batch: int, tokens: int, h: int, k: int, v: int) -> None:
    delta_rule(lockstep, delta_inputs(batch, tokens, h, k, v))

    lockstep.check()


@pytest.mark.parametrize("tokens", [1, 7, 65])
def test_delta_rule_of_fewer_key_heads_than_value_heads(lockstep: Lockstep, tokens: int) -> None:
    delta_rule(lockstep, delta_inputs(2, tokens, 6, 24, 16, key_heads=2))

    lockstep.check()


def test_value_heads_side_by_side_share_a_key_head(ops: AnyOps) -> None:
    q, k, *others = delta_inputs(1, 7, 6, 24, 16, key_heads=2)
    leaves = [prepared(ops, Dense(values=normal(6, seed=seed))) for seed in (5, 6)]

    def answered(q: Values, k: Values) -> Values:
        given = [ops.array(x) for x in (q, k, *others)]
        return ops.numpy(ops.delta_rule(*given, *leaves, state=None, slot=0))

    shared = answered(q, k)

    alone = answered(*(x[:, :, [0, 0, 0, 1, 1, 1]] for x in (q, k)))
    assert rms_error(shared, alone) <= TOLERANCES["delta_rule"].limit


@pytest.mark.parametrize(("h", "key_heads"), [(3, 3), (6, 2)])
@pytest.mark.parametrize("pieces", [[5, 1, 1], [1, 70, 1, 9]], ids=str)
def test_delta_rule_in_pieces(
    lockstep: Lockstep, pieces: list[int], h: int, key_heads: int
) -> None:
    slot = Slot(kind="delta", heads=h, key_dim=24, value_dim=16)
    state = state_of_lengths(lockstep, [slot], [0, 0], capacity=128)

    for tokens in pieces:
        x = delta_inputs(1, 2 * tokens, h, 24, 16, key_heads=key_heads)
        with stepping(state, [0, 1], [tokens, tokens]):
            delta_rule(lockstep, x, state=state)

    lockstep.check()


def test_delta_rule_of_rows_that_get_unequally_many_tokens(lockstep: Lockstep) -> None:
    slot = Slot(kind="delta", heads=3, key_dim=24, value_dim=16)
    state = state_of_lengths(lockstep, [slot], [0, 0, 0], capacity=128)

    for rows, counts in (([0, 1, 2], [1, 70, 2]), ([2, 0], [9, 1]), ([1, 2, 0], [1, 1, 7])):
        with stepping(state, rows, counts):
            delta_rule(lockstep, delta_inputs(1, sum(counts), 3, 24, 16), state=state)

    lockstep.check()


def test_a_fork_remembers_what_its_row_did_and_not_what_that_learns_later(
    lockstep: Lockstep,
) -> None:
    slot = Slot(kind="delta", heads=3, key_dim=24, value_dim=16)
    state = lockstep.new_state([slot], rows=2, capacity=128)
    state.admit()
    with stepping(state, [0], [5]):
        delta_rule(lockstep, delta_inputs(1, 5, 3, 24, 16), state=state)
    state.fork(0)

    for rows in ([0], [0, 1], [1]):
        with stepping(state, rows, [2] * len(rows)):
            delta_rule(lockstep, delta_inputs(1, 2 * len(rows), 3, 24, 16), state=state)

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
