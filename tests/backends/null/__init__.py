"""This package holds a whole backend that computes nothing, for CONTRIBUTING.md: what a folder of `backends` must have.

On the path of `nanochat.backends` it is one of them, and nothing else names it: `tests/backends/test_new_backend.py`.
"""

from typing import Any

from nanochat.backends.backend import Backend, Footprint
from nanochat.cost import leaf_bytes
from nanochat.ops import Ops

__all__ = ["BACKEND"]


def _load() -> Ops[Any, Any, Any]:
    from tests.backends.null.ops import NullOps

    return NullOps()


BACKEND = Backend(
    module="tests.backends.null.ops",
    load=_load,
    footprint=Footprint(runtime=0, kept=leaf_bytes, per_feature=4),
)
