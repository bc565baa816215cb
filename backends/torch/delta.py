"""This file holds the gated delta rule in torch: one step at a time, and in chunks for long sequences.

Legend: B sequences, T tokens, H heads, K key features, V value features, N chunks, L tokens of a chunk. Queries and
keys are already scaled and of unit length; `log_keep` is the logarithm of the decay, at most zero.
"""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["chunked_delta_rule", "delta_step"]

_CHUNK = 64


def delta_step(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_keep: Tensor, memory: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token: q, k (B, 1, H, K), v (B, 1, H, V), beta and log_keep (B, 1, H), memory (B, H, K, V)."""
    assert memory is not None
    memory = memory * log_keep[:, 0].exp()[:, :, None, None]
    error = v[:, 0] - (k[:, 0, :, None] @ memory)[:, :, 0]
    memory = memory + k[:, 0, :, :, None] * (error * beta[:, 0, :, None])[:, :, None]
    return (q[:, 0, :, None] @ memory).transpose(1, 2), memory


def chunked_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_keep: Tensor, memory: Tensor | None
) -> tuple[Tensor, Tensor]:
    """T tokens in chunks: products inside a chunk, a loop over chunks.

    Inside a chunk with cumulative decay g, each token's correction depends on the earlier ones of the chunk through a
    unit lower triangular system, which is solved once for values and for keys.

    References
    ----------
    .. [1] S. Yang et al., "Gated Delta Networks", ICLR 2025, section 3.3. arXiv:2412.06464
    """
    batch, length, heads, _ = q.shape
    chunk = min(_CHUNK, length)
    padding = -length % chunk
    # (B, T, H, X) to (B, H, N, L, X). Padding has beta 0 and decay 1: it changes nothing.
    q, k, v = (_chunks(x, padding, chunk) for x in (q, k, v))
    beta, log_keep = (_chunks(x[..., None], padding, chunk) for x in (beta, log_keep))

    total = log_keep.cumsum(dim=3)
    lower = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril()
    segments = _segment_sums(log_keep, lower)
    between = torch.where(lower, segments.exp(), 0.0)
    system = torch.eye(chunk, device=q.device, dtype=q.dtype) + ((beta * k) @ k.mT * between).tril(
        -1
    )
    known = torch.cat([beta * v, beta * total.exp() * k], dim=-1)
    solved = torch.linalg.solve_triangular(system, known, upper=False, unitriangular=True)
    values, keys = solved.split([v.shape[-1], k.shape[-1]], dim=-1)

    inside = q @ k.mT * between
    queries = q * total.exp()
    remembered = k * segments[:, :, :, -1, :, None].exp()
    keep = total[:, :, :, -1:].exp()
    if memory is None:
        memory = q.new_zeros(batch, heads, k.shape[-1], v.shape[-1])
    out = []
    for n in range(q.shape[2]):
        corrected = values[:, :, n] - keys[:, :, n] @ memory
        out.append(queries[:, :, n] @ memory + inside[:, :, n] @ corrected)
        memory = memory * keep[:, :, n] + remembered[:, :, n].mT @ corrected
    y = torch.stack(out, dim=2).flatten(2, 3)[:, :, :length]
    return y.transpose(1, 2), memory


def _segment_sums(log_keep: Tensor, lower: Tensor) -> Tensor:
    """Sums of log_keep (B, H, N, L, 1) after token j up to token i, (B, H, N, L, L), zero above the diagonal.

    Each is a sum of its own: the difference of two running sums would cancel where decays are strong.
    """
    after = lower.tril(-1)
    return torch.where(after, log_keep.expand(*log_keep.shape[:-1], len(lower)), 0.0).cumsum(dim=3)


def _chunks(x: Tensor, padding: int, chunk: int) -> Tensor:
    chunks: Tensor = functional.pad(x, (0, 0, 0, 0, 0, padding)).transpose(1, 2)
    return chunks.reshape(*chunks.shape[:2], -1, chunk, chunks.shape[-1])
