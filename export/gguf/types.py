"""This file holds the types of GGUF tensors, and the block formats that carry a model exactly.

Ternary matrices are in TQ2_0, TQ1_0, Q2_0, PQ2_0, PTQ1_0, Q1_0, I2_S or F16, 8-bit tables in Q8_0. All but F16
interleave codes with a float16 scale per block; I2_S has one scale for all, behind them. Codes are moved, never rounded
again. Shapes are written with R rows, C columns and B blocks of a row.

References
----------
.. [1] github.com/ggml-org/llama.cpp, ggml/src/ggml-common.h and gguf-py/gguf/quants.py, commit 0c1e570.
.. [2] github.com/PrismML-Eng/llama.cpp, ggml/src/ggml-common.h, branch prism: PQ2_0 and PTQ1_0.
.. [3] github.com/microsoft/BitNet, src/ggml-bitnet-mad.cpp: I2_S.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import gguf
import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.blocks.checks import count_zeros
from nanochat.blocks.packings import PARTS, Codec, convert, pack_quarters, pack_trits, unpacked
from nanochat.errors import FormatError, NumericError, ShapeError
from nanochat.weights import Packing

__all__ = [
    "BF16",
    "F16",
    "F32",
    "I2_S",
    "PACKINGS",
    "PQ2_0",
    "PTQ1_0",
    "Q1_0",
    "Q2_0",
    "Q4_0",
    "Q6_K",
    "Q8_0",
    "TQ1_0",
    "TQ2_0",
    "TYPES",
    "TensorType",
    "block_bytes",
    "dequantize_q2_0",
    "pack_q8_0",
    "pack_ternary",
    "packed_blocks",
    "packed_i2_s",
    "stored_blocks",
    "unpack_q8_0",
    "unpack_ternary",
]


@dataclass(frozen=True, kw_only=True)
class TensorType:
    """A type of tensors: its name, its number in files, columns and bytes of a block, and bytes behind all blocks."""

    name: str
    number: int
    columns: int
    bytes: int
    tail: int = 0

    def num_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor whose rows are whole blocks."""
        return math.prod(shape) // self.columns * self.bytes + self.tail


def _library_type(kind: gguf.GGMLQuantizationType) -> TensorType:
    columns, size = gguf.GGML_QUANT_SIZES[kind]
    return TensorType(name=kind.name, number=kind.value, columns=columns, bytes=size)


F32 = _library_type(gguf.GGMLQuantizationType.F32)
F16 = _library_type(gguf.GGMLQuantizationType.F16)
BF16 = _library_type(gguf.GGMLQuantizationType.BF16)
Q4_0 = _library_type(gguf.GGMLQuantizationType.Q4_0)
Q6_K = _library_type(gguf.GGMLQuantizationType.Q6_K)
Q8_0 = _library_type(gguf.GGMLQuantizationType.Q8_0)
TQ1_0 = _library_type(gguf.GGMLQuantizationType.TQ1_0)
TQ2_0 = _library_type(gguf.GGMLQuantizationType.TQ2_0)
# In llama.cpp since 2026: version 0.19 of the gguf library knows the second only, and older ones neither.
Q2_0 = TensorType(name="Q2_0", number=42, columns=64, bytes=18)
Q1_0 = TensorType(name="Q1_0", number=41, columns=128, bytes=18)
# Of a fork of llama.cpp, whose older files have PQ2_0 under the number of Q2_0: see `nanochat.export.gguf.offsets`.
PQ2_0 = TensorType(name="PQ2_0", number=142, columns=128, bytes=34)
PTQ1_0 = TensorType(name="PTQ1_0", number=143, columns=128, bytes=28)
# Of another fork, bitnet.cpp. A float32 scale of the whole tensor stands behind it, and 28 bytes that mean nothing.
I2_S = TensorType(name="I2_S", number=36, columns=128, bytes=32, tail=32)
# Every type by its number.
TYPES: Mapping[int, TensorType] = {
    **{kind.value: _library_type(kind) for kind in gguf.GGMLQuantizationType},
    **{kind.number: kind for kind in (I2_S, Q1_0, Q2_0, PQ2_0, PTQ1_0)},
}

