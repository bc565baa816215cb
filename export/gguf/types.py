"""This file holds the types of GGUF tensors, and the block formats that carry a model exactly.

Ternary matrices go into TQ2_0, TQ1_0, Q2_0 or F16, 8-bit tables into Q8_0. All but F16 interleave codes with a float16
scale per block. Codes are moved, never rounded again. Shapes are written with R rows, C columns and B blocks of a row.

References
----------
.. [1] github.com/ggml-org/llama.cpp, ggml/src/ggml-common.h and gguf-py/gguf/quants.py, commit 0c1e570.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import gguf
import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.errors import FormatError, NumericError, ShapeError

__all__ = [
    "F16",
    "F32",
    "Q2_0",
    "Q8_0",
    "TQ1_0",
    "TQ2_0",
    "TYPES",
    "TensorType",
    "dequantize_q2_0",
    "pack_q8_0",
    "pack_ternary",
    "unpack_q8_0",
    "unpack_ternary",
]


@dataclass(frozen=True, kw_only=True)
class TensorType:
    """A type of tensors: its name, its number in files, and the columns and bytes of a block."""

    name: str
    number: int
    columns: int
    bytes: int

    def num_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor whose rows are whole blocks."""
        return math.prod(shape) // self.columns * self.bytes


def _library_type(kind: gguf.GGMLQuantizationType) -> TensorType:
    columns, size = gguf.GGML_QUANT_SIZES[kind]
    return TensorType(name=kind.name, number=kind.value, columns=columns, bytes=size)


F32 = _library_type(gguf.GGMLQuantizationType.F32)
F16 = _library_type(gguf.GGMLQuantizationType.F16)
Q8_0 = _library_type(gguf.GGMLQuantizationType.Q8_0)
TQ1_0 = _library_type(gguf.GGMLQuantizationType.TQ1_0)
TQ2_0 = _library_type(gguf.GGMLQuantizationType.TQ2_0)
# In llama.cpp since July 2026; version 0.19 of the gguf library does not know it.
Q2_0 = TensorType(name="Q2_0", number=42, columns=64, bytes=18)
# Every type by its number.
TYPES: Mapping[int, TensorType] = {
    **{kind.value: _library_type(kind) for kind in gguf.GGMLQuantizationType},
    Q2_0.number: Q2_0,
}

