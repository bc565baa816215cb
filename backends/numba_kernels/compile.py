"""This file holds how kernels are compiled: when first called, without the GIL, and cached on disk."""

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

from nanochat.backends.numba_kernels.cache import KernelCache

__all__ = ["fused_kernel", "inlined", "kernel", "sum_kernel"]

F = TypeVar("F", bound=Callable[..., object])

_LOG = logging.getLogger(__name__)


def kernel(function: F) -> F:
    """Compile with every operation rounded as it is written."""
    return _compiled(function, fastmath=set())


def fused_kernel(function: F) -> F:
    """Compile so that a product is added without being rounded first.

    Write ``sum + a * b + c * d``: of ``a * b + c * d`` the compiler may round either, here one and there the other.
    """
    return _compiled(function, fastmath={"contract"})


def sum_kernel(function: F) -> F:
    """Compile so that, besides, the terms of a sum may be reordered; NaN and infinity keep their meaning."""
    return _compiled(function, fastmath={"contract", "reassoc"})


def inlined(function: F) -> F:
    """Compile into every caller, by its rules: only there does LLVM see that accumulators overlap nothing."""
    return cast(F, njit(error_model="numpy", inline="always")(function))


def _compiled(function: F, *, fastmath: set[str]) -> F:
    # A division by zero gives infinity (error_model): a check would keep loops from being vectorised.
    decorator = functools.partial(njit, nogil=True, error_model="numpy", fastmath=fastmath)
    # Without Numba's own cache, which does not see changes of inlined functions.
    compiled: Any = decorator()(function)
    try:
        compiled._cache = KernelCache(function)
    except RuntimeError:
        _warn()
    return cast(F, compiled)


@functools.cache
def _warn() -> None:
    _LOG.warning(
        "Numba finds no folder where it could keep compiled kernels, so every start compiles them anew, for some "
        "seconds: set NUMBA_CACHE_DIR to a folder that can be written"
    )
