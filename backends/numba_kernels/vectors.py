"""This file holds the words in which vector code is written for LLVM: constants, loads, broadcasts and intrinsics.

Pointers are to bytes, and offsets count bytes. A vector is as long as its type says; LLVM splits one that no register
holds.
"""

from collections.abc import Sequence

from llvmlite import ir
from numba.core import cgutils

__all__ = ["FLOAT", "HALF", "INT8", "INT16", "INT32", "INT64", "call", "filled", "integer", "load"]
__all__ += ["moved", "pointer", "prefetch", "splat", "store", "vector"]

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


def prefetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Ask for a line of memory in the second-level cache; any address will do."""
    # To read, of some locality, data.
    flags = [ir.Constant(INT32, flag) for flag in (0, 2, 1)]
    call(builder, "llvm.prefetch", ir.VoidType(), [address, *flags])


def call(
    builder: ir.IRBuilder, name: str, result: ir.Type, arguments: Sequence[ir.Value]
) -> ir.Value:
    """The result of one of LLVM's intrinsics."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
    return builder.call(function, arguments)
