"""This file holds how residual streams are mixed in MLX: the matrix that the logits of a site stand for."""

import mlx.core as mx

from nanochat.backends.reference.ops import permutation_matrices
from nanochat.config import Mixer

__all__ = ["mixing_matrix"]


def mixing_matrix(logits: mx.array, n: int, mixer: Mixer, iterations: int) -> mx.array | None:
    """The matrix of `Ops.mhc_read`, for logits (M,) or (B, T, M); none for "identity"."""
    if mixer == "identity":
        return None
    if mixer == "lite":
        shares = mx.softmax(logits, axis=-1)
        matrices = mx.array(permutation_matrices(n).reshape(-1, n * n))
        # A product and a sum, since a matrix product may round its factors.
        mixed = (shares[..., None] * matrices).sum(axis=-2)
        return mixed.reshape(*logits.shape[:-1], n, n)
    matrix = mx.exp(logits - logits.max(axis=-1, keepdims=True))
    matrix = matrix.reshape(*logits.shape[:-1], n, n)
    for _ in range(iterations):
        matrix = matrix / matrix.sum(axis=-2, keepdims=True)
        matrix = matrix / matrix.sum(axis=-1, keepdims=True)
    return matrix
