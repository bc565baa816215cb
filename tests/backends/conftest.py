"""This file holds the backends under test, alone and side by side with the reference."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from nanochat.ops import Ops
from tests.parity.backends import backends_under_test, loaded
from tests.parity.lockstep import LockstepOps


def pytest_configure() -> None:
    # MLX reads it once, when its first product runs; see `nanochat.backends.mlx.ops`.
    os.environ.setdefault("MLX_ENABLE_TF32", "0")


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
