"""This package holds the Numba backend: operations on NumPy arrays, which launch compiled kernels.

A kernel does a range of independent tasks, ``first <= task < last``, and every number that it writes depends on its
task alone. So a result is the same for any number of threads, which `runtime.threads` gives their ranges. Kernels trust
their caller: nothing in a kernel checks a bound. What launches them lies beside them, in their folders.
"""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from nanochat.backends.backend import Backend, Footprint
from nanochat.backends.host import has_apple_gpu, has_cuda_driver
from nanochat.backends.numba.runtime.lanes import LANES, STREAMED, WORDS, fits_trits
from nanochat.cost import leaf_bytes
from nanochat.ops import Ops
from nanochat.weights import Spec

__all__ = ["BACKEND"]


def _suits() -> str:
    here = has_apple_gpu() or has_cuda_driver()
    text = "compiled CPU code is next"
    return text if here else f"no CUDA device and no Apple GPU; {text}"


def _missed() -> str:
    return f"the package numba is not installed: {BACKEND.fix}"


def _load(*, num_threads: int | None = None) -> Ops[Any, Any, Any]:
    from nanochat.backends.numba.ops import NumbaOps

    return NumbaOps(num_threads=num_threads)


def _trits() -> str | None:
    """How this CPU keeps five codes to a byte, if it can."""
    if find_spec("numba") is None:
        return None
    from nanochat.backends.numba.products.trit_codes import layout_for
    from nanochat.backends.numba.runtime.isa import chosen

    return layout_for(chosen())


def _kept(spec: Spec) -> int:
    return _with_padding(spec, leaf_bytes(spec))


def _least(spec: Spec) -> int:
    size = leaf_bytes(spec)
    is_ternary = spec.kind == "ternary"
    if is_ternary and fits_trits(spec.shape[1], spec.activation_block) and _trits() is not None:
        # Of 64 numbers, which take 16 bytes in two bits each.
        size -= math.prod(spec.shape) * (16 - WORDS) // 64
    return _with_padding(spec, size)


def _with_padding(spec: Spec, size: int) -> int:
    rows = spec.shape[0]
    whole = rows if spec.kind == "dense" else -(-rows // LANES) * LANES
    # A twentieth is left of the pieces in which memory is taken.
    return int(1.05 * whole * size / rows)


def _is_least(specs: Sequence[Spec]) -> bool:
    size = sum(math.prod(spec.shape) for spec in specs if spec.kind == "ternary") // 4
    return size >= STREAMED and _trits() == "table_trits"


BACKEND = Backend(
    module="numba",
    fix="pip install numba",
    libraries=("numba", "llvmlite"),
    takes_threads=True,
    rank=3,
    suits=_suits,
    missed=_missed,
    load=_load,
    footprint=Footprint(
        runtime=65_000_000, kept=_kept, least=_least, is_least=_is_least, per_feature=20
    ),
)
