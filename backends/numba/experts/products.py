"""This file holds the products of the experts' weights with the rows of their visits, all experts in one call.

The matrices of the experts have one shape but lie anywhere: kernels are given their addresses.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numba import types
from numba.extending import intrinsic
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from nanochat.backends.numba.products.activation import rms_norm
from nanochat.backends.numba.products.linear import TOKENS, integer_product
from nanochat.backends.numba.products.packing import Leaf, TiledLinear
from nanochat.backends.numba.products.trit_codes import CodeLayout
from nanochat.backends.numba.runtime.compilation import kernel
from nanochat.backends.numba.runtime.isa import Isa
from nanochat.weights import FeedForward

__all__ = ["ExpertGroup", "Matrices", "grouped_norm", "grouped_product"]

_Array = NDArray[np.float32]
_Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Matrices:
    """Matrices of one shape, one for each expert, and their addresses (E,)."""

    leaves: tuple[TiledLinear, ...]
    codes: _Ints
    scales: _Ints
    # (tiles, blocks, groups) and weight blocks, of each.
    shape: _Ints

    @classmethod
    def of(cls, leaves: Sequence[TiledLinear]) -> "Matrices":
        """Those of a layer, in the order of its experts."""
        first = leaves[0]
        assert all(leaf.codes.shape == first.codes.shape for leaf in leaves)
        return cls(
            leaves=tuple(leaves),
            codes=np.array([_address(leaf.codes) for leaf in leaves], np.int64),
            scales=np.array([_address(leaf.scales) for leaf in leaves], np.int64),
            shape=np.array([*first.codes.shape[:3], *first.codes.shape[3:], first.scales.shape[1]]),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpertGroup:
    """The networks of a layer's experts, a kind of weights at a time; `gains` are addresses of sub-norms, (E,)."""

    networks: Sequence[FeedForward[Leaf]]
    gate: Matrices | None
    up: Matrices
    down: Matrices
    gains: _Ints | None

    @classmethod
    def of(cls, networks: Sequence[FeedForward[Leaf]]) -> "ExpertGroup":
        """What a layer has, in the order of its experts."""
        gates = [_tiled(w.gate) for w in networks if w.gate is not None]
        gains = [_address(w.sub_norm) for w in networks if isinstance(w.sub_norm, np.ndarray)]
        return cls(
            networks=networks,
            gate=Matrices.of(gates) if gates else None,
            up=Matrices.of([_tiled(w.up) for w in networks]),
            down=Matrices.of([_tiled(w.down) for w in networks]),
            gains=np.array(gains, np.int64) if gains else None,
        )


def _tiled(leaf: Leaf) -> TiledLinear:
    assert isinstance(leaf, TiledLinear), "the matrices of experts are ternary"
    return leaf


def _pointer_to(kind: Any) -> Any:
    def typed(_typing: object, address: Any) -> tuple[Any, Any]:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(address), generate  # type: ignore[no-untyped-call]

    return intrinsic(typed)


_bytes_at = cast(Callable[[int], Any], _pointer_to(types.uint8))
_halves_at = cast(Callable[[int], Any], _pointer_to(types.uint16))
_floats_at = cast(Callable[[int], Any], _pointer_to(types.float32))


@functools.cache
def grouped_product(isa: Isa, layout: CodeLayout) -> Callable[..., None]:
    """The kernel of `integer_product` that takes each expert's matrix for the rows of its visits.

    A task is one tile of one expert; tiles change fastest. Rows are x (P, B, 16 G), and `bounds` (E + 1,) says whose.
    """
    product: Any = integer_product(isa, layout)

    @kernel
    def grouped(
        codes_at: _Ints,
        scales_at: _Ints,
        shape: _Ints,
        bounds: _Ints,
        x: NDArray[np.int8],
        sums: NDArray[np.int32],
        x_scales: _Array,
        y: _Array,
        variant: int,
        first: int,
        last: int,
    ) -> None:
        tiles = shape[0]
        for task in range(first, last):
            e, tile = task // tiles, task % tiles
            low, high = bounds[e], bounds[e + 1]
            if low == high:
                continue
            sizes = (tiles, shape[1], shape[2], shape[3], shape[4])
            codes = carray(_bytes_at(codes_at[e]), sizes, np.uint8)
            scales = carray(_halves_at(scales_at[e]), (tiles, shape[5], shape[3]), np.uint16)
            rows, result = x[low:high], y[low:high]
            for part in range(-(-(high - low) // TOKENS)):
                place = part * tiles + tile
                product(
                    codes,
                    scales,
                    rows,
                    sums[low:high],
                    x_scales[low:high],
                    result,
                    variant,
                    place,
                    place + 1,
                )

    return grouped


@kernel
def grouped_norm(
    x: _Array, gains_at: _Ints, experts: _Ints, eps: float, y: _Array, first: int, last: int
) -> None:
    """`rms_norm` of each visit's row with the gains of its expert, whose addresses are (E,); a task is one visit."""
    for visit in range(first, last):
        gains = carray(_floats_at(gains_at[experts[visit]]), (x.shape[1],), np.float32)
        rms_norm(x, gains, eps, y, visit, visit + 1)


def _address(array: NDArray[np.generic]) -> int:
    return int(array.__array_interface__["data"][0])
