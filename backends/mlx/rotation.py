"""This file holds rotations in MLX: signed Walsh-Hadamard transforms, whose sums are in the order that is specified."""

import mlx.core as mx
import numpy as np

__all__ = ["turned"]


def turned(x: mx.array, signs: mx.array, *, block: int, inverse: bool) -> mx.array:
    """See :meth:`nanochat.ops.Ops.rotate`; MLX's own transform adds in another order."""
    y = x if inverse else x * signs
    h = 1
    while h < block:
        pairs = y.reshape(*x.shape[:-1], -1, 2, h)
        lower, upper = pairs[..., 0, :], pairs[..., 1, :]
        y = mx.stack([lower + upper, lower - upper], axis=-2).reshape(x.shape)
        h *= 2
    y = y * float(np.float32(block**-0.5))
    return y * signs if inverse else y
