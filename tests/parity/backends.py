"""This file holds the choice of backends under test: those that can run here, or those that must."""

import os
from collections.abc import Iterator
from typing import Any

from nanochat import backends
from nanochat.ops import Ops
from tests.parity.cases import CASES

__all__ = ["backends_under_test", "exact_backends", "exact_pairs", "loaded"]


def backends_under_test() -> list[str]:
    """`NANOCHAT_TEST_BACKENDS`, names with commas, none of which is skipped; else all that can run."""
    declared = os.environ.get("NANOCHAT_TEST_BACKENDS", "")
    if declared:
        return [name.strip() for name in declared.split(",")]
    return [name for name in backends.names() if backends.unavailable(name) is None]


def exact_backends() -> list[str]:
    """Those of them that promise bits, see `nanochat.ops.Described.is_exact`: nothing of the kind is known of torch."""
    return [name for name in backends_under_test() if name != "torch"]


def exact_pairs(*, one_of: int) -> list[tuple[str, str]]:
    """Each of these backends with models of `CASES`: all on numba, one of so many on the slower ones."""
    return [
        (name, case)
        for name in exact_backends()
        for number, case in enumerate(CASES)
        if name == "numba" or number % one_of == 0
    ]


def loaded(name: str) -> Iterator[Ops[Any, Any, Any]]:
    """The operations of a backend, as tests use it; an error if it cannot run."""
    # Two threads, where a worker of pytest-xdist has one core, too.
    chosen = backends.get(name, **({"num_threads": 2} if name == "numba" else {}))
    if name != "torch":
        yield chosen
        return
    import torch

    # Idle threads of these small products would wait in busy loops for cores that other processes use.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield chosen
    torch.set_num_threads(threads)
