"""Rotations of activations: to the last bit alike, and what a matrix would make of them."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat.proof.tolerances import rms_error
from nanochat.weights import Dense
from tests.backends.leaves import AnyOps, Lockstep, normal, prepared, spread, ternary_leaf

BLOCKS = [4, 8, 16, 32, 128, 512, 1024]


def signs_of(columns: int) -> NDArray[np.float32]:
    return np.random.default_rng(5).choice(np.array([-1, 1], np.float32), columns)


def hadamard(block: int) -> NDArray[np.float64]:
    """By the definition, one entry at a time."""
    index = np.arange(block)
    ones = np.bitwise_count(index[:, None] & index)
    return np.asarray((-1.0) ** ones / np.sqrt(block), np.float64)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("shape", [(1, 1, 1024), (2, 3, 3072)], ids=str)
def test_every_backend_adds_in_the_same_order(
    lockstep: Lockstep, shape: tuple[int, ...], block: int, inverse: bool
) -> None:
    signs: Any = prepared(lockstep, Dense(values=signs_of(shape[-1])))

    lockstep.rotate(lockstep.array(spread(*shape)), signs, block=block, inverse=inverse)

    lockstep.check()


@pytest.mark.parametrize("block", BLOCKS)
def test_a_rotation_is_the_product_with_a_matrix(ops: AnyOps, block: int) -> None:
    x, signs = normal(2, 3, 2048), signs_of(2048)
    leaf: Any = prepared(ops, Dense(values=signs))

    there = ops.numpy(ops.rotate(ops.array(x), leaf, block=block, inverse=False))
    back = ops.numpy(ops.rotate(ops.array(there), leaf, block=block, inverse=True))

    signed = (x.astype(np.float64) * signs).reshape(2, 3, -1, block)
    assert rms_error(there, (signed @ hadamard(block)).reshape(x.shape).astype(np.float32)) < 1e-6
    assert rms_error(back, x) < 1e-6


@pytest.mark.parametrize("rounding", [64, 128, 2048])
@pytest.mark.parametrize("before", ["norm", "swiglu", "nothing"])
def test_what_is_rotated_between_an_operation_and_a_rounding_is_the_same(
    ops: AnyOps, before: str, rounding: int
) -> None:
    x, gain = normal(2, 3, 2048), normal(2048, seed=7)
    linear: Any = prepared(ops, ternary_leaf(33, 2048, block=2048, activation_block=rounding))
    signs: Any = prepared(ops, Dense(values=signs_of(2048)))
    gains: Any = prepared(ops, Dense(values=gain))

    def made() -> Any:
        if before == "norm":
            return ops.rms_norm(ops.array(x), gains, eps=1e-6)
        if before == "swiglu":
            return ops.swiglu(ops.array(x), ops.array(x[::-1].copy()))
        return ops.array(x)

    (together,) = ops.project(ops.rotate(made(), signs, block=512, inverse=False), linear)
    alone = ops.array(ops.numpy(made()))
    apart = ops.numpy(ops.rotate(alone, signs, block=512, inverse=False))
    (expected,) = ops.project(ops.array(apart), linear)

    assert np.array_equal(ops.numpy(together), ops.numpy(expected))
