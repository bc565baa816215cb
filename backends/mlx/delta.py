"""This file holds the gated delta rule in MLX: one step at a time, and in chunks for prompts.

Legend: B sequences, T tokens, H heads, K key features, V value features, N chunks of L tokens. Queries and keys are
already scaled and of unit length; `log_keep` is the logarithm of the decay, at most zero.
"""

import mlx.core as mx
import numpy as np

__all__ = ["chunked_delta_rule", "stepwise_delta_rule"]

_CHUNK = 64


def stepwise_delta_rule(
    q: mx.array, k: mx.array, v: mx.array, step: mx.array, log_keep: mx.array, memory: mx.array
) -> tuple[mx.array, mx.array]:
    """One token after another; q, k (B, H, T, K), v (B, H, T, V), step (B, H, T, 1), log_keep (B, H, T)."""
    keep = mx.exp(log_keep)[..., None, None]
    out = []
    for t in range(q.shape[2]):
        now = slice(t, t + 1)
        memory = memory * keep[:, :, t]
        error = (v[:, :, now] - k[:, :, now] @ memory) * step[:, :, now]
        memory = memory + k[:, :, now].swapaxes(2, 3) * error
        out.append(q[:, :, now] @ memory)
    return mx.concatenate(out, axis=2), memory


def chunked_delta_rule(
    q: mx.array, k: mx.array, v: mx.array, step: mx.array, log_keep: mx.array, memory: mx.array
) -> tuple[mx.array, mx.array]:
    """Chunks of tokens at once, as products of matrices; arguments as in `stepwise_delta_rule`.

    With D[i, j] the product of the decays after j up to i, and c[i] that from the chunk's start, the corrections U that
    a chunk writes solve ``(1 + tril(b k k^T * D, -1)) U = b (v - c k S)``, where S is the memory before the chunk.

    References
    ----------
    .. [1] S. Yang et al., "Gated Delta Networks", ICLR 2025, section 3.3. arXiv:2412.06464
    """
    length = q.shape[2]
    size = min(_CHUNK, 1 << (length - 1).bit_length())
    # A token with key 0, step 0 and decay 1 leaves the memory as it is.
    q, k, v, step = (_chunks(x, size) for x in (q, k, v, step))
    log_keep = _chunks(log_keep[..., None], size)[..., 0]
    between = mx.exp(_segment_sums(log_keep))
    since_start = mx.exp(mx.cumsum(log_keep, axis=-1))[..., None]
    lower = mx.tril(between, -1)
    inverse = _inverse_unit_lower((step * k) @ k.swapaxes(-1, -2) * lower)
    wanted = inverse @ (step * v)
    recalled = inverse @ (step * since_start * k)
    read = q * since_start
    scores = (q @ k.swapaxes(-1, -2)) * (lower + mx.eye(size))
    write = (k * between[..., -1, :, None]).swapaxes(-1, -2)
    out = []
    for c in range(q.shape[2]):
        corrections = wanted[:, :, c] - recalled[:, :, c] @ memory
        out.append(read[:, :, c] @ memory + scores[:, :, c] @ corrections)
        memory = memory * since_start[:, :, c, -1:] + write[:, :, c] @ corrections
    return mx.concatenate(out, axis=2)[:, :, :length], memory


def _chunks(x: mx.array, size: int) -> mx.array:
    """(B, H, T, F) to (B, H, N, L, F), filled with zeros."""
    missing = -x.shape[2] % size
    if missing:
        x = mx.pad(x, [(0, 0), (0, 0), (0, missing), (0, 0)])
    return x.reshape(*x.shape[:2], -1, size, x.shape[3])


def _segment_sums(x: mx.array) -> mx.array:
    """``out[..., i, j] = x[j + 1] + ... + x[i]``, zero on the diagonal and minus infinity above it.

    Differences of one running sum would cancel where the decay is strong.

    References
    ----------
    .. [1] T. Dao, A. Gu, "Transformers are SSMs", 2024, listing 1. arXiv:2405.21060
    """
    size = x.shape[-1]
    rows = mx.broadcast_to(x[..., None], (*x.shape, size))
    sums = mx.cumsum(mx.tril(rows, -1), axis=-2)
    return mx.where(mx.tri(size, dtype=mx.bool_), sums, -mx.inf)


def _inverse_unit_lower(x: mx.array) -> mx.array:
    """Inverse of one plus the strictly lower x, (..., L, L), L a power of two.

    Blocks of 1, 2, 4, ... on the diagonal are inverted in turn: ``inv([[A, 0], [B, C]]) = [[A', 0], [-C' B A', C']]``.
    A geometric series of x has as few products, but cancels when keys are alike.
    """
    size = x.shape[-1]
    inverse = mx.broadcast_to(mx.eye(size), x.shape)
    index = np.arange(size)
    width = 1
    while width < size:
        pair, half = index // (2 * width), index // width % 2
        corner = (pair[:, None] == pair) & (half[:, None] == 1) & (half == 0)
        inverse = inverse - inverse @ (x * mx.array(corner)) @ inverse
        width *= 2
    return inverse