_SCALE = np.dtype("<f2")
# Bit positions of four codes in a byte.
_SHIFTS = np.array([0, 2, 4, 6], np.uint8)
# TQ1_0: parts of a block as (codes of a byte, bytes), in the order in which they stand in it.
_PARTS = ((5, 32), (5, 16), (4, 4))
_DIGITS = 5
# A byte is the next whole number above its five digits' share of 256, so that multiplying by 3 shifts a digit out.
_NUMBER_TO_BYTE = np.array(
    [-(-number * 256 // 3**_DIGITS) for number in range(3**_DIGITS)], np.uint8
)
_BYTE_TO_CODES = np.array(
    [[((byte * 3**n & 255) * 3 >> 8) - 1 for n in range(_DIGITS)] for byte in range(256)], np.int8
)


def pack_ternary(
    kind: TensorType, codes: NDArray[np.int8], scales: NDArray[np.float16]
) -> NDArray[np.uint8]:
    """A ternary matrix in `TQ2_0`, `TQ1_0`, `Q2_0` or `F16`, which hold it exactly, (R, bytes of a row).

    Of codes (R, C) and scales (R, S), of which each is repeated for the blocks that it covers.
    """
    rows, columns = codes.shape
    if kind == F16:
        return ternary.dequantize(codes, scales).astype(_SCALE).view(np.uint8)
    pack, _, scale_first = _FORMATS[kind]
    count = ternary.num_blocks(columns, kind.columns)
    if count % scales.shape[1]:
        raise ShapeError(
            f"a scale for every {columns // scales.shape[1]} columns: {kind.name} has one for every "
            f"{kind.columns}; use a format with smaller blocks, or train with a weight_block of {kind.columns}"
        )
    digits = (codes + np.int8(1)).view(np.uint8).reshape(rows, count, kind.columns)
    repeated = np.repeat(scales.astype(_SCALE), count // scales.shape[1], axis=1)
    parts = [pack(digits), repeated[:, :, None].view(np.uint8)]
    return np.concatenate(parts[::-1] if scale_first else parts, axis=2).reshape(rows, -1)


def unpack_ternary(
    kind: TensorType, data: NDArray[np.uint8], *, num_scales: int, name: str
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """The codes and scales of `pack_ternary`, given how many scales a row has, S; the name is for errors.

    From F16, the scale of a block of zeros is 2**-14.
    """
    rows = len(data)
    if kind == F16:
        values = np.ascontiguousarray(data).view(_SCALE)
        return ternary.recover(values, block=values.shape[1] // num_scales, name=name)
    _, unpack, scale_first = _FORMATS[kind]
    blocks = data.reshape(rows, -1, kind.bytes)
    size = _SCALE.itemsize
    if scale_first:
        scales, packed = blocks[:, :, :size], blocks[:, :, size:]
    else:
        packed, scales = blocks[:, :, :-size], blocks[:, :, -size:]
    return unpack(packed, name).reshape(rows, -1), _shared_scales(scales, num_scales, name)


def pack_q8_0(codes: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Blocks of a scale and 32 codes, (R, C / 32 * 34), of codes (R, C) and scales (R,), repeated for every block."""
    rows, columns = codes.shape
    count = ternary.num_blocks(columns, Q8_0.columns)
    repeated = np.repeat(scales.astype(_SCALE)[:, None], count, axis=1)
    blocks = [
        repeated[:, :, None].view(np.uint8),
        codes.reshape(rows, count, Q8_0.columns).view(np.uint8),
    ]
    return np.concatenate(blocks, axis=2).reshape(rows, -1)


def unpack_q8_0(
    data: NDArray[np.uint8], *, name: str
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """The codes and scales of `pack_q8_0`."""
    rows = len(data)
    blocks = data.reshape(rows, -1, Q8_0.bytes)
    codes = np.ascontiguousarray(blocks[:, :, 2:]).view(np.int8).reshape(rows, -1)
    return codes, _shared_scales(blocks[:, :, :2], 1, name)[:, 0]


def dequantize_q2_0(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The numbers of `Q2_0`, (R, C), whose digit 3, which no ternary matrix has, stands for twice the scale."""
    blocks = data.reshape(len(data), -1, Q2_0.bytes)
    scales = np.ascontiguousarray(blocks[:, :, : _SCALE.itemsize]).view(_SCALE).astype(np.float32)
    codes = _split(blocks[:, :, _SCALE.itemsize :, None], _SHIFTS).reshape(*scales.shape[:2], -1)
    return (codes * scales).astype(np.float32).reshape(len(data), -1)


# Each packs digits 0, 1 and 2, (R, B, columns of a block), to the bytes of a block without its scale; and the inverse
# gives codes -1, 0 and 1.


def _pack_tq2_0(digits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Digit n of byte 32 h + m is that of column 128 h + 32 n + m."""
    rows, count, _ = digits.shape
    return _join(digits.reshape(rows, count, 2, 4, 32), axis=3).reshape(rows, count, 64)


def _unpack_tq2_0(packed: NDArray[np.uint8], name: str) -> NDArray[np.int8]:
    ternary.require_legal(packed, name)
    rows, count, _ = packed.shape
    return _split(packed.reshape(rows, count, 2, 1, 32), _SHIFTS[:, None])


def _pack_q2_0(digits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Digit n of byte m is that of column 4 m + n."""
    rows, count, _ = digits.shape
    return _join(digits.reshape(rows, count, 16, 4), axis=3)


def _unpack_q2_0(packed: NDArray[np.uint8], name: str) -> NDArray[np.int8]:
    ternary.require_legal(packed, name)
    return _split(packed[:, :, :, None], _SHIFTS)


def _pack_tq1_0(digits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Digit n of byte m of a part of M bytes is that of the part's column M n + m, the most significant first."""
    rows, count, _ = digits.shape
    parts: list[NDArray[np.uint8]] = []
    begin = 0
    for num_digits, size in _PARTS:
        part = digits[:, :, begin : begin + num_digits * size]
        number = np.zeros((rows, count, size), np.uint8)
        for n, digit in enumerate(np.moveaxis(part.reshape(rows, count, num_digits, size), 2, 0)):
            # At most 2 * 121: no overflow.
            number += digit * np.uint8(3 ** (_DIGITS - 1 - n))
        parts.append(_NUMBER_TO_BYTE[number])
        begin += num_digits * size
    return np.concatenate(parts, axis=2)


def _unpack_tq1_0(packed: NDArray[np.uint8], name: str) -> NDArray[np.int8]:
    rows, count, _ = packed.shape
    parts: list[NDArray[np.int8]] = []
    begin = 0
    for num_digits, size in _PARTS:
        codes = _BYTE_TO_CODES[packed[:, :, begin : begin + size]]
        if (codes[..., num_digits:] != -1).any():
            raise NumericError(
                f"{name} has a digit where a block of TQ1_0 ends: the file is corrupt, fetch it again"
            )
        parts.append(codes[..., :num_digits].swapaxes(2, 3).reshape(rows, count, -1))
        begin += size
    return np.concatenate(parts, axis=2)


def _join(digits: NDArray[np.uint8], *, axis: int) -> NDArray[np.uint8]:
    """Four digits to a byte, lowest bits first."""
    shifts = _SHIFTS.reshape(-1, *[1] * (digits.ndim - 1 - axis))
    joined: NDArray[np.uint8] = np.bitwise_or.reduce(digits << shifts, axis=axis)
    return joined


def _split(packed: NDArray[np.uint8], shifts: NDArray[np.uint8]) -> NDArray[np.int8]:
    codes: NDArray[np.int8] = (packed >> shifts & np.uint8(3)).view(np.int8) - np.int8(1)
    return codes


def _shared_scales(data: NDArray[np.uint8], count: int, name: str) -> NDArray[np.float16]:
    """Return `count` scales of each row, from the two bytes of each of its blocks."""
    bits = np.ascontiguousarray(data).view("<u2").reshape(len(data), count, -1)
    different = np.argwhere(bits != bits[:, :, :1])
    if len(different):
        raise FormatError(
            f"{name} has scales that differ within what should share one, in row {different[0][0]}: "
            "export the model again with nanochat-ternary"
        )
    return bits[:, :, 0].copy().view(_SCALE).astype(np.float16)


# Whether the scale stands before the codes is the last of each.
_FORMATS: Mapping[
    TensorType,
    tuple[
        Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
        Callable[[NDArray[np.uint8], str], NDArray[np.int8]],
        bool,
    ],
] = {
    TQ2_0: (_pack_tq2_0, _unpack_tq2_0, False),
    TQ1_0: (_pack_tq1_0, _unpack_tq1_0, False),
    Q2_0: (_pack_q2_0, _unpack_q2_0, True),
}
