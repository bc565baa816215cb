"""This file holds what Numba has no words for: atomic memory, a pause, and calls of a kernel by its address.

A kernel ``f(arrays ..., numbers ..., first, last)`` is called through a small function of one type for all kernels,
``entry(block, first, last)``, where `block` is an int64 array with the kernel's address and its arguments one after the
other: an array is its address and its shape, a whole number itself, a float its bits. So one compiled loop can run any
list of calls, and an entry serves all kernels of its signature, in every process: it is kept as kernels are.
"""

import functools
import hashlib
import struct
from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import Dispatcher
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numba.np.numpy_support import from_dtype
from numpy.typing import NDArray

from nanochat.backends.numba.runtime.compilation import Files, kept_near

__all__ = ["Signature", "add", "address", "call", "call_plain", "compare_and_swap", "entries"]
__all__ += ["load"]
__all__ += ["pack", "pause", "peek", "signature", "store"]

_INT64 = ir.IntType(64)
_ENTRY = ir.FunctionType(ir.VoidType(), [_INT64.as_pointer(), _INT64, _INT64])

_Words = NDArray[np.int64]

# The types of a kernel's arguments, without `first` and `last`.
Signature = tuple[types.Type, ...]


def signature(arguments: tuple[object, ...]) -> Signature:
    """Numba's types of arrays, whole numbers and floats; arrays are taken for writable and in C order."""
    return tuple(_type(argument) for argument in arguments)


def entries(signatures: Iterable[Signature], *, near: Callable[..., object]) -> list[int]:
    """The addresses of the entries of kernels with these signatures, which are never freed.

    Twenty new ones at once take hardly longer than one; they are kept where that kernel is.
    """
    wanted = [*signatures]
    new = sorted({kinds for kinds in wanted if kinds not in _ENTRIES}, key=str)
    if new:
        _ENTRIES.update(zip(new, _link(tuple(new), kept_near(near, "entries")), strict=True))
    return [_ENTRIES[kinds] for kinds in wanted]


# The addresses of entries, and their libraries, as long as which their code lives.
_ENTRIES: dict[Signature, int] = {}
_LIBRARIES: list[object] = []


def address(kernel: Callable[..., object], kinds: Signature) -> int:
    """Compile a kernel for arguments of these types, and give its address."""
    dispatcher = cast(Dispatcher, kernel)
    whole = (*kinds, types.int64, types.int64)
    dispatcher.compile(whole)
    compiled: Any = dispatcher.overloads[whole]
    address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    assert address, "Numba gave the kernel no symbol"
    return int(address)


def pack(arguments: tuple[object, ...], kinds: Signature) -> NDArray[np.int64]:
    """The block of a call; its arrays must live as long as it. Types are checked here: a kernel checks nothing."""
    # The first is the kernel's address.
    words: list[int] = [0]
    for argument, kind in zip(arguments, kinds, strict=True):
        if isinstance(argument, np.ndarray):
            if _array(argument.dtype, argument.ndim) != kind or not argument.flags.c_contiguous:
                raise TypeError(
                    f"a kernel compiled for {kind} got {argument.dtype}, shape {argument.shape}"
                )
            words += [argument.__array_interface__["data"][0], *argument.shape]
        elif isinstance(argument, float) and kind == types.float64:
            words += struct.unpack("q", struct.pack("d", argument))
        elif isinstance(argument, int) and kind == types.int64:
            words.append(argument)
        else:
            raise TypeError(f"a kernel compiled for {kind} got {argument!r:.40}")
    return np.array(words, np.int64)


def _type(argument: object) -> types.Type:
    if isinstance(argument, np.ndarray):
        return _array(argument.dtype, argument.ndim)
    return types.float64 if isinstance(argument, float) else types.int64


# To make one takes ten times as long as to find it, and a step has a thousand.
@functools.cache
def _array(dtype: np.dtype[Any], ndim: int) -> types.Type:
    return types.Array(from_dtype(dtype), ndim, "C")


# Below, Numba's code generation has no types.
@global_compiler_lock  # type: ignore[untyped-decorator]
def _link(signatures: tuple[Signature, ...], files: Files | None) -> list[int]:
    context: Any = cpu_target.target_context
    codegen = context.codegen()
    key = codegen.magic_tuple(), signatures
    kept = None if files is None else files.load(key)
    if kept is None:
        library = _written(context, signatures)
        if files is not None:
            files.save(key, library.serialize_using_object_code())
    else:
        library = codegen.unserialize_library(kept)
    _LIBRARIES.append(library)
    return [int(library.get_pointer_to_function(_name(kinds))) for kinds in signatures]


def _written(context: Any, signatures: tuple[Signature, ...]) -> Any:
    library = context.codegen().create_library("entries")
    library.enable_object_caching()
    module = library.create_ir_module("entries")
    for kinds in signatures:
        _write_entry(context, module, kinds)
    library.add_ir_module(module)
    library.finalize()
    return library


def _name(kinds: Signature) -> str:
    return f"nanochat_entry_{hashlib.sha256(str(kinds).encode()).hexdigest()[:16]}"


def _write_entry(context: Any, module: Any, kinds: Signature) -> None:
    function = ir.Function(module, _ENTRY, _name(kinds))
    builder = ir.IRBuilder(function.append_basic_block())
    block, first, last = function.args
    words = iter(range(2**31))

    def word() -> ir.Instruction:
        return builder.load(builder.gep(block, [ir.Constant(_INT64, next(words))]))

    address = word()
    values = [_argument(context, builder, kind, word) for kind in kinds] + [first, last]
    whole = (*kinds, types.int64, types.int64)
    callee = builder.inttoptr(
        address,
        context.call_conv.get_function_type(types.none, whole).as_pointer(),
    )
    context.call_conv.call_function(builder, callee, types.none, whole, values)
    builder.ret_void()


