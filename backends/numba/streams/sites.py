"""This file holds what the weights of mHC sites alone decide, which is kept until there are other weights.

Legend: N 1 or tokens, n streams, C width, M mixing logits.
"""

import functools
from dataclasses import dataclass

import numpy as np

from nanochat.backends.numba.pending import Values
from nanochat.backends.numba.products.packing import (
    Leaf,
    NarrowMatrix,
    TiledProjection,
    dense,
    tile_projection,
)
from nanochat.backends.numba.streams import mhc
from nanochat.backends.reference.ops import permutation_matrices
from nanochat.config import Mixer
from nanochat.weights import Mhc

__all__ = ["Coefficients", "Site", "Sites"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Coefficients:
    """What is read with (N, n), written with (N, n) and mixed with (N, n, n), or (N, 0, 0); N is 1 or the tokens."""

    read: Values
    write: Values
    mixing: Values


@dataclass(frozen=True, kw_only=True, eq=False)
class Site:
    """What depends on the weights of a site alone: its coefficients, or the logits and gates of a dynamic one."""

    leaves: Mhc[Leaf]
    matrices: Values
    bias: Values
    gates: Values
    projection: TiledProjection | None
    static: Coefficients


class Sites:
    """The sites of a model, each prepared when it is first met."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, Mixer, int], Site] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, leaves: Mhc[Leaf], n: int, mixer: Mixer, iterations: int) -> Site:
        """The site with these weights."""
        # What is kept holds the leaves, so that no others can get their number.
        key = id(leaves), mixer, iterations
        if key not in self._kept:
            self._kept[key] = _prepared(leaves, n, mixer, iterations)
        return self._kept[key]

    def clear(self) -> None:
        """Forget all, since weights have changed."""
        self._kept.clear()


def _prepared(leaves: Mhc[Leaf], n: int, mixer: Mixer, iterations: int) -> Site:
    parts = [dense(leaf) for leaf in (leaves.read, leaves.write, leaves.mix) if leaf is not None]
    bias = np.concatenate(parts)
    static = Coefficients(
        read=np.empty((1, n), np.float32),
        write=np.empty((1, n), np.float32),
        mixing=np.empty((1, 0, 0) if leaves.mix is None else (1, n, n), np.float32),
    )
    matrices = _permutations(n) if mixer == "lite" else np.empty((0, n * n), np.float32)
    mhc.static_coefficients(bias, matrices, iterations, static.read, static.write, static.mixing)
    gates = np.zeros_like(bias)
    if leaves.gates is not None:
        gates = np.repeat(dense(leaves.gates)[: len(parts)], [len(part) for part in parts])
    projection = None
    if isinstance(leaves.projection, NarrowMatrix):
        assert not leaves.projection.brain, "those of a projection are float16"
        projection = tile_projection(leaves.projection.bits.view(np.float16))
    elif leaves.projection is not None:
        # Float32 numbers come from weights that were made by hand.
        projection = tile_projection(dense(leaves.projection))
    return Site(
        leaves=leaves,
        matrices=matrices,
        bias=bias,
        gates=gates,
        projection=projection,
        static=static,
    )


@functools.cache
def _permutations(n: int) -> Values:
    """The permutation matrices, (n!, n * n)."""
    return permutation_matrices(n).reshape(-1, n * n)
