"""This file holds how tensors of other people's GGUF files become leaves: codes and scales as they are, or numbers.

References
----------
.. [1] github.com/ggml-org/llama.cpp, ggml/src/ggml-common.h, commit 0c1e570: the types.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import gguf
import numpy as np
from numpy.typing import DTypeLike, NDArray

from nanochat import ternary
from nanochat.blocks.checks import count_zeros, share_of_zeros
from nanochat.blocks.numbers import find_ternary
from nanochat.blocks.packings import unpacked
from nanochat.blocks.plain import plain
from nanochat.errors import FormatError, NumericError
from nanochat.export.gguf.container import GgufTensor
from nanochat.export.gguf.places import with_heads
from nanochat.export.gguf.tables import COLUMNS_OF_SCALE, half_view, integer_table
from nanochat.export.gguf.types import (
    BF16,
    F16,
    F32,
    I2_S,
    PACKINGS,
    Q2_0,
    TensorType,
    packed_i2_s,
    stored_blocks,
    unpack_q8_0,
)
from nanochat.export.places import Place
from nanochat.weights import DENSE_DTYPES, Dense, Int8, Spec, Stored, Ternary, TernaryBlocks

__all__ = [
    "FLOATS",
    "dense_leaf",
    "rounding_error",
    "sampled_zeros",
    "table_leaf",
    "ternary_leaf",
    "widest_block",
]

# Types of numbers, which may all be zeros and one magnitude in every block.
_NUMBERS: Mapping[TensorType, DTypeLike] = {
    F16: DENSE_DTYPES["float16"],
    BF16: DENSE_DTYPES["bfloat16"],
    F32: DENSE_DTYPES["float32"],
}
FLOATS = tuple(_NUMBERS)
# Rows of a matrix that are looked at before a model is loaded.
_SAMPLED_ROWS = 64
_LARGEST = float(np.finfo(np.float16).max)


def ternary_leaf(
    name: str, tensor: GgufTensor, place: Place, spec: Spec, *, factor: float, where: str
) -> Ternary | TernaryBlocks:
    """A ternary matrix, whose scales are multiplied with a factor; neither read nor checked where that can wait.

    Errors name it, those of whoever reads it later by `where`.
    """
    data = _rows(tensor, place, spec)
    kind = tensor.kind
    if kind == I2_S:
        packed, scale = packed_i2_s(data, tensor.tail, name=name)
        packed = packed[_index(data, place)]
        return _in_order(_of_one_scale(name, packed, float(scale) * factor, spec), place, spec)
    if kind in FLOATS:
        return _in_order(_recovered(name, kind, data[_index(data, place)], spec), place, spec)
    stored, stored_scales = stored_blocks(kind, data)
    blocks, heads = np.arange(stored_scales.shape[1]), place.heads
    if heads is not None:
        width = spec.shape[1] // len(heads)
        if width % kind.columns == 0:
            share = width // kind.columns
            blocks = (share * heads[:, None] + np.arange(share)).reshape(-1)
            heads = None
    leaf = TernaryBlocks(
        codes=stored,
        scales=stored_scales,
        packing=PACKINGS[kind],
        rows=_index(data, place),
        blocks=blocks,
        columns=spec.shape[1],
        weight_block=spec.weight_block,
        activation_block=spec.activation_block,
        name=where,
        factor=factor,
    )
    if heads is None:
        return leaf
    # Blocks that are wider than a head cannot be moved as they are.
    whole: Stored = plain(replace(leaf, weight_block=math.gcd(kind.columns, width)))
    assert isinstance(whole, Ternary)
    return _in_order(whole, place, spec)


def widest_block(tensors: Mapping[str, GgufTensor]) -> int:
    """The most columns, of 64, 128 and 256, that share a scale in all of these matrices."""
    kinds = {tensor.kind for tensor in tensors.values()}
    block = min((kind.columns for kind in kinds if kind in PACKINGS), default=256)
    if Q2_0 in kinds and all(
        _pairs_share(tensor) for tensor in tensors.values() if tensor.kind == Q2_0
    ):
        block = min((kind.columns for kind in kinds - {Q2_0} if kind in PACKINGS), default=128)
        block = min(block, 128)
    for name, tensor in tensors.items():
        if tensor.kind in FLOATS:
            block = min(block, _ternary_block(name, tensor))
    return block


def table_leaf(name: str, tensor: GgufTensor, spec: Spec) -> Stored:
    """An embedding or head that is not ternary, as it is stored."""
    data = tensor.data.reshape(spec.shape[0], -1)
    if spec.kind == "dense":
        if spec.dtype == "float32":
            return Dense(values=_numbers(name, tensor).reshape(spec.shape))
        return Dense(values=half_view(tensor.kind, data))
    assert tensor.kind in COLUMNS_OF_SCALE
    if spec.weight_block == spec.shape[1]:
        codes, scales = unpack_q8_0(data, num_scales=1, name=name)
    else:
        codes, scales = integer_table(tensor.kind, data, name=name)  # type: ignore[assignment]  # or float32
    return Int8(codes=codes, scales=scales, activation_block=spec.activation_block)


def dense_leaf(name: str, tensor: GgufTensor, place: Place, spec: Spec) -> Dense:
    """A norm, router or gate, or what else has numbers."""
    values = _numbers(name, tensor).reshape(-1, *spec.shape[1:])
    if place.rows is not None:
        values = values[place.rows]
    return Dense(values=values.reshape(spec.shape).astype(DENSE_DTYPES[spec.dtype], copy=False))


def sampled_zeros(name: str, tensor: GgufTensor) -> float:
    """The share of zeros in the first rows of a ternary matrix."""
    kind = tensor.kind
    rows = math.prod(tensor.shape[:-1])
    data = tensor.data.reshape(rows, -1)[:_SAMPLED_ROWS]
    if kind == I2_S:
        packed = unpacked(PACKINGS[kind], data.reshape(len(data), -1, kind.bytes), name=name)
        scales = np.ones(packed.shape[:2], np.float16)
    else:
        stored, scales = stored_blocks(kind, data)
        packed = unpacked(PACKINGS[kind], stored, name=name)
    return share_of_zeros(count_zeros(packed, name=name), scales, columns=4 * packed.shape[2])


def rounding_error(tensor: GgufTensor, factor: float) -> float:
    """The largest relative error of scales times a factor that are rounded to float16, in the first rows."""
    if tensor.kind == I2_S:
        scales = tensor.tail[:4].copy().view("<f4").astype(np.float64)
    elif factor == 1 or tensor.kind in FLOATS:
        return 0.0
    else:
        data = tensor.data.reshape(math.prod(tensor.shape[:-1]), -1)[:_SAMPLED_ROWS]
        scales = stored_blocks(tensor.kind, data)[1].astype(np.float64)
    products = scales[scales > 0] * factor
    products = products[(products >= ternary.SMALLEST_SCALE) & (products < _LARGEST)]
    if not products.size:
        return 0.0
    return float(
        (np.abs(products.astype(np.float16).astype(np.float64) - products) / products).max()
    )


def _rows(tensor: GgufTensor, place: Place, spec: Spec) -> NDArray[np.uint8]:
    """The bytes of a matrix, by row: one of a stack, if it is of experts."""
    data = tensor.data.reshape(math.prod(tensor.shape[:-1]), -1)
    if place.expert is not None:
        data = data[place.expert * spec.shape[0] :][: spec.shape[0]]
    return data


def _index(data: NDArray[np.uint8], place: Place) -> NDArray[np.int64]:
    return np.arange(len(data), dtype=np.int64) if place.rows is None else place.rows


def _recovered(name: str, kind: TensorType, data: NDArray[np.uint8], spec: Spec) -> Ternary:
    """A matrix of numbers that are ternary, of the bytes of its rows."""
    values = data.reshape(len(data), -1).view(_NUMBERS[kind])
    found = find_ternary(values, block=spec.weight_block, name=name)
    return _ternary(found.packed, found.shared_scales(1), spec)


def _of_one_scale(name: str, packed: NDArray[np.uint8], scale: float, spec: Spec) -> Ternary:
    rows, blocks = len(packed), spec.shape[1] // spec.weight_block
    narrow = np.float16(scale)
    if not ternary.SMALLEST_SCALE <= narrow < np.inf:
        raise NumericError(
            f"{name} has the scale {scale:g}, which float16 does not hold without loss: rescale the matrix, or fetch "
            "the file again"
        )
    return _ternary(packed.reshape(rows, -1), np.full((rows, blocks), narrow), spec)


def _ternary(packed: NDArray[np.uint8], scales: NDArray[np.float16], spec: Spec) -> Ternary:
    return Ternary(
        packed=packed,
        scales=scales,
        columns=spec.shape[1],
        activation_block=spec.activation_block,
    )


def _in_order(leaf: Ternary, place: Place, spec: Spec) -> Ternary:
    """The same with its columns head by head in the order that its place has, if it has one."""
    if place.heads is None:
        return leaf
    moved = with_heads(leaf, place.heads)
    rows, wanted = len(moved.packed), spec.shape[1] // spec.weight_block
    scales = moved.scales
    if wanted > scales.shape[1]:
        scales = np.repeat(scales, wanted // scales.shape[1], axis=1)
    grouped = scales.reshape(rows, wanted, -1)
    if (grouped != grouped[:, :, :1]).any():
        raise FormatError(
            f"scales of {spec.weight_block} columns are those of several heads: pass a file with blocks of 128 or 64"
        )
    return replace(moved, scales=np.ascontiguousarray(grouped[:, :, 0]))


def _pairs_share(tensor: GgufTensor) -> bool:
    """Whether every two neighbouring blocks of a row have one scale."""
    if tensor.shape[-1] % (2 * Q2_0.columns):
        return False
    data = tensor.data.reshape(math.prod(tensor.shape[:-1]), -1)
    _, scales = stored_blocks(Q2_0, data)
    bits = scales.view(np.uint16)
    return bool((bits[:, ::2] == bits[:, 1::2]).all())


def _ternary_block(name: str, tensor: GgufTensor) -> int:
    """The most columns that share a magnitude in a matrix of numbers."""
    columns = tensor.shape[-1]
    values = tensor.data.view(_NUMBERS[tensor.kind]).reshape(-1, columns)
    found = find_ternary(values, block=64, name=name)
    return next((b for b in (256, 128) if columns % b == 0 and found.is_shared(b // 64)), 64)


def _numbers(name: str, tensor: GgufTensor) -> NDArray[np.float32]:
    """A tensor's numbers, whatever its type."""
    kind: TensorType = tensor.kind
    data = tensor.data.reshape(math.prod(tensor.shape[:-1]), -1)
    try:
        values = gguf.dequantize(data, gguf.GGMLQuantizationType(kind.number))
    # The library knows no such type, or has no way back from it.
    except (NotImplementedError, ValueError, KeyError) as error:
        raise FormatError(
            f"{name} is of type {kind.name}, which the gguf library cannot turn into numbers, as is done here with "
            "norms, routers and gates: pass a file of the same model in which it is F32, F16 or BF16"
        ) from error
    return np.ascontiguousarray(values, np.float32).reshape(tensor.shape)
