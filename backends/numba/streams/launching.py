"""This file holds how the work on residual streams is launched: to open, read, write and close them.

Legend: B sequences, T tokens, n streams, C width, L rows of the projection with padding.
"""

import functools

from nanochat.backends.numba.pending import Pending, Rounded, Values
from nanochat.backends.numba.products import activation
from nanochat.backends.numba.runtime.costs import BYTE, ELEMENT, FLOAT
from nanochat.backends.numba.runtime.launch import Launcher
from nanochat.backends.numba.streams import mhc, projection
from nanochat.backends.numba.streams.sites import Coefficients, Site

__all__ = ["blend", "close", "coefficients", "open_streams", "write"]

# Nanoseconds for the coefficients of a token, from its logits.
_COEFFICIENTS = 300


def open_streams(launch: Launcher, x: Values, num_streams: int) -> Values:
    """So many streams (B, T, n, C) that are all x (B, T, C)."""
    batch, length, width = x.shape
    streams: Values = launch.empty((batch, length, num_streams, width))
    rows, flat = x.reshape(-1, width), streams.reshape(-1, num_streams, width)
    tasks, nanoseconds = batch * length, streams.size * ELEMENT
    launch(mhc.open_streams, rows, flat, tasks=tasks, nanoseconds=nanoseconds)
    return streams


def coefficients(
    launch: Launcher, streams: Values, site: Site, *, iterations: int, eps: float
) -> Coefficients:
    """What a dynamic site reads, writes and mixes with, for every token of streams (B, T, n, C)."""
    assert site.projection is not None
    n, width = streams.shape[2:]
    flat = streams.reshape(-1, n, width)
    numbers = site.projection.numbers
    tokens, lanes, chunks = len(flat), numbers.shape[1], projection.num_chunks(width)
    assert numbers.shape[0] == n * width
    sums = launch.empty((tokens, chunks, lanes))
    squares = launch.empty((tokens, chunks))
    launch(
        projection.projector(numbers.dtype.name, lanes, n),
        *(flat, numbers, sums, squares),
        tasks=chunks * -(-tokens // projection.TOKENS),
        nanoseconds=flat.size * lanes * FLOAT + numbers.nbytes * BYTE,
    )
    found = Coefficients(
        read=launch.empty((tokens, n)),
        write=launch.empty((tokens, n)),
        mixing=launch.empty((tokens, *site.static.mixing.shape[1:])),
    )
    launch(
        mhc.coefficients,
        *(sums, squares, site.bias, site.gates, n * width, eps, site.matrices, iterations),
        *(found.read, found.write, found.mixing),
        tasks=tokens,
        nanoseconds=tokens * _COEFFICIENTS,
    )
    return found


def blend(launch: Launcher, streams: Values, read: Values) -> Pending:
    """The sum of streams (B, T, n, C), with the shares `read`; its norm can be had without it."""
    batch, length, n, width = streams.shape
    shape = batch, length, width
    flat = streams.reshape(-1, n, width)
    run = functools.partial(launch, tasks=batch * length, nanoseconds=streams.size * ELEMENT)

    def compute() -> Values:
        u: Values = launch.empty(shape)
        run(mhc.blend, flat, read, u.reshape(-1, width))
        return u

    def norm(u: Pending, gains: Values, eps: float) -> Pending:
        def compute_norm() -> Values:
            y = launch.empty(shape)
            rows = u.array().reshape(-1, width)
            run(activation.rms_norm, rows, gains, eps, y.reshape(rows.shape))
            return y

        def fusion(y: Values, block: int, rounded: Rounded) -> None:
            out = rounded.codes, rounded.sums, rounded.scales
            run(activation.blend_norm_round, flat, read, gains, eps, y, block, *out)

        return Pending(shape=shape, compute=compute_norm, fusion=fusion)

    return Pending(shape=shape, compute=compute, norm=norm)


def write(
    launch: Launcher, streams: Values, y: Values, shares: Values, mixing: Values | None
) -> Values:
    """Streams (B, T, n, C) mixed, if they are to be, and with their shares of y (B, T, C) added."""
    batch, length, n, width = streams.shape
    written = launch.like(streams)
    flat, result = streams.reshape(-1, n, width), written.reshape(-1, n, width)
    rows, shares = y.reshape(-1, width), shares.reshape(-1, n)
    run = functools.partial(launch, tasks=batch * length, nanoseconds=2 * streams.size * ELEMENT)
    if mixing is None:
        run(mhc.add, flat, rows, shares, result)
    else:
        assert n in (2, 4), n
        run(mhc.mix, flat, rows, shares, mixing.reshape(-1, n, n), result)
    return written


def close(launch: Launcher, streams: Values) -> Values:
    """The mean of the streams (B, T, n, C)."""
    batch, length, n, width = streams.shape
    y: Values = launch.empty((batch, length, width))
    flat, rows = streams.reshape(-1, n, width), y.reshape(-1, width)
    tasks, nanoseconds = batch * length, streams.size * ELEMENT
    launch(mhc.close, flat, rows, tasks=tasks, nanoseconds=nanoseconds)
    return y
