"""This package holds the Numba backend: operations on NumPy arrays, which launch compiled kernels.

A kernel does a range of independent tasks, ``first <= task < last``, and every number that it writes depends on its
task alone. So a result is the same for any number of threads, which `runtime.threads` gives their ranges. Kernels trust
their caller: nothing in a kernel checks a bound. What launches them lies beside them, in their folders.
"""

from typing import Any

from nanochat.backends.backend import Backend, Footprint
from nanochat.backends.host import has_apple_gpu, has_cuda_driver
from nanochat.backends.numba.runtime.lanes import LANES
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


def _kept(spec: Spec) -> int:
    rows = spec.shape[0]
    whole = rows if spec.kind == "dense" else -(-rows // LANES) * LANES
    # A twentieth is left of the pieces in which memory is taken.
    return int(1.05 * whole * leaf_bytes(spec) / rows)


BACKEND = Backend(
    module="numba",
    fix="pip install numba",
    libraries=("numba", "llvmlite"),
    takes_threads=True,
    rank=3,
    suits=_suits,
    missed=_missed,
    load=_load,
    footprint=Footprint(runtime=65_000_000, kept=_kept, per_feature=20),
)
