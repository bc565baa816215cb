"""This file holds the words that kernels are written in, for what Numba has none: three levels of vector code.

* `exp` and `sigmoid`, in float32 arithmetic that loops over them can vectorise, and `precise_exp`, in float64.
* Accumulators that the compiler keeps in vector registers. LLVM must assume that an array from the heap overlaps every
  other array, so an accumulator there is stored and loaded again at each step. One on the stack of the kernel overlaps
  nothing: its `LANES` numbers stay in one to four registers.
* Constants, loads, broadcasts and intrinsics of LLVM. Pointers are to bytes, and offsets count bytes. A vector is as
  long as its type says; LLVM splits one that no register holds.
"""

from collections.abc import Callable, Sequence
from ctypes import c_void_p
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from nanochat.backends.numba.runtime.compilation import inlined, kernel
from nanochat.backends.numba.runtime.lanes import LANES

__all__ = ["FLOAT", "HALF", "INT8", "INT16", "INT32", "INT64", "LANES", "ask", "call", "exp"]
__all__ += ["filled", "float32", "float32_lanes", "integer", "load", "moved", "pinned"]
__all__ += ["pointer", "precise_exp", "prefetch", "scratch", "sigmoid", "splat", "store"]
__all__ += ["vector", "widened"]


@kernel
def exp(x: np.float32) -> np.float32:
    """``e**x`` within 1e-7 of its value; x is clamped to [-87, 88], and NaN stays NaN.

    References
    ----------
    .. [1] S. Moshier, Cephes, single/expf.c: the polynomial and the split of log 2.
    """
    x = np.float32(88) if x > np.float32(88) else x
    x = np.float32(-87) if x < np.float32(-87) else x
    # Adding 1.5 * 2**23 rounds to an integer and leaves it in the lowest bits.
    shifted = np.float32(x * np.float32(1.44269504) + np.float32(12582912))
    power = shifted - np.float32(12582912)
    rest = x - power * np.float32(0.693359375) + power * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * rest + np.float32(1.3981999507e-3)
    y = y * rest + np.float32(8.3334519073e-3)
    y = y * rest + np.float32(4.1665795894e-2)
    y = y * rest + np.float32(1.6666665459e-1)
    y = y * rest + np.float32(5.0000001201e-1)
    y = y * rest * rest + rest + np.float32(1)
    exponent = np.int32((shifted.view(np.int32) + 127) << 23)
    return y * exponent.view(np.float32)


@kernel
def precise_exp(x: float) -> float:
    """``e**x`` in float64, within 3e-16 of its value; x is clamped to [-708, 709], and NaN stays NaN.

    References
    ----------
    .. [1] S. Moshier, Cephes, double/exp.c: the rational function and the split of log 2.
    """
    x = 709.0 if x > 709.0 else x
    x = -708.0 if x < -708.0 else x
    # Adding 1.5 * 2**52 rounds to an integer and leaves it in the lowest bits.
    shifted = x * 1.4426950408889634 + 6755399441055744.0
    power = shifted - 6755399441055744.0
    rest = x - power * 6.93145751953125e-1 - power * 1.42860682030941723212e-6
    square = rest * rest
    p = 1.26177193074810590878e-4 * square + 3.02994407707441961300e-2
    p = (p * square + 9.99999999999999999910e-1) * rest
    q = 3.00198505138664455042e-6 * square + 2.52448340349684104192e-3
    q = (q * square + 2.27265548208155028766e-1) * square + 2.00000000000000000005
    y = 1.0 + 2.0 * (p / (q - p))
    exponent = np.int64((np.float64(shifted).view(np.int64) + 1023) << 52)
    return y * exponent.view(np.float64)


@kernel
def sigmoid(x: np.float32) -> np.float32:
    """``1 / (1 + e**-x)``."""
    return np.float32(1) / (np.float32(1) + exp(-x))


@inlined
def float32(bits: np.uint16) -> np.float32:
    """A finite float16 number, given by its bits."""
    # As bits of float32, its exponent is 112 too small.
    magnitude = np.int32((bits & 0x7FFF) << 13).view(np.float32) * np.float32(2.0**112)
    return -magnitude if bits & 0x8000 else magnitude


