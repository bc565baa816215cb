"""This file holds the choice of backends under test: those that can run here, or those that must."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from nanochat import backends
from nanochat.ops import Ops
from tests.parity.lockstep import LockstepOps


def pytest_configure() -> None:
    # MLX reads it once, when its first product runs; see `nanochat.backends.mlx.ops`.
    os.environ.setdefault("MLX_ENABLE_TF32", "0")


def backends_under_test() -> list[str]:
    """`NANOCHAT_TEST_BACKENDS`, names with commas, none of which is skipped; else all that can run."""
    declared = os.environ.get("NANOCHAT_TEST_BACKENDS", "")
    if declared:
        return [name.strip() for name in declared.split(",")]
    return [name for name in backends.NAMES if backends.unavailable(name) is None]


@pytest.fixture(scope="session", params=backends_under_test())
def ops(request: pytest.FixtureRequest) -> Iterator[Ops[Any, Any, Any]]:
    """Operations of each backend under test; an error if it was declared and cannot run."""
    yield from loaded(request.param)


@pytest.fixture(scope="session", params=[n for n in backends_under_test() if n != "reference"])
def other(request: pytest.FixtureRequest) -> Iterator[Ops[Any, Any, Any]]:
    """As `ops`, but without the reference, for what is compared with it."""
    yield from loaded(request.param)


@pytest.fixture
def lockstep(other: Ops[Any, Any, Any]) -> LockstepOps[Any, Any, Any]:
    """The reference and a backend side by side."""
    return LockstepOps(other)


def loaded(name: str) -> Iterator[Ops[Any, Any, Any]]:
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
