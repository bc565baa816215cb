"""This file holds how kernels move bytes as words: loads and stores at any address, and turns of small tables.

Legend: see `linear`.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from nanochat.backends.numba.runtime.vectors import (
    INT8,
    INT16,
    INT32,
    INT64,
    LANES,
    filled,
    integer,
    load,
    moved,
    pointer,
    store,
    vector,
)

__all__ = ["eight_trits", "part_bytes", "put_word", "sixteen_trits", "turn_words", "word_at"]

_Bytes = NDArray[np.uint8]


# Below, Numba's code generation has no types.
def _start(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return pointer(builder, context.make_array(kind)(context, builder, array).data)


def _word_at(_typing, array, _offset):  # type: ignore[no-untyped-def]
    def generate(context, builder, kinds, arguments):  # type: ignore[no-untyped-def]
        start = _start(context, builder, kinds.args[0], arguments[0])
        return load(builder, moved(builder, start, arguments[1]), INT64)

    return types.uint64(array, types.int64), generate


word_at = cast(Callable[[_Bytes, int], np.uint64], intrinsic(_word_at))
"""The eight bytes from there on."""


def _put_word(_typing, array, _offset, _word):  # type: ignore[no-untyped-def]
    def generate(context, builder, kinds, arguments):  # type: ignore[no-untyped-def]
        start = _start(context, builder, kinds.args[0], arguments[0])
        store(builder, arguments[2], moved(builder, start, arguments[1]))
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint64), generate


put_word = cast(Callable[[_Bytes, int, np.uint64], None], intrinsic(_put_word))
"""Write eight bytes from there on."""


def _part_bytes(_typing, array, _offset, parts):  # type: ignore[no-untyped-def]
    def generate(context, builder, kinds, arguments):  # type: ignore[no-untyped-def]
        start = _start(context, builder, kinds.args[0], arguments[0])
        found = load(builder, moved(builder, start, arguments[1]), vector(INT8, 32))
        order = [4 * word + byte for byte in range(4) for word in range(8)]
        out = _start(context, builder, kinds.args[2], arguments[2])
        store(builder, _shuffled(builder, found, found, order), out)
        return context.get_dummy_value()

    return types.void(array, types.int64, parts), generate


part_bytes = cast(Callable[[_Bytes, int, NDArray[np.uint64]], None], intrinsic(_part_bytes))
"""Of the eight 32-bit words from there on, the first bytes to the first of four numbers, and so on."""


def _five_digits(width: int) -> Callable[[_Bytes, int, _Bytes, int, int], None]:
    def typed(_typing, codes, _offset, packed, _place, _step):  # type: ignore[no-untyped-def]
        def generate(context, builder, kinds, arguments):  # type: ignore[no-untyped-def]
            wide, quads = vector(INT16, width), vector(INT64, width // 4)
            start = _start(context, builder, kinds.args[0], arguments[0])
            bytes_ = load(builder, moved(builder, start, arguments[1]), vector(INT8, width))
            rest = builder.zext(bytes_, wide)
            out = _start(context, builder, kinds.args[2], arguments[2])
            out = moved(builder, out, arguments[3])
            for _ in range(5):
                # A byte is its digits' share of 256, so that multiplying by 3 shifts one out.
                product = builder.mul(rest, filled(wide, 3))
                rest = builder.and_(product, filled(wide, 255))
                digits = builder.bitcast(builder.lshr(product, filled(wide, 8)), quads)
                for down in (14, 28):
                    digits = builder.or_(digits, builder.lshr(digits, filled(quads, down)))
                store(builder, builder.trunc(digits, vector(INT8, width // 4)), out)
                out = moved(builder, out, arguments[4])
            return context.get_dummy_value()

        return types.void(codes, types.int64, packed, types.int64, types.int64), generate

    return cast(Callable[[_Bytes, int, _Bytes, int, int], None], intrinsic(typed))


eight_trits, sixteen_trits = _five_digits(8), _five_digits(16)
"""The first digits of so many bytes of trits, packed, to a place; the second ones a step behind, and so on to five."""


def _turn_words(_typing, lines, _size, _word, laid, _lane):  # type: ignore[no-untyped-def]
    def generate(context, builder, kinds, arguments):  # type: ignore[no-untyped-def]
        size, word, lane = arguments[1], arguments[2], arguments[4]
        four = integer(4)
        start = _start(context, builder, kinds.args[0], arguments[0])
        start = moved(builder, start, builder.mul(word, four))
        rows = [
            load(builder, moved(builder, start, builder.mul(size, integer(r))), vector(INT32, 4))
            for r in range(8)
        ]
        # Row r beside row r + 4, so that no shuffle but this one crosses halves of a register.
        halves = [_shuffled(builder, rows[r], rows[r + 4], range(8)) for r in range(4)]
        pairs = [
            _shuffled(builder, halves[r], halves[r + 1], order)
            for order in ((0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15))
            for r in (0, 2)
        ]
        columns = [
            _shuffled(builder, pairs[p], pairs[p + 1], order)
            for p in (0, 2)
            for order in ((0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15))
        ]
        out = _start(context, builder, kinds.args[3], arguments[3])
        out = moved(builder, out, builder.mul(word, integer(4 * LANES)))
        out = moved(builder, out, builder.mul(lane, four))
        for n, column in enumerate(columns):
            store(builder, column, moved(builder, out, integer(4 * LANES * n)))
        return context.get_dummy_value()

    return types.void(lines, types.int64, types.int64, laid, types.int64), generate


turn_words = cast(
    Callable[[_Bytes, int, int, NDArray[np.uint32], int], None], intrinsic(_turn_words)
)
"""Four words of eight rows of so many bytes, from a word on, to eight lanes of a tile (G, L), from a lane on."""


def _shuffled(builder: Any, first: Any, second: Any, order: Any) -> Any:
    places = [int(place) for place in order]
    return builder.shuffle_vector(first, second, vector(INT32, len(places))(places))