def widened(scale: np.uint16 | np.float32) -> np.float32:
    """A scale as it lies in memory, the bits of float16 or float32 itself, as a number; in kernels only."""
    raise NotImplementedError


# Numba asks for the code of each type.
@overload(widened)
def _widened(scale):  # type: ignore[no-untyped-def]
    if isinstance(scale, types.Float):
        return lambda scale: scale
    return lambda scale: float32(scale)


# Bytes.
_CACHE_LINE = 64


def scratch(kind: types.Type, count: int) -> Callable[[], c_void_p]:
    """A function that a kernel calls for the address of `count` numbers on its stack, not yet set."""

    def typed(_typing: object) -> tuple[Any, Any]:
        def generate(context: Any, builder: Any, signature: Any, _arguments: Any) -> Any:
            element = context.get_value_type(signature.return_type.dtype)
            memory: Any = cgutils.alloca_once(builder, ir.ArrayType(element, count))  # type: ignore[no-untyped-call]
            memory.align = _CACHE_LINE
            return builder.bitcast(memory, element.as_pointer())

        return types.CPointer(kind)(), generate  # type: ignore[no-untyped-call]

    return cast(Callable[[], c_void_p], intrinsic(typed))


_numbers = scratch(types.float32, LANES)


@inlined
def float32_lanes() -> NDArray[np.float32]:
    """`LANES` float32 numbers, not yet set, until the calling kernel returns."""
    return carray(_numbers(), LANES, np.float32)


INT8, INT16, INT32, INT64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOAT, HALF = ir.FloatType(), ir.HalfType()


def vector(element: ir.Type, count: int) -> ir.Type:
    """The type of `count` elements in a register."""
    return ir.VectorType(element, count)


def integer(value: int) -> ir.Constant:
    """A constant offset or count."""
    return ir.Constant(INT64, value)


def filled(kind: ir.Type, value: float) -> ir.Constant:
    """A vector of equal constants."""
    return ir.Constant(kind, [value] * kind.count)


def splat(builder: ir.IRBuilder, value: ir.Value, count: int) -> ir.Value:
    """A vector of `count` copies of a number."""
    nothing = ir.Constant(vector(value.type, count), ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(INT32, 0))
    return builder.shuffle_vector(first, nothing, filled(vector(INT32, count), 0))


def pointer(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """The same address, of bytes."""
    return builder.bitcast(address, INT8.as_pointer())


def moved(builder: ir.IRBuilder, start: ir.Value, offset: ir.Value) -> ir.Value:
    """The address `offset` bytes further."""
    return builder.gep(start, [offset])


def load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    """What lies there, however it is aligned: on aligned addresses that costs no more."""
    return builder.load(builder.bitcast(address, kind.as_pointer()), align=1)


def store(builder: ir.IRBuilder, value: ir.Value, address: ir.Value) -> None:
    """Write to an address that need not be aligned."""
    builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=1)


def prefetch(builder: ir.IRBuilder, address: ir.Value, *, cache: int = 2) -> None:
    """Ask for a line of memory in the cache of the first or second level; any address will do."""
    # To read, of some locality, data.
    flags = [ir.Constant(INT32, flag) for flag in (0, 4 - cache, 1)]
    call(builder, "llvm.prefetch", ir.VoidType(), [address, *flags])


# Numba's code generation has no types.
def _ask(_typing: object, array: Any, offset: Any) -> tuple[Any, Any]:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        prefetch(builder, moved(builder, pointer(builder, data), arguments[1]))
        return context.get_dummy_value()

    return types.void(array, offset), generate


# ``ask(array, offset)`` in a kernel: ask for the line of memory so many bytes after the array's beginning, or end.
ask = cast(Callable[..., None], intrinsic(_ask))


def call(
    builder: ir.IRBuilder, name: str, result: ir.Type, arguments: Sequence[ir.Value]
) -> ir.Value:
    """The result of one of LLVM's intrinsics."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
    return builder.call(function, arguments)


def pinned(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """The same vector, in a register, of which LLVM knows nothing: what is pinned is computed in the order written."""
    kind = ir.FunctionType(value.type, [value.type])
    return builder.asm(kind, "", "=v,0", [value], side_effect=True)
