"""This package holds the MLX backend, for the GPU of Apple silicon; it also runs on the CPU of any machine."""

from typing import Any

from nanochat.backends.backend import Backend
from nanochat.backends.host import has_apple_gpu
from nanochat.ops import Ops

__all__ = ["BACKEND"]


def _suits() -> str:
    return "this is Apple silicon" if has_apple_gpu() else ""


def _missed() -> str:
    return "this is Apple silicon, but MLX is not installed" if has_apple_gpu() else ""


def _load() -> Ops[Any, Any, Any]:
    from nanochat.backends.mlx.ops import MlxOps

    return MlxOps()


BACKEND = Backend(
    module="mlx.core",
    fix="pip install 'nanochat-ternary[mlx]'",
    libraries=("mlx.core",),
    rank=2,
    suits=_suits,
    missed=_missed,
    load=_load,
)