# How the blocks of ternary types pack their codes.
PACKINGS: Mapping[TensorType, Packing] = {
    I2_S: "high_quarters",
    PQ2_0: "pairs",
    PTQ1_0: "trits_128",
    Q1_0: "bits",
    Q2_0: "pairs",
    TQ1_0: "trits_256",
    TQ2_0: "quarters",
}

_SCALE = np.dtype("<f2")


def pack_ternary(
    kind: TensorType, codes: NDArray[np.int8], scales: NDArray[np.float16]
) -> NDArray[np.uint8]:
    """A ternary matrix in one of the types that hold it exactly, (R, bytes of a row).

    Of codes (R, C) and scales (R, S), of which each is repeated for the blocks that it covers. Not in `Q1_0`, which has
    no zeros, nor in `I2_S`, which has one scale.
    """
    if kind == F16:
        return ternary.dequantize(codes, scales).astype(_SCALE).view(np.uint8)
    # Packing fills up a row's last byte.
    ternary.num_blocks(codes.shape[1], kind.columns)
    return block_bytes(kind, ternary.pack(codes), scales)


def block_bytes(
    kind: TensorType, packed: NDArray[np.uint8], scales: NDArray[np.float16]
) -> NDArray[np.uint8]:
    """The same of packed codes, (R, C / 4), which need not be taken apart: the inverse of `packed_blocks`."""
    rows, columns = len(packed), 4 * packed.shape[1]
    count = ternary.num_blocks(columns, kind.columns)
    if count % scales.shape[1]:
        raise ShapeError(
            f"a scale for every {columns // scales.shape[1]} columns: {kind.name} has one for every "
            f"{kind.columns}; use a format with smaller blocks, or train with a weight_block of {kind.columns}"
        )
    blocks = np.empty((rows, count, kind.bytes), np.uint8)
    codes, factors = _halves(kind, blocks)
    convert(packed.reshape(rows, count, -1), _PACKERS[kind], codes)
    factors[...] = np.repeat(scales, count // scales.shape[1], axis=1)
    return blocks.reshape(rows, -1)


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
    packed, scales = packed_blocks(kind, data, name=name)
    count_zeros(packed, name=name)
    columns = scales.shape[1] * kind.columns
    codes = ternary.unpack(packed.reshape(rows, -1), columns=columns, name=name)
    return codes, _shared_scales(scales, num_scales, name)


def packed_blocks(
    kind: TensorType, data: NDArray[np.uint8], *, name: str
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """The packed codes of every block of a ternary matrix, (R, B, columns of a block / 4), and its scales, (R, B).

    Scales are views of `data`, and so are codes in `Q2_0` and `PQ2_0`, which have this package's bytes: none is read.
    The caller checks both, with `nanochat.blocks.checks` or while it lays them out.

    Raises
    ------
    NumericError
        If a byte holds more trits than its block has; the name is for this.
    """
    codes, scales = stored_blocks(kind, data)
    return unpacked(PACKINGS[kind], codes, name=name), scales


def stored_blocks(
    kind: TensorType, data: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """The codes of every block as its type packs them, (R, B, bytes), and the scales, (R, B): views, not looked at."""
    return _halves(kind, data.reshape(len(data), -1, kind.bytes))


def packed_i2_s(
    data: NDArray[np.uint8], tail: NDArray[np.uint8], *, name: str
) -> tuple[NDArray[np.uint8], np.float32]:
    """The packed codes of an `I2_S` matrix, (R, C / 128, 32), and its one scale, of its blocks and what follows them.

    Files have three layouts under this type's number, by the machine that wrote them. This is the one of x86 and of the
    converter, of 128 codes; the others hold the same codes in another order, which nothing in a file tells.

    Raises
    ------
    NumericError
        If a code is 3, none or nearly all are 0, or the scale is not finite and positive: what is read is damaged, or
        is not this type.
    """
    rows = len(data)
    scale = tail[:4].copy().view("<f4")[0]
    if not 0 < scale < np.inf:
        raise NumericError(
            f"{name} has the scale {scale:g}: must be finite and positive; fetch the file again"
        )
    blocks = data.reshape(rows, -1, I2_S.bytes)
    packed = unpacked(PACKINGS[I2_S], blocks, name=name)
    zeros, size = int(count_zeros(packed, name=name).sum(dtype=np.int64)), 4 * packed.size
    if not 0 < zeros < _NEARLY_ALL * size:
        raise NumericError(
            f"{name} has {zeros} zeros in {size} codes: a trained matrix has about a third; the file has another "
            "layout of I2_S or is corrupt: pass the model's Hugging Face folder instead"
        )
    return packed, scale


def pack_q8_0(codes: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Blocks of a scale and 32 codes, (R, C / 32 * 34), of codes (R, C) and scales (R, S), repeated for every block."""
    rows, columns = codes.shape
    count = ternary.num_blocks(columns, Q8_0.columns)
    repeated = np.repeat(scales.astype(_SCALE), count // scales.shape[1], axis=1)
    blocks = [
        repeated[:, :, None].view(np.uint8),
        codes.reshape(rows, count, Q8_0.columns).view(np.uint8),
    ]
    return np.concatenate(blocks, axis=2).reshape(rows, -1)


def unpack_q8_0(
    data: NDArray[np.uint8], *, num_scales: int, name: str
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """The codes and scales of `pack_q8_0`, given how many scales a row has."""
    rows = len(data)
    blocks = data.reshape(rows, -1, Q8_0.bytes)
    codes = np.ascontiguousarray(blocks[:, :, 2:]).view(np.int8).reshape(rows, -1)
    return codes, _shared_scales(blocks[:, :, :2].view(_SCALE)[:, :, 0], num_scales, name)


def dequantize_q2_0(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The numbers of `Q2_0`, (R, C), whose digit 3, which no ternary matrix has, stands for twice the scale."""
    packed, scales = packed_blocks(Q2_0, data, name="")
    # Four shifts, as the table of `ternary.unpack` has no such digit.
    digits = packed[:, :, :, None] >> np.array([0, 2, 4, 6], np.uint8) & np.uint8(3)
    codes = (digits.view(np.int8) - np.int8(1)).reshape(*scales.shape, -1)
    # A scale that is not finite makes numbers that are not, which the caller refuses.
    with np.errstate(invalid="ignore"):
        values = codes * scales.astype(np.float32)[:, :, None]
    return values.astype(np.float32).reshape(len(data), -1)


def _halves(
    kind: TensorType, blocks: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Return views of the codes and of the scales, (R, B), of blocks (R, B, bytes)."""
    size = _SCALE.itemsize
    if kind in _SCALE_FIRST:
        return blocks[:, :, size:], blocks[:, :, :size].view(_SCALE)[:, :, 0]
    return blocks[:, :, :-size], blocks[:, :, -size:].view(_SCALE)[:, :, 0]


def _shared_scales(scales: NDArray[np.float16], count: int, name: str) -> NDArray[np.float16]:
    """Return `count` scales of each row, from those of its blocks."""
    bits = np.ascontiguousarray(scales).view("<u2").reshape(len(scales), count, -1)
    different = np.argwhere(bits != bits[:, :, :1])
    if len(different):
        raise FormatError(
            f"{name} has scales that differ within what should share one, in row {different[0][0]}: "
            "export the model again with nanochat-ternary"
        )
    return bits[:, :, 0].copy().view(_SCALE).astype(np.float16)


# More zeros than any training leaves.
_NEARLY_ALL = 0.95
_SCALE_FIRST = (Q1_0, Q2_0, PQ2_0)
_PACKERS: Mapping[TensorType, Codec] = {
    Q2_0: np.asarray,
    PQ2_0: np.asarray,
    TQ2_0: pack_quarters,
    TQ1_0: partial(pack_trits, parts=PARTS["trits_256"]),
    PTQ1_0: partial(pack_trits, parts=PARTS["trits_128"]),
}
