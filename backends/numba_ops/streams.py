"""This file holds the operations on residual streams (mHC): see `nanochat.ops.Ops`."""

import functools
from dataclasses import dataclass

import numpy as np

from nanochat.backends.numba_kernels import dense, fused, mhc, mhc_projection
from nanochat.backends.numba_kernels.mhc_coefficients import coefficients, static_coefficients
from nanochat.backends.numba_kernels.mhc_projection import TiledProjection, tile_projection
from nanochat.backends.numba_kernels.tiles import Leaf
from nanochat.backends.numba_ops.base import ELEMENT, FLOAT, KernelOps, LayoutChoice, dense_values
from nanochat.backends.numba_ops.pending import Array, Pending, Rounded, Values, now
from nanochat.backends.reference import permutation_matrices
from nanochat.config import Mixer
from nanochat.weights import Mhc

__all__ = ["StreamOps"]

# Nanoseconds for the coefficients of a token, and for a byte from memory.
_COEFFICIENTS, _BYTE = 300, 1 / 25


@dataclass(frozen=True, kw_only=True, eq=False)
class _Coefficients:
    """What is read with (N, n), written with (N, n) and mixed with (N, n, n), or (N, 0, 0); N is 1 or the tokens."""

    read: Values
    write: Values
    mixing: Values


@dataclass(frozen=True, kw_only=True, eq=False)
class _Site:
    """What depends on the weights of a site alone: its coefficients, or the logits and gates of a dynamic one."""

    leaves: Mhc[Leaf]
    matrices: Values
    bias: Values
    gates: Values
    projection: TiledProjection | None
    static: _Coefficients


