"""The border, tables, norms and linears alone, on awkward shapes and numbers."""

from typing import Any

import numpy as np
import pytest

from nanochat import ternary
from nanochat.weights import Dense, Int8, Latent, Stored, Ternary
from tests.backends.leaves import (
    AnyOps,
    Lockstep,
    int8_leaf,
    normal,
    prepared,
    spread,
    ternary_leaf,
)
from tests.parity.rows import state_of_lengths, stepping


def test_an_array_comes_out_as_it_went_in(ops: AnyOps) -> None:
    values = normal(2, 3, 5)

    found = ops.numpy(ops.array(values))

    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values)


def test_an_array_is_a_copy(ops: AnyOps) -> None:
    values = normal(2, 3)

    array = ops.array(values)
    values[:] = 0

    assert ops.numpy(array).all()


@pytest.mark.parametrize("columns", [4, 128, 132])
@pytest.mark.parametrize("rows", [1, 67])
def test_embed(lockstep: Lockstep, rows: int, columns: int) -> None:
    ids = lockstep.tokens(np.array([[0, rows - 1, 0], [rows // 2, 0, 0]]))

    lockstep.embed(ids, prepared(lockstep, int8_leaf(rows, columns, activation_block=columns)))
    lockstep.embed(ids, prepared(lockstep, Dense(values=normal(rows, columns))))

    lockstep.check()


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 131), (1, 3, 2, 64)], ids=str)
def test_rms_norm(lockstep: Lockstep, shape: tuple[int, ...]) -> None:
    gain = prepared(lockstep, Dense(values=normal(shape[-1], seed=1)))

    lockstep.rms_norm(lockstep.array(spread(*shape)), gain, eps=1e-6)
    lockstep.rms_norm(lockstep.array(np.zeros(shape, np.float32)), gain, eps=1e-6)

    lockstep.check()


@pytest.mark.parametrize("tokens", [1, 3, 17, 65])
@pytest.mark.parametrize(
    ("rows", "columns", "block", "activation_block"),
    [
        (1, 128, 128, 128),
        (7, 256, 128, 128),
        (129, 512, 256, 128),
        (65, 768, 256, 256),
        (31, 132, 132, 132),
        (3, 4, 4, 4),
        (33, 384, 384, 128),
        (64, 5120, 256, 128),
    ],
    ids=str,
)
def test_project_ternary(
    lockstep: Lockstep, tokens: int, rows: int, columns: int, block: int, activation_block: int
) -> None:
    leaf = ternary_leaf(rows, columns, block=block, activation_block=activation_block)

    lockstep.project(lockstep.array(normal(1, tokens, columns)), prepared(lockstep, leaf))

    lockstep.check()


@pytest.mark.parametrize("tokens", [1, 17])
@pytest.mark.parametrize(
    ("rows", "columns", "activation_block"),
    [(1, 128, 128), (67, 256, 128), (129, 512, 256), (31, 132, 132)],
    ids=str,
)
def test_project_8_bits(
    lockstep: Lockstep, tokens: int, rows: int, columns: int, activation_block: int
) -> None:
    leaf = int8_leaf(rows, columns, activation_block=activation_block)

    lockstep.project(lockstep.array(normal(1, tokens, columns)), prepared(lockstep, leaf))

    lockstep.check()


@pytest.mark.parametrize("shape", [(1, 1, 4), (2, 5, 131), (1, 17, 256)], ids=str)
def test_project_dense(lockstep: Lockstep, shape: tuple[int, ...]) -> None:
    leaf = Dense(values=normal(64, shape[-1], seed=3))

    lockstep.project(lockstep.array(normal(*shape)), prepared(lockstep, leaf))

    lockstep.check()


@pytest.mark.parametrize("kind", ["ternary", "int8"])
def test_project_latent(lockstep: Lockstep, kind: Any) -> None:
    leaf = Latent(values=normal(65, 256), kind=kind, weight_block=256, activation_block=128)

    lockstep.project(lockstep.array(normal(2, 5, 256, seed=4)), prepared(lockstep, leaf))

    lockstep.check()


def test_linears_of_one_input_may_differ_in_kind(lockstep: Lockstep) -> None:
    leaves: list[Stored] = [
        ternary_leaf(65, 256, block=256, activation_block=128),
        ternary_leaf(3, 256, block=128, activation_block=128),
        int8_leaf(7, 256, activation_block=128),
        Dense(values=normal(64, 256)),
    ]

    results = lockstep.project(
        lockstep.array(normal(2, 3, 256)), *(prepared(lockstep, leaf) for leaf in leaves)
    )

    assert [lockstep.numpy(y).shape for y in results] == [
        (2, 3, 65),
        (2, 3, 3),
        (2, 3, 7),
        (2, 3, 64),
    ]
    lockstep.check()


def test_project_numbers_of_all_magnitudes(lockstep: Lockstep) -> None:
    leaf = prepared(lockstep, ternary_leaf(65, 512, block=256, activation_block=128))

    for token in spread(1, 9, 512)[0]:
        lockstep.project(lockstep.array(token[None, None]), leaf)

    lockstep.check()


@pytest.mark.parametrize("tokens", [1, 2, 33])
@pytest.mark.parametrize("columns", [128, 1024])
def test_integer_sums_are_exact(ops: AnyOps, tokens: int, columns: int) -> None:
    generator = np.random.default_rng(0)
    q = generator.integers(-127, 128, (tokens, columns))
    # Every block has the scale 1, and so do the weights: the result is the sum itself.
    q[:, ::128] = 127
    codes = generator.integers(-1, 2, (65, columns)).astype(np.int8)
    table = generator.integers(-127, 128, (65, columns)).astype(np.int8)
    scales = np.ones((65, 1), np.float16)
    leaves: list[Stored] = [
        Ternary(packed=ternary.pack(codes), scales=scales, columns=columns, activation_block=128),
        Int8(codes=table, scales=scales, activation_block=128),
    ]

    results = ops.project(
        ops.array(q[None].astype(np.float32)), *(prepared(ops, leaf) for leaf in leaves)
    )

    # float32 holds these sums: 127 * 127 * 1024 < 2**24.
    np.testing.assert_array_equal(ops.numpy(results[0])[0], q @ codes.T.astype(np.int64))
    np.testing.assert_array_equal(ops.numpy(results[1])[0], q @ table.T.astype(np.int64))


def test_activations_round_half_to_even(ops: AnyOps) -> None:
    x = np.zeros(128, np.float32)
    x[:8] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, 125.5, 126.5]
    identity = np.eye(128, dtype=np.int8)
    scales = np.ones((128, 1), np.float16)
    leaf = Ternary(packed=ternary.pack(identity), scales=scales, columns=128, activation_block=128)

    (y,) = ops.project(ops.array(x[None, None]), prepared(ops, leaf))

    assert ops.numpy(y)[0, 0, :8].tolist() == [127, 0, 2, 2, 0, -2, 126, 126]


