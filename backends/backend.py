"""This file holds what a backend says of itself before it is loaded: its needs, its choice, its memory."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.ops import Ops
from nanochat.weights import Spec

__all__ = ["Backend", "Footprint"]


def _nothing() -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """About what a model takes of memory on a backend, in bytes; `python -m bench memory` measures it.

    Parameters
    ----------
    runtime : int
        What the backend's module takes with all else that a first model imports or compiles.
    kept, copies : function
        For a leaf that is prepared, and how often as much while it is being prepared.
    least : function or None
        For a leaf that is prepared where memory is short, if that is less.
    is_least : function
        Whether leaves are prepared so anyhow.
    loading : function
        A leaf's share of what loading takes at its height, where everything is loaded at once.
    unpacked : function
        For each number of a matrix that is being multiplied.
    per_feature, per_product : int
        For each token and feature of the widest activation, and of the integer sums of the widest linear.
    """

    runtime: int
    kept: Callable[[Spec], int]
    copies: Callable[[Spec], int] = lambda _: 1
    least: Callable[[Spec], int] | None = None
    is_least: Callable[[Sequence[Spec]], bool] = lambda _: False
    loading: Callable[[Spec], int] = lambda _: 0
    unpacked: Callable[[Spec], float] = lambda _: 0
    per_feature: int
    per_product: int = 0

    def kept_bytes(self, specs: Sequence[Spec], *, is_short: bool = False) -> int:
        """What weights take when they are prepared; `is_short` is whether memory is."""
        return sum(self._sizes(specs, is_short))

    def loading_bytes(self, specs: Sequence[Spec], *, is_short: bool = False) -> int:
        """What weights take at most until then."""
        # While a leaf is prepared, those before it are there already.
        kept = most = 0
        for spec, size in zip(specs, self._sizes(specs, is_short), strict=True):
            most = max(most, kept + self.copies(spec) * size)
            kept += size
        return max(most, sum(map(self.loading, specs)))

    def _sizes(self, specs: Sequence[Spec], is_short: bool) -> list[int]:
        size = self.least if self.least and (is_short or self.is_least(specs)) else self.kept
        return list(map(size, specs))

    def work_bytes(self, specs: Sequence[Spec], *, tokens: int, features: int) -> int:
        """Activations and unpacked matrices, at the widest layer or at the head.

        So many tokens are read at once, and the residual streams of one have so many features.
        """
        linears = [spec for spec in specs if spec.kind == "ternary"]
        widest = features + max(max(spec.shape) for spec in linears)
        products = max(math.prod(spec.shape) // spec.activation_block for spec in linears)
        layer = tokens * (self.per_feature * widest + self.per_product * products)
        layer += max(map(self._unpacked_bytes, linears))
        # A dense table is there in float32, and unpacked by nobody.
        tables = (self._unpacked_bytes(spec) for spec in specs if spec.kind == "int8")
        return max(layer, max(tables, default=0))

    def _unpacked_bytes(self, spec: Spec) -> int:
        return int(self.unpacked(spec) * math.prod(spec.shape))


@dataclass(frozen=True, kw_only=True)
class Backend:
    """The `BACKEND` of a folder here, which gives it its name; see `nanochat.backends.discover`.

    It is read on every machine, so neither it nor the module that holds it imports a framework.

    Parameters
    ----------
    module : str
        What must be importable for the backend to run, such as "torch".
    fix : str
        How to get that, such as a command of pip.
    libraries : tuple of str
        The modules whose versions say what computes.
    takes_threads : bool
        Whether a caller may choose the threads that share an operation.
    rank : int
        Who is asked first, the lowest, when "auto" looks for a backend.
    suits : function
        Why "auto" takes it on this machine, asked where `module` is there; empty if it does not.
    missed : function
        What "auto" says where it passes the backend over because `module` is not there; empty if it is not missed.
    load : function or None
        Gives its operations, with `num_threads` where they were chosen; the framework is imported there and nowhere
        before. None is a runtime of whole graphs, which has no operations.
    footprint : Footprint
        What a model takes on it.
    graph_footprint : Footprint or None
        What a model takes whose file is a graph that this backend runs as it is.
    """

    module: str
    fix: str = ""
    libraries: tuple[str, ...] = ()
    takes_threads: bool = False
    rank: int = 100
    suits: Callable[[], str] = _nothing
    missed: Callable[[], str] = _nothing
    load: Callable[..., Ops[Any, Any, Any]] | None
    footprint: Footprint
    graph_footprint: Footprint | None = None