class StreamOps(KernelOps):
    """Reading from, mixing and writing to the streams."""

    def __init__(self, *, num_threads: int | None = None, layout: LayoutChoice = "auto") -> None:
        super().__init__(num_threads=num_threads, layout=layout)
        self._sites: dict[tuple[int, Mixer, int], _Site] = {}

    def forget_sites(self) -> None:
        """Drop what was computed for the sites of earlier weights."""
        self._sites.clear()

    def mhc_open(self, x: Array, num_streams: int) -> Array:
        x = now(x)
        batch, length, width = x.shape
        streams: Values = self.launch.empty((batch, length, num_streams, width))
        self.launch(
            mhc.open_streams,
            x.reshape(-1, width),
            streams.reshape(-1, num_streams, width),
            tasks=batch * length,
            nanoseconds=streams.size * ELEMENT,
        )
        return streams

    def mhc_read(
        self, streams: Array, site: Mhc[Leaf], *, mixer: Mixer, iterations: int, eps: float
    ) -> tuple[Array, Array, Array | None]:
        streams = now(streams)
        batch, length, n, width = streams.shape
        flat = streams.reshape(-1, n, width)
        known = self._site(site, n, mixer, iterations)
        dynamic = known.projection is not None
        found = self._coefficients(flat, known, iterations, float(eps)) if dynamic else known.static
        u = self._blend(streams, found.read)
        shape = (batch, length) if dynamic else ()
        post = found.write.reshape(*shape, n)
        return u, post, None if mixer == "identity" else found.mixing.reshape(*shape, n, n)

    def _blend(self, streams: Values, read: Values) -> Pending:
        batch, length, n, width = streams.shape
        shape = batch, length, width
        flat = streams.reshape(-1, n, width)
        launch = functools.partial(
            self.launch, tasks=batch * length, nanoseconds=streams.size * ELEMENT
        )

        def compute() -> Values:
            u: Values = self.launch.empty(shape)
            launch(mhc.blend, flat, read, u.reshape(-1, width))
            return u

        def norm(u: Pending, gains: Values, eps: float) -> Pending:
            def compute_norm() -> Values:
                y = self.launch.empty(shape)
                rows = u.array().reshape(-1, width)
                launch(dense.rms_norm, rows, gains, eps, y.reshape(rows.shape))
                return y

            def fusion(y: Values, block: int, rounded: Rounded) -> None:
                out = rounded.codes, rounded.sums, rounded.scales
                launch(fused.blend_norm_round, flat, read, gains, eps, y, block, *out)

            return Pending(shape=shape, compute=compute_norm, fusion=fusion)

        return Pending(shape=shape, compute=compute, norm=norm)

    def _site(self, leaves: Mhc[Leaf], n: int, mixer: Mixer, iterations: int) -> _Site:
        # What is kept holds the leaves, so that no others can get their number.
        key = id(leaves), mixer, iterations
        if key not in self._sites:
            self._sites[key] = _prepared(leaves, n, mixer, iterations)
        return self._sites[key]

    def _coefficients(
        self, flat: Values, site: _Site, iterations: int, eps: float
    ) -> _Coefficients:
        """Those of every token, of a dynamic site."""
        assert site.projection is not None
        tokens, n, width = flat.shape
        numbers = site.projection.numbers
        lanes, chunks = numbers.shape[1], mhc_projection.num_chunks(width)
        assert numbers.shape[0] == n * width
        sums = self.launch.empty((tokens, chunks, lanes))
        squares = self.launch.empty((tokens, chunks))
        self.launch(
            mhc_projection.projector(numbers.dtype.name, lanes, n),
            flat,
            numbers,
            sums,
            squares,
            tasks=chunks * -(-tokens // mhc_projection.TOKENS),
            nanoseconds=flat.size * lanes * FLOAT + numbers.nbytes * _BYTE,
        )
        read, write = (self.launch.empty((tokens, n)) for _ in range(2))
        mixing = self.launch.empty((tokens, *site.static.mixing.shape[1:]))
        self.launch(
            coefficients,
            sums,
            squares,
            site.bias,
            site.gates,
            n * width,
            eps,
            site.matrices,
            iterations,
            read,
            write,
            mixing,
            tasks=tokens,
            nanoseconds=tokens * _COEFFICIENTS,
        )
        return _Coefficients(read=read, write=write, mixing=mixing)

    def mhc_write(self, streams: Array, y: Array, post: Array, mix: Array | None) -> Array:
        streams = now(streams)
        batch, length, n, width = streams.shape
        written = self.like(streams)
        flat, result = streams.reshape(-1, n, width), written.reshape(-1, n, width)
        rows, shares = now(y).reshape(-1, width), now(post).reshape(-1, n)
        tasks, nanoseconds = batch * length, 2 * streams.size * ELEMENT
        if mix is None:
            self.launch(mhc.add, flat, rows, shares, result, tasks=tasks, nanoseconds=nanoseconds)
        else:
            assert n in (2, 4), n
            matrices = now(mix).reshape(-1, n, n)
            self.launch(
                mhc.mix,
                flat,
                rows,
                shares,
                matrices,
                result,
                tasks=tasks,
                nanoseconds=nanoseconds,
            )
        return written

    def mhc_close(self, streams: Array) -> Array:
        streams = now(streams)
        batch, length, n, width = streams.shape
        y: Values = self.launch.empty((batch, length, width))
        self.launch(
            mhc.close,
            streams.reshape(-1, n, width),
            y.reshape(-1, width),
            tasks=batch * length,
            nanoseconds=streams.size * ELEMENT,
        )
        return y


def _prepared(leaves: Mhc[Leaf], n: int, mixer: Mixer, iterations: int) -> _Site:
    parts = [dense_values(leaves.read), dense_values(leaves.write)]
    if leaves.mix is not None:
        parts.append(dense_values(leaves.mix))
    bias = np.concatenate(parts)
    mixing = (1, n, n) if leaves.mix is not None else (1, 0, 0)
    static = _Coefficients(
        read=np.empty((1, n), np.float32),
        write=np.empty((1, n), np.float32),
        mixing=np.empty(mixing, np.float32),
    )
    matrices = _permutations(n) if mixer == "lite" else np.empty((0, n * n), np.float32)
    static_coefficients(bias, matrices, iterations, static.read, static.write, static.mixing)
    gates = np.zeros_like(bias)
    if leaves.gates is not None:
        gates = np.repeat(dense_values(leaves.gates)[: len(parts)], [len(part) for part in parts])
    return _Site(
        leaves=leaves,
        matrices=matrices,
        bias=bias,
        gates=gates,
        projection=None if leaves.projection is None else _tiled(leaves.projection),
        static=static,
    )


def _tiled(projection: Leaf) -> TiledProjection:
    if isinstance(projection, TiledProjection):
        return projection
    # Float32 numbers come from weights that were made by hand.
    return tile_projection(dense_values(projection))


@functools.cache
def _permutations(n: int) -> Values:
    """The permutation matrices, (n!, n * n)."""
    return permutation_matrices(n).reshape(-1, n * n)
