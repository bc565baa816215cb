"""This file holds how five ternary codes share a byte: which byte stands for which codes, and how registers tell.

5 codes have 243 values, a byte 256, so 5 columns take 8 bits instead of 10: what a large model takes of memory, and
reads from it for each token, shrinks by a fifth. Bytes are chosen for the instructions that must take them apart.

``table_trits`` are for AVX-512 VBMI, which looks 64 bytes up at once in a table of 64 or 128 entries. A part of the
bits of a byte decides each code:

* bits 0 to 5 decide codes 0 and 1, by `FIRST`, which holds 3 times the one plus the other,
* bits 2 to 7 decide codes 2 and 3, by `SECOND`,
* all bits but bit 3 decide code 4, by `THIRD`, at the place that `third_index` gives.

Most random tables do not have all 243 values; these were found by changing entries at random and keeping, ever more
often, what added values (simulated annealing), in seconds. Any others would do.

``power_trits`` are for AVX2. The codes are digits to base 3, the first the highest, of a number v that is scaled up to
256: ``ceil(256 v / 243)``, less 128. Two comparisons tell the first code, and three times the byte, whose overflow
falls off, is the byte of the codes after it. Files with trits have the same numbers, for this reason, without a sign.

Codes are counted from 0 to 2.
"""

import functools
from collections.abc import Iterator
from typing import Literal

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from nanochat.backends.numba.runtime.isa import Isa, cpu_features
from nanochat.backends.numba.runtime.vectors import INT8, INT16, INT32, call, filled, pinned, vector

__all__ = ["FIRST", "KEPT", "SECOND", "THIRD", "CodeLayout", "TritLayout"]
__all__ += ["bytes_of", "codes_of", "layout_for", "register_bytes", "separated", "third_index"]

# How five codes lie in a byte.
TritLayout = Literal["table_trits", "power_trits"]
# How ternary codes lie in memory.
CodeLayout = Literal["two_bits", "table_trits", "power_trits"]

FIRST = [int(c) for c in "7326158436750387506283782016154180240452076320456371221488715364"]
SECOND = [int(c) for c in "1418558514071480758224603852401231360337617368275660401375462278"]
THIRD = [
    int(c)
    for c in "0201212112122200010011220121220001200000111111220222121212121022"
    "0200010000100122021011200211102112220020101021212021111002201210"
]

# Bits that `third_index` leaves in their place; places 3 and 5 take those from two places above.
KEPT = 0b01010111

# Bit by bit, the second number where the first is 1, and else the third.
_CHOOSE = 0xCA


def third_index(byte: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The place in `THIRD`."""
    taken = np.uint8(0x7F & ~KEPT)
    return byte & np.uint8(KEPT) | byte >> np.uint8(2) & taken


@functools.cache
def codes_of(layout: TritLayout) -> NDArray[np.uint8]:
    """The five codes, from 0 to 2, of every byte, (256, 5)."""
    byte = np.arange(256, dtype=np.uint8)
    if layout == "table_trits":
        pairs = [np.array(FIRST, np.uint8)[byte & 63], np.array(SECOND, np.uint8)[byte >> 2]]
        codes = [part for pair in pairs for part in (pair // 3, pair % 3)]
        return np.stack([*codes, np.array(THIRD, np.uint8)[third_index(byte)]], 1)
    rest = (byte ^ np.uint8(128)).astype(np.uint16)
    codes = []
    for _ in range(5):
        codes.append((3 * rest >> 8).astype(np.uint8))
        rest = 3 * rest & np.uint16(255)
    return np.stack(codes, 1)


@functools.cache
def bytes_of(layout: TritLayout) -> NDArray[np.uint8]:
    """The byte for five codes of two bits, the first in the lowest bits, (1024,); 0 for codes that are not legal."""
    found = np.zeros(1024, np.uint8)
    for byte, codes in enumerate(codes_of(layout)):
        found[sum(int(code) << 2 * n for n, code in enumerate(codes))] = byte
    return found


def layout_for(isa: Isa) -> TritLayout | None:
    """The bytes that an instruction set takes apart, if this CPU can, and it is worth it."""
    match isa:
        case "avx512vnni":
            return "table_trits" if "avx512vbmi" in cpu_features() else None
        case "avxvnni" | "avx2":
            return "power_trits"
    return None


def register_bytes(layout: TritLayout) -> int:
    """Bytes that are taken apart at once."""
    return 64 if layout == "table_trits" else 32


def separated(builder: ir.IRBuilder, layout: TritLayout, packed: ir.Value) -> Iterator[ir.Value]:
    """The codes of a register of bytes: all first ones, then all second ones, and so on to five.

    Their code is written one after the other, as in `Arithmetic.fields`.
    """
    return _looked_up(builder, packed) if layout == "table_trits" else _compared(builder, packed)


def _looked_up(builder: ir.IRBuilder, packed: ir.Value) -> Iterator[ir.Value]:
    bytes_, numbers, wide = vector(INT8, 64), vector(INT32, 16), vector(INT16, 32)
    # What comes in from the next byte is in bits that no look-up sees.
    upper = builder.lshr(builder.bitcast(packed, wide), filled(wide, 2))
    upper_bytes = builder.bitcast(upper, bytes_)
    for bits, table in (packed, FIRST), (upper_bytes, SECOND):
        for part in ([pair // 3 for pair in table], [pair % 3 for pair in table]):
            looked_up = [ir.Constant(bytes_, part), bits]
            yield call(builder, "llvm.x86.avx512.permvar.qi.512", bytes_, looked_up)
    third = call(
        builder,
        "llvm.x86.avx512.pternlog.d.512",
        numbers,
        [
            filled(numbers, KEPT * 0x01010101),
            builder.bitcast(packed, numbers),
            builder.bitcast(upper, numbers),
            ir.Constant(INT32, _CHOOSE),
        ],
    )
    low, high = ir.Constant(bytes_, THIRD[:64]), ir.Constant(bytes_, THIRD[64:])
    places = [low, builder.bitcast(third, bytes_), high]
    yield call(builder, "llvm.x86.avx512.vpermi2var.qi.512", bytes_, places)


def _compared(builder: ir.IRBuilder, packed: ir.Value) -> Iterator[ir.Value]:
    kind = packed.type
    for number in range(5):
        # Of 256 the code is worth 3 * byte / 256, so it is at least 1 from 86 on, and 2 from 171.
        first = builder.sext(builder.icmp_signed(">", packed, filled(kind, 85 - 128)), kind)
        second = builder.sext(builder.icmp_signed(">", packed, filled(kind, 170 - 128)), kind)
        yield builder.sub(builder.sub(filled(kind, 0), first), second)
        if number < 4:
            # LLVM would multiply by 9, 27 and 81 at once, and cannot multiply bytes.
            packed = pinned(builder, builder.add(builder.add(packed, packed), packed))
