"""This package holds the reference backend: every operation in plain NumPy, and therefore its specification in code."""

import math
from typing import Any

import numpy as np

from nanochat.backends.backend import Backend, Footprint
from nanochat.ops import Ops
from nanochat.ternary import exact_sums
from nanochat.weights import Spec

__all__ = ["BACKEND"]


def _suits() -> str:
    return "nothing faster can run"


def _load() -> Ops[Any, Any, Any]:
    from nanochat.backends.reference.ops import ReferenceOps

    return ReferenceOps()


def _kept(spec: Spec) -> int:
    # Tables and scales are used where they lie, in the file.
    if spec.kind == "int8":
        return 0
    return math.prod(spec.shape) * (4 if spec.kind == "dense" else 1)


BACKEND = Backend(
    # It needs no package but NumPy, so this is always there.
    module="nanochat.backends.reference.ops",
    rank=4,
    suits=_suits,
    load=_load,
    footprint=Footprint(
        runtime=40_000_000,
        kept=_kept,
        # As floats while they are multiplied, and a little beside.
        unpacked=lambda spec: 0.5 + np.dtype(exact_sums(spec.activation_block)).itemsize,
        per_feature=40,
        per_product=12,
    ),
)