def _argument(context: Any, builder: Any, kind: types.Type, word: Callable[[], Any]) -> Any:
    if kind == types.float64:
        return builder.bitcast(word(), ir.DoubleType())
    if not isinstance(kind, types.Array):
        return word()
    # What is not set is null. `make_array` and `populate_array` would do the same, but look up constants for it, and so
    # import all that Numba compiles with.
    array: Any = cgutils.create_struct_proxy(kind)(context, builder)  # type: ignore[no-untyped-call]
    element = context.get_data_type(kind.dtype)
    array.itemsize = size = ir.Constant(_INT64, context.get_abi_sizeof(element))
    array.data = builder.inttoptr(word(), element.as_pointer())
    shape = [word() for _ in range(kind.ndim)]
    strides: list[Any] = []
    count = ir.Constant(_INT64, 1)
    for length in reversed(shape):
        strides.insert(0, builder.mul(count, size))
        count = builder.mul(count, length)
    array.nitems = count
    array.shape = cgutils.pack_array(builder, shape)  # type: ignore[no-untyped-call]
    array.strides = cgutils.pack_array(builder, strides)  # type: ignore[no-untyped-call]
    return array._getvalue()


def _element(context: Any, builder: Any, kinds: Any, arguments: Any) -> Any:
    array = context.make_array(kinds.args[0])(context, builder, arguments[0])
    return builder.gep(array.data, [arguments[1]])


def _load(_typing, array, index):  # type: ignore[no-untyped-def]
    def generate(context, builder, kinds, arguments):  # type: ignore[no-untyped-def]
        return builder.load_atomic(_element(context, builder, kinds, arguments), "acquire", 8)

    return types.int64(array, types.int64), generate


load = cast(Callable[[_Words, int], int], intrinsic(_load))
"""``array[index]``, and everything that was written before what it finds there was stored."""


def _store(_typing, array, index, value):  # type: ignore[no-untyped-def]
    def generate(context, builder, kinds, arguments):  # type: ignore[no-untyped-def]
        address = _element(context, builder, kinds, arguments)
        builder.store_atomic(arguments[2], address, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


store = cast(Callable[[_Words, int, int], None], intrinsic(_store))
"""``array[index] = value``, ordered after all that this thread wrote and before all that it reads later."""


def _add(_typing, array, index, value):  # type: ignore[no-untyped-def]
    def generate(context, builder, kinds, arguments):  # type: ignore[no-untyped-def]
        address = _element(context, builder, kinds, arguments)
        return builder.atomic_rmw("add", address, arguments[2], "acq_rel")

    return types.int64(array, types.int64, types.int64), generate


add = cast(Callable[[_Words, int, int], int], intrinsic(_add))
"""Add to ``array[index]`` in one step; gives what was there before."""


def _compare_and_swap(_typing, array, index, expected, value):  # type: ignore[no-untyped-def]
    def generate(context, builder, kinds, arguments):  # type: ignore[no-untyped-def]
        address = _element(context, builder, kinds, arguments)
        pair = builder.cmpxchg(address, arguments[2], arguments[3], "acq_rel", "acquire")
        return builder.extract_value(pair, 1)

    return types.boolean(array, types.int64, types.int64, types.int64), generate


compare_and_swap = cast(Callable[[_Words, int, int, int], bool], intrinsic(_compare_and_swap))
"""Put `value` into ``array[index]`` if `expected` is there, in one step; whether it was."""


def _pause(_typing):  # type: ignore[no-untyped-def]
    def generate(context, builder, _kinds, _arguments):  # type: ignore[no-untyped-def]
        triple = builder.module.triple
        if triple.startswith(("x86", "i686", "amd64")):
            name = "llvm.x86.sse2.pause"
            kind = ir.FunctionType(ir.VoidType(), [])
            function = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
            builder.call(function, [])
        elif triple.startswith(("aarch64", "arm64")):
            builder.asm(ir.FunctionType(ir.VoidType(), []), "yield", "", [], side_effect=True)
        return context.get_dummy_value()

    return types.void(), generate


pause = cast(Callable[[], None], intrinsic(_pause))
"""Tell the processor that this thread waits in a loop."""


def _call(_typing, address, block, first, last):  # type: ignore[no-untyped-def]
    def generate(context, builder, _kinds, arguments):  # type: ignore[no-untyped-def]
        function = builder.inttoptr(arguments[0], _ENTRY.as_pointer())
        block = builder.inttoptr(arguments[1], _INT64.as_pointer())
        builder.call(function, [block, arguments[2], arguments[3]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate


call = cast(Callable[[int, int, int, int], None], intrinsic(_call))
"""Call the entry at `address`; see `entries`."""


def _call_plain(_typing, address):  # type: ignore[no-untyped-def]
    def generate(context, builder, _kinds, arguments):  # type: ignore[no-untyped-def]
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), generate


call_plain = cast(Callable[[int], None], intrinsic(_call_plain))
"""Call a function of the system that takes nothing; what it gives is ignored."""


def _peek(_typing, address, index):  # type: ignore[no-untyped-def]
    def generate(_context, builder, _kinds, arguments):  # type: ignore[no-untyped-def]
        words = builder.inttoptr(arguments[0], _INT64.as_pointer())
        return builder.load(builder.gep(words, [arguments[1]]))

    return types.int64(types.int64, types.int64), generate


peek = cast(Callable[[int, int], int], intrinsic(_peek))
"""The int64 that lies `index` words after `address`."""
