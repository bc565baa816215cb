"""Activations, experts, mHC and masks alone, on awkward shapes and numbers."""

from typing import Any

import numpy as np
import pytest

from nanochat.config import Mixer
from nanochat.proof.tolerances import TOLERANCES, rms_error
from nanochat.weights import Dense, FeedForward, Mhc, Stored
from tests.backends.leaves import AnyOps, Lockstep, normal, prepared, ternary_leaf


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
    networks = [FeedForward(gate=leaf, up=leaf, down=leaf, sub_norm=gain) for gain in gains]
    x = lockstep.array(normal(1, tokens, 128))
    logits = lockstep.array(normal(1, tokens, num_experts))

    lockstep.experts(x, logits, networks, top_k=top_k, activation="swiglu", eps=1e-6)

    lockstep.check()


def test_equal_experts_are_taken_in_their_order(ops: AnyOps) -> None:
    leaf = prepared(ops, ternary_leaf(128, 128, block=128, activation_block=128))
    gains = [prepared(ops, Dense(values=np.full(128, 1 + e, np.float32))) for e in range(5)]
    networks = [FeedForward(gate=None, up=leaf, down=leaf, sub_norm=gain) for gain in gains]
    logits = np.array([[[0, 0, 0, 0, 0], [0, 1, 0, 1, 1]]], np.float32)
    x = ops.array(np.repeat(normal(1, 1, 128), 2, axis=1))

    y = ops.numpy(
        ops.experts(x, ops.array(logits), networks, top_k=2, activation="relu2", eps=1e-6)
    )

    # The means of experts 0 and 1, whose gains are 1 and 2, and of experts 1 and 3, whose gains are 2 and 4.
    np.testing.assert_allclose(y[0, 1], 2 * y[0, 0], rtol=1e-5)


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


def run_loop(ops: AnyOps, survivals: list[list[float]], *, threshold: float) -> tuple[Any, int]:
    """Add 1 to zeros in up to as many steps as there are survivals and one, and how many were left out."""
    given = iter(survivals)
    one, left_out = ops.array(np.ones((1, 3, 5), np.float32)), 0

    def step(x: Any, left: Any) -> Any:
        if left is not None:
            deep = [ops.array(normal(1, 3, 4, 5, seed=seed)) for seed in range(2)]
            ops.select(left, *deep)
        return ops.add(x, one)

    def survive(_x: Any, _survival: Any) -> Any:
        return ops.array(np.array([next(given)], np.float32)[:, :, None])

    def finish(number: int) -> None:
        nonlocal left_out
        left_out = number

    zeros = ops.array(np.zeros((1, 3, 5), np.float32))
    steps = len(survivals) + 1
    return ops.loop(zeros, step, survive, finish, steps=steps, threshold=threshold), left_out


def test_a_token_that_left_the_loop_stays_what_it_was(lockstep: Lockstep) -> None:
    y, left_out = run_loop(lockstep, [[0.25, 0.6, 0.9], [0.2, 0.5, 0.8]], threshold=0.5)

    np.testing.assert_array_equal(lockstep.numpy(y)[0, :, 0], [1, 2, 3])
    assert left_out == 0
    lockstep.check()


def test_a_loop_ends_when_all_tokens_have_left(lockstep: Lockstep) -> None:
    y, left_out = run_loop(lockstep, [[0.2, 0.6, 0.3], [0.2, 0.5, 0.1], [0.9] * 3], threshold=0.5)

    np.testing.assert_array_equal(lockstep.numpy(y)[0, :, 0], [1, 2, 1])
    assert left_out == 2
    lockstep.check()
