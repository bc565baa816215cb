"""This package holds the MLX backend, for the GPU of Apple silicon; it also runs on the CPU of any machine."""

import math
from typing import Any

from nanochat.backends.backend import Backend, Footprint
from nanochat.backends.host import has_apple_gpu
from nanochat.backends.mlx.groups import GROUPS
from nanochat.errors import how_to_install
from nanochat.ops import Ops
from nanochat.weights import DENSE_DTYPES, Spec

__all__ = ["BACKEND"]


def _suits() -> str:
    return "this is Apple silicon" if has_apple_gpu() else ""


def _missed() -> str:
    return "this is Apple silicon, but MLX is not installed" if has_apple_gpu() else ""


def _load() -> Ops[Any, Any, Any]:
    from nanochat.backends.mlx.ops import MlxOps

    return MlxOps()


def _kept(spec: Spec) -> int:
    if spec.kind == "dense":
        return DENSE_DTYPES[spec.dtype].itemsize * math.prod(spec.shape)
    rows, columns = spec.shape
    group = next((size for size in GROUPS if spec.weight_block % size == 0), GROUPS[-1])
    # A scale and a bias for each group.
    size = group // (4 if spec.kind == "ternary" else 1) + 2 * 4
    return rows * -(-columns // group) * size


BACKEND = Backend(
    module="mlx.core",
    fix=how_to_install("mlx"),
    libraries=("mlx.core",),
    rank=2,
    suits=_suits,
    missed=_missed,
    load=_load,
    footprint=Footprint(
        runtime=20_000_000,
        kept=_kept,
        # Codes of 8 bits are moved in 16.
        copies=lambda spec: 4 if spec.kind == "int8" else 2,
        per_feature=34,
    ),
)