@pytest.mark.parametrize("value", [0.0, 1e-42], ids=["zero", "subnormal"])
def test_a_block_of_nothing_gives_zero_not_nan(ops: AnyOps, value: float) -> None:
    leaf = ternary_leaf(5, 256, block=256, activation_block=128)

    (y,) = ops.project(ops.array(np.full((1, 2, 256), value, np.float32)), prepared(ops, leaf))

    assert not ops.numpy(y).any()


@pytest.mark.parametrize(("x", "y"), [((2, 3, 5), (2, 3, 5)), ((2, 3, 1), (1,))], ids=str)
def test_add(lockstep: Lockstep, x: tuple[int, ...], y: tuple[int, ...]) -> None:
    lockstep.add(lockstep.array(normal(*x)), lockstep.array(normal(*y, seed=1)))

    lockstep.check()


def test_moves_are_exact(lockstep: Lockstep) -> None:
    x = lockstep.array(normal(2, 3, 12))

    lockstep.last(x, state=None)
    lockstep.merge_heads(lockstep.split_heads(x, 3))
    lockstep.parameter(prepared(lockstep, Dense(values=normal(7))))

    lockstep.check()


@pytest.mark.parametrize("counts", [[1, 1, 1], [2, 1, 5], [4]], ids=str)
def test_the_last_tokens_of_rows_are_exact(lockstep: Lockstep, counts: list[int]) -> None:
    x = lockstep.array(normal(1, sum(counts), 12))
    state = state_of_lengths(lockstep, [], [0] * len(counts), capacity=5)

    with stepping(state, range(len(counts)), counts):
        last = lockstep.last(x, state=state)

    lockstep.check()
    assert lockstep.numpy(last).shape == (1, len(counts), 12)
