"""This package holds the torch backend: eager or compiled, on CPU and CUDA, for inference and for training."""

import math
from typing import Any

from nanochat.backends.backend import Backend, Footprint
from nanochat.backends.host import has_cuda_driver
from nanochat.errors import how_to_install
from nanochat.ops import Ops
from nanochat.weights import DENSE_DTYPES, Spec

__all__ = ["BACKEND"]


def _suits() -> str:
    # Asking torch itself would load it (seconds) for an answer that is almost always no on a machine without a driver.
    if has_cuda_driver() is False:
        return ""
    from nanochat.backends.torch.ops import cuda_is_available

    return "a CUDA device is there" if cuda_is_available() else ""


def _missed() -> str:
    return "there is a CUDA driver, but torch is not installed" if has_cuda_driver() else ""


def _load(*, num_threads: int | None = None) -> Ops[Any, Any, Any]:
    from nanochat.backends.torch.ops import TorchOps

    return TorchOps(num_threads=num_threads)


def _kept(spec: Spec) -> int:
    if spec.kind == "dense":
        return DENSE_DTYPES[spec.dtype].itemsize * math.prod(spec.shape)
    rows, columns = spec.shape
    if spec.kind == "int8":
        return rows * (columns + columns // spec.weight_block * 4)
    return rows * (-(-columns // 4) + columns // spec.weight_block * 4)


BACKEND = Backend(
    module="torch",
    fix=how_to_install("torch"),
    libraries=("torch", "triton"),
    takes_threads=True,
    rank=1,
    suits=_suits,
    missed=_missed,
    load=_load,
    footprint=Footprint(
        runtime=160_000_000,
        kept=_kept,
        copies=lambda _: 2,
        unpacked=lambda _: 6,
        per_feature=27,
        per_product=12,
    ),
)
