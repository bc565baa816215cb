"""This file holds accumulators that the compiler keeps in vector registers.

LLVM must assume that an array from the heap overlaps every other array, so an accumulator there is stored and loaded
again at each step. One on the stack of the kernel overlaps nothing: its `LANES` numbers stay in one to four registers.
"""

from collections.abc import Callable
from ctypes import c_void_p
from typing import cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from nanochat.backends.numba_kernels.compile import inlined

__all__ = ["LANES", "float32_lanes", "int16_lanes", "int32_lanes"]

# Matrix rows, positions or features that are computed together. 32 int16 fill one register of AVX-512; 64 and 128 were
# no faster for a 2048 x 2048 product.
LANES = 32


def _stack(element: types.Type) -> Callable[[], c_void_p]:
    """A function that a kernel calls for the address of `LANES` numbers on its stack."""

    def typed(_typing_context: object) -> tuple[object, object]:
        return types.CPointer(element)(), _allocate  # type: ignore[no-untyped-call]

    return cast(Callable[[], c_void_p], intrinsic(typed))


# Numba's code generation has no types.
def _allocate(context, builder, signature, _arguments):  # type: ignore[no-untyped-def]
    element = context.get_value_type(signature.return_type.dtype)
    memory = cgutils.alloca_once(builder, ir.ArrayType(element, LANES))  # type: ignore[no-untyped-call]
    memory.align = 64
    return builder.bitcast(memory, element.as_pointer())


_stack_float32 = _stack(types.float32)
_stack_int32 = _stack(types.int32)
_stack_int16 = _stack(types.int16)


@inlined
def float32_lanes() -> NDArray[np.float32]:
    """`LANES` float32 numbers, not yet set, until the calling kernel returns."""
    return carray(_stack_float32(), LANES, np.float32)


@inlined
def int32_lanes() -> NDArray[np.int32]:
    """As `float32_lanes`."""
    return carray(_stack_int32(), LANES, np.int32)


@inlined
def int16_lanes() -> NDArray[np.int16]:
    """As `float32_lanes`."""
    return carray(_stack_int16(), LANES, np.int16)
