"""Every operation alone, on awkward shapes and numbers, with equal inputs on both backends.

Legend: see `nanochat.ops`; N tokens of a batch of one sequence.
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.lockstep import LockstepOps
from bench.tolerances import TOLERANCES, rms_error
from nanochat import ternary
from nanochat.config import Mixer
from nanochat.errors import ContextLengthError
from nanochat.ops import Ops, Slot
from nanochat.weights import (
    Attention,
    Dense,
    FeedForward,
    Int8,
    Latent,
    Layer,
    Mhc,
    Site,
    Stored,
    Ternary,
    Weights,
)

AnyOps = Ops[Any, Any, Any]
Lockstep = LockstepOps[Any, Any, Any]
Values = NDArray[np.float32]

THETA = 10_000.0


@pytest.fixture
def lockstep(other: AnyOps) -> Lockstep:
    return LockstepOps(other)


def normal(*shape: int, seed: int = 0) -> Values:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def spread(*shape: int) -> Values:
    """Numbers from 1e-4 to 1e4 in magnitude, and a stretch of zeros."""
    generator = np.random.default_rng(0)
    x = normal(*shape) * 10 ** generator.uniform(-4, 4, (*shape[:-1], 1)).astype(np.float32)
    x[..., : shape[-1] // 2] *= generator.integers(0, 2, (*shape[:-1], 1))
    return x.astype(np.float32)


def ternary_leaf(rows: int, columns: int, *, block: int, activation_block: int) -> Ternary:
    generator = np.random.default_rng(2)
    codes = generator.integers(-1, 2, (rows, columns)).astype(np.int8)
    scales = generator.uniform(0.01, 2, (rows, columns // block)).astype(np.float16)
    return Ternary(
        packed=ternary.pack(codes),
        scales=scales,
        columns=columns,
        activation_block=activation_block,
    )


def int8_leaf(rows: int, columns: int, *, activation_block: int) -> Int8:
    codes, scales = ternary.quantize_rows(normal(rows, columns, seed=3))
    return Int8(codes=codes, scales=scales, activation_block=activation_block)


def prepared(ops: AnyOps, leaf: Stored) -> Any:
    """The leaf as a backend prepares it in a place where the model has such leaves."""
    kind = leaf.kind if isinstance(leaf, Latent) else type(leaf).__name__.lower()
    gain = Dense(values=np.ones(4, np.float32))
    small = int8_leaf(4, 4, activation_block=4)
    if kind != "ternary":
        weights = Weights(
            embedding=leaf if kind == "int8" else small,
            layers=(),
            norm=gain if kind == "int8" else leaf,
            head=None,
            exit=None,
            ahead=(),
        )
        tree = ops.prepare(weights)
        return tree.embedding if kind == "int8" else tree.norm
    site = Site[Stored](norm=gain, mhc=None)
    mixer = Attention(
        q=leaf, k=leaf, v=leaf, o=leaf, gate=None, q_norm=None, k_norm=None, sub_norm=None
    )
    network = FeedForward(gate=None, up=leaf, down=leaf, sub_norm=None)
    layer = Layer(mixer_site=site, mixer=mixer, network_site=site, network=network)
    tree = ops.prepare(
        Weights(embedding=small, layers=(layer,), norm=gain, head=None, exit=None, ahead=())
    )
    place = tree.layers[0].network
    assert isinstance(place, FeedForward)
    return place.up


# The border.


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


# Tables, norms, linears.


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
        Int8(codes=table, scales=scales[:, 0], activation_block=128),
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

    lockstep.last(x)
    lockstep.merge_heads(lockstep.split_heads(x, 3))
    lockstep.parameter(prepared(lockstep, Dense(values=normal(7))))

    lockstep.check()


# Attention.


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


# Gated DeltaNet.


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


def test_delta_rule_that_forgets_now_and_then(
    lockstep: Lockstep, request: pytest.FixtureRequest
) -> None:
    if type(lockstep.other).__name__ == "TorchOps":
        reason = "differences of one running sum of logarithms cancel: error 2e-4"
        request.applymarker(pytest.mark.xfail(reason=reason))
    q, k, v, beta, decay = delta_inputs(1, 130, 2, 16, 16)
    decay = np.where(np.arange(130)[:, None] % 5 == 0, np.float32(40), decay - 8)

    delta_rule(lockstep, [q, k, v, beta, decay], log_rate=3.0)

    lockstep.check()


# Networks.


@pytest.mark.parametrize("features", [1, 7, 129])
def test_activations(lockstep: Lockstep, features: int) -> None:
    x = lockstep.array(normal(2, 3, features) * 4)
    y = lockstep.array(normal(2, 3, features, seed=1))

    lockstep.swiglu(x, y)
    lockstep.relu2(x, None)
    lockstep.relu2(x, y)
    lockstep.gate(y, x)
    lockstep.survival(None, x)
    lockstep.survival(y, x)

    lockstep.check()


def test_activations_do_not_overflow(lockstep: Lockstep) -> None:
    x = lockstep.array(np.array([[[-1e4, -100, -0.0, 0, 100, 1e4]]], np.float32))

    lockstep.swiglu(x, x)
    lockstep.gate(x, x)
    lockstep.survival(None, x)

    lockstep.check()


@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k"), [(1, 8, 2), (7, 3, 1), (13, 4, 4), (65, 8, 2)], ids=str
)
def test_experts(lockstep: Lockstep, tokens: int, num_experts: int, top_k: int) -> None:
    leaf = prepared(lockstep, ternary_leaf(128, 128, block=128, activation_block=128))
    gains = [prepared(lockstep, Dense(values=normal(128, seed=e))) for e in range(num_experts)]
    networks = [
        lambda rows, gain=gain: lockstep.rms_norm(lockstep.project(rows, leaf)[0], gain, eps=1e-6)
        for gain in gains
    ]
    x = lockstep.array(normal(1, tokens, 128))

    lockstep.experts(x, lockstep.array(normal(1, tokens, num_experts)), networks, top_k=top_k)

    lockstep.check()


def test_equal_experts_are_taken_in_their_order(ops: AnyOps) -> None:
    networks = [lambda rows, e=e: ops.add(rows, ops.array(np.full(4, e, "f"))) for e in range(5)]
    logits = np.array([[[0, 0, 0, 0, 0], [0, 1, 0, 1, 1]]], np.float32)

    y = ops.experts(
        ops.array(np.zeros((1, 2, 4), np.float32)), ops.array(logits), networks, top_k=2
    )

    # The means of experts 0 and 1, and of experts 1 and 3.
    np.testing.assert_allclose(ops.numpy(y)[0, :, 0], [0.5, 2], rtol=1e-6)


# mHC.


def mhc_site(n: int, width: int, mixer: Mixer, *, dynamic: bool, spread: float) -> Mhc[Stored]:
    mix = {"lite": {2: 2, 4: 24}[n], "sinkhorn": n * n, "identity": 0}[mixer]

    def leaf(*shape: int) -> Dense:
        return Dense(values=normal(*shape, seed=sum(shape)) * np.float32(spread))

    return Mhc(
        read=leaf(n),
        write=leaf(n),
        mix=leaf(mix) if mix else None,
        projection=leaf(2 * n + mix, n * width) if dynamic else None,
        gates=leaf(3) if dynamic else None,
    )


def prepared_site(ops: AnyOps, site: Mhc[Stored]) -> Mhc[Any]:
    leaves = {
        name: None if leaf is None else prepared(ops, leaf) for name, leaf in vars(site).items()
    }
    return Mhc(**leaves)


@pytest.mark.parametrize("mixer", ["lite", "sinkhorn", "identity"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize(("tokens", "width"), [(1, 1), (7, 129)], ids=str)
def test_mhc(
    lockstep: Lockstep, mixer: Mixer, n: int, tokens: int, width: int, dynamic: bool
) -> None:
    site = prepared_site(lockstep, mhc_site(n, width, mixer, dynamic=dynamic, spread=0.3))
    streams = lockstep.array(normal(2, tokens, n, width))

    u, post, mix = lockstep.mhc_read(streams, site, mixer=mixer, iterations=20, eps=1e-6)
    lockstep.mhc_write(streams, u, post, mix)
    lockstep.mhc_close(streams)
    lockstep.mhc_open(u, n)

    lockstep.check()


@pytest.mark.parametrize("mixer", ["lite", "sinkhorn"])
def test_mhc_with_large_logits(lockstep: Lockstep, mixer: Mixer) -> None:
    site = prepared_site(lockstep, mhc_site(4, 8, mixer, dynamic=False, spread=30))

    lockstep.mhc_read(
        lockstep.array(normal(1, 3, 4, 8)), site, mixer=mixer, iterations=20, eps=1e-6
    )

    lockstep.check()


def test_prepared_sites_do_not_share_coefficients(ops: AnyOps) -> None:
    streams = ops.array(normal(1, 3, 2, 8))
    written = []
    for spread in (0.0, 5.0):
        site = prepared_site(ops, mhc_site(2, 8, "lite", dynamic=False, spread=spread))
        _, post, _ = ops.mhc_read(streams, site, mixer="lite", iterations=20, eps=1e-6)
        written.append(ops.numpy(post))

    assert rms_error(written[1], written[0]) > TOLERANCES["mhc_read"].limit


# Adaptive depth.


def test_masks(lockstep: Lockstep) -> None:
    x = lockstep.array(np.array([[[0.25], [0.5], [0.75]]], np.float32))
    yes, no = (lockstep.array(normal(1, 3, 5, seed=seed)) for seed in range(2))
    deep_yes, deep_no = (lockstep.array(normal(1, 3, 4, 5, seed=seed)) for seed in range(2))

    mask = lockstep.at_most(x, 0.5)
    lockstep.select(mask, yes, no)
    lockstep.select(mask, deep_yes, deep_no)

    assert [lockstep.every(lockstep.at_most(x, limit)) for limit in (0.2, 0.5, 0.75)] == [
        False,
        False,
        True,
    ]
    lockstep.check()
