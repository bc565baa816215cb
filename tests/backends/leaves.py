"""This file holds random arrays and leaves for tests of single operations."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.ops import Ops
from nanochat.weights import (
    Attention,
    Dense,
    FeedForward,
    Int8,
    Latent,
    Layer,
    Site,
    Stored,
    Ternary,
    Weights,
)
from tests.parity.lockstep import LockstepOps

AnyOps = Ops[Any, Any, Any]
Lockstep = LockstepOps[Any, Any, Any]
Values = NDArray[np.float32]


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
    codes, scales = ternary.quantize_table(normal(rows, columns, seed=3), block=columns)
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
