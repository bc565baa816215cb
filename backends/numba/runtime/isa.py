"""This file holds the instruction sets that the integer product is written for, and the choice between them.

``avx512vnni`` and ``avxvnni`` add four products of bytes to an int32 in one instruction, in registers of 512 and 256
bits. ``avx2`` adds two to an int16. ``portable`` leaves the choice of instructions to the compiler, on any CPU.
"""

import functools
import os
import platform
from collections.abc import Set
from typing import Literal, get_args

import llvmlite.binding
from numba.core import config
from numba.core.codegen import get_host_cpu_features

from nanochat.errors import BackendError, InputError

__all__ = ["Isa", "available", "chosen", "cpu_features", "has_half", "rivals", "supported"]

# The fastest first.
Isa = Literal["avx512vnni", "avxvnni", "avx2", "portable"]

# Each needs all features of one of its sets, by their names in LLVM. AVX-512 has the instruction of AVX-VNNI, too; F16C
# widens the scales, and every CPU with AVX2 has it.
_NEEDED: dict[Isa, tuple[frozenset[str], ...]] = {
    "avx512vnni": (frozenset({"avx512f", "avx512bw", "avx512vnni"}),),
    "avxvnni": (
        frozenset({"avx2", "f16c", "avxvnni"}),
        frozenset({"avx2", "f16c", "avx512vl", "avx512vnni"}),
    ),
    "avx2": (frozenset({"avx2", "f16c"}),),
    "portable": (frozenset(),),
}


def chosen() -> Isa:
    """The instruction set named by ``NANOCHAT_ISA``, or the fastest that this CPU has.

    Raises
    ------
    InputError
        If the name is none of ours.
    BackendError
        If this CPU, or Numba by its own settings, lacks those instructions; or if Numba may not compile at all.
    """
    if vars(config)["DISABLE_JIT"]:
        raise BackendError(
            "NUMBA_DISABLE_JIT is set, and vector code cannot run as Python: unset it, or choose backend reference"
        )
    found = available()
    name = os.environ.get("NANOCHAT_ISA", "")
    if not name:
        return found[0]
    if name not in get_args(Isa):
        raise InputError(
            f"NANOCHAT_ISA={name!r} is no instruction set: choose one of {', '.join(get_args(Isa))}, or unset it"
        )
    for isa in found:
        if isa == name:
            return isa
    raise BackendError(
        f"NANOCHAT_ISA={name} asks for instructions that this CPU ({llvmlite.binding.get_host_cpu_name()}) does not "
        f"have or that NUMBA_CPU_FEATURES leaves out: choose one of {', '.join(found)}, or unset it"
    )


def rivals() -> tuple[Isa, ...]:
    """The instruction sets that may be the fastest here, `chosen` first.

    Wide registers slow some processors down, so both widths of VNNI are tried; what has neither is never faster.
    """
    first = chosen()
    if os.environ.get("NANOCHAT_ISA") or first != "avx512vnni" or "avxvnni" not in available():
        return (first,)
    return first, "avxvnni"


@functools.cache
def available() -> tuple[Isa, ...]:
    """The instruction sets that kernels may use here, the fastest first."""
    return supported(cpu_features())


def supported(features: Set[str]) -> tuple[Isa, ...]:
    """The instruction sets of a CPU with these features, the fastest first.

    Examples
    --------
    >>> supported({"avx", "avx2", "f16c"})
    ('avx2', 'portable')
    """
    return tuple(isa for isa, sets in _NEEDED.items() if any(needed <= features for needed in sets))


@functools.cache
def cpu_features() -> frozenset[str]:
    """What this CPU has and Numba compiles for.

    Numba can be told to use less, by ``NUMBA_CPU_FEATURES`` or ``NUMBA_ENABLE_AVX``. What a ``NUMBA_CPU_NAME`` implies
    is not counted: LLVM does not say.
    """
    try:
        host = {name for name, there in llvmlite.binding.get_host_cpu_features().items() if there}
    except RuntimeError:
        return frozenset()
    allowed = vars(config)["CPU_FEATURES"]
    if allowed is None:
        allowed = get_host_cpu_features()  # type: ignore[no-untyped-call]
    return frozenset(host & {name[1:] for name in allowed.split(",") if name.startswith("+")})


def has_half() -> bool:
    """Whether float16 can be converted: on an x86 without F16C, LLVM calls a function that is not there."""
    return platform.machine().lower() in {"aarch64", "arm64"} or "f16c" in cpu_features()
