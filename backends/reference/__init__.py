"""This package holds the reference backend: every operation in plain NumPy, and therefore its specification in code."""

from typing import Any

from nanochat.backends.backend import Backend
from nanochat.ops import Ops

__all__ = ["BACKEND"]


def _suits() -> str:
    return "nothing faster can run"


def _load() -> Ops[Any, Any, Any]:
    from nanochat.backends.reference.ops import ReferenceOps

    return ReferenceOps()


BACKEND = Backend(
    # It needs no package but NumPy, so this is always there.
    module="nanochat.backends.reference.ops",
    rank=4,
    suits=_suits,
    load=_load,
)
