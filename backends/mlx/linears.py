"""This file holds linears with packed codes in MLX: their layout, the rounding of their input, and the product.

Ternary and 8-bit linears stay packed. MLX's affine form ``scale * q + bias`` holds them exactly: in 2 bits with
``q = code + 1`` and ``bias = -scale``, in 8 bits with ``q = code + 128`` and ``bias = -128 * scale``. `mx.quantize` is
never called: it spreads its levels over the range of a group, which is another rounding. The input is rounded to int8
as the contract says and multiplied as float32 numbers, since MLX has no integer products.

Legend: R rows of a linear.
"""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.backends.mlx.groups import GROUPS
from nanochat.blocks.plain import plain
from nanochat.errors import ShapeError
from nanochat.weights import Dense, Int8, Latent, Stored, Ternary

__all__ = ["Leaf", "PackedLinear", "WideLinear", "packed_product", "prepare_leaf", "round_blocks"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedLinear:
    """Codes of R rows in uint32 words, with one scale and one bias for each group of columns, (R, groups).

    Rows are padded with zero codes to whole groups; `columns` is the width without them.
    """

    words: mx.array
    scales: mx.array
    biases: mx.array
    bits: int
    group: int
    columns: int
    activation_block: int

    @property
    def rows(self) -> int:
        """R."""
        return len(self.words)


@dataclass(frozen=True, kw_only=True, eq=False)
class WideLinear:
    """Float32 numbers (R, C) of codes in blocks that MLX has no groups for, with an input that is rounded."""

    values: mx.array
    activation_block: int

    @property
    def rows(self) -> int:
        """R."""
        return len(self.values)


Leaf = PackedLinear | WideLinear | mx.array


def prepare_leaf(name: str, leaf: Stored) -> Leaf:
    """The leaf for the GPU: codes stay packed, latent weights are rounded."""
    leaf = plain(leaf)
    if isinstance(leaf, Dense):
        return _dense(name, leaf)
    if isinstance(leaf, Int8):
        if leaf.weight_block < GROUPS[-1] < leaf.codes.shape[1]:
            values = mx.array(ternary.dequantize(leaf.codes, leaf.scales))
            return WideLinear(values=values, activation_block=leaf.activation_block)
        return _pack_bytes(name, leaf.codes, leaf.scales, leaf.activation_block)
    if isinstance(leaf, Ternary):
        return _pack_ternary(name, leaf)
    return _round_latent(name, leaf)


def _dense(name: str, leaf: Dense) -> mx.array:
    # A projection is small, and read at every site.
    if leaf.values.dtype == np.float32 or name.endswith("projection"):
        return mx.array(leaf.values.astype(np.float32))
    dtype = getattr(mx, leaf.values.dtype.name)
    return mx.array(leaf.values.view(np.uint16)).view(dtype)


def round_blocks(blocks: mx.array) -> mx.array:
    """Each block, the last axis, rounded to int8 codes times their scale; see `ternary.quantize_activations`."""
    largest = mx.abs(blocks).max(axis=-1, keepdims=True)
    # A subnormal maximum would make 127 / largest infinite; such a block counts as zeros.
    largest = mx.where(largest < float(np.finfo(np.float32).tiny) * 128, 0.0, largest)
    inverse = mx.where(largest > 0, 127.0 / largest, 0.0)
    # No clip: two roundings cannot carry |x| * (127 / largest) from 127 to 127.5.
    return mx.round(blocks * inverse) * (largest / 127.0)


def packed_product(x: mx.array, linear: PackedLinear, *, most_columns: int) -> mx.array:
    """``x @ w.T``, the sum of products over at most so many columns, a multiple of 128."""
    width = linear.scales.shape[1] * linear.group
    if width > linear.columns:
        x = mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - linear.columns)])
    products = []
    for start in range(0, width, most_columns):
        end = min(start + most_columns, width)
        words = slice(start * linear.bits // 32, end * linear.bits // 32)
        groups = slice(start // linear.group, end // linear.group)
        products.append(
            mx.quantized_matmul(
                x[..., start:end],
                linear.words[:, words],
                linear.scales[:, groups],
                linear.biases[:, groups],
                transpose=True,
                group_size=linear.group,
                bits=linear.bits,
            )
        )
    return sum(products[1:], start=products[0])


def _round_latent(name: str, leaf: Latent) -> PackedLinear:
    if leaf.kind == "int8":
        codes, scales = ternary.quantize_table(leaf.values, block=leaf.weight_block, name=name)
        return _pack_bytes(name, codes, scales, leaf.activation_block)
    codes, scales = ternary.quantize(leaf.values, block=leaf.weight_block, name=name)
    packed = Ternary(
        packed=ternary.pack(codes, name=name),
        scales=scales,
        columns=codes.shape[1],
        activation_block=leaf.activation_block,
    )
    return _pack_ternary(name, packed)


def _pack_ternary(name: str, leaf: Ternary) -> PackedLinear:
    ternary.require_legal(leaf.packed, name)
    # Both layouts put four codes into a byte, lowest bits first; 0b01_01_01_01 is four zero codes.
    return _grouped(
        name,
        leaf.packed,
        leaf.scales,
        columns=leaf.columns,
        activation_block=leaf.activation_block,
        bits=2,
        filling=0b01_01_01_01,
        zero=1,
    )


def _pack_bytes(
    name: str,
    codes: NDArray[np.int8],
    scales: NDArray[np.float16 | np.float32],
    activation_block: int,
) -> PackedLinear:
    return _grouped(
        name,
        (codes.astype(np.int16) + 128).astype(np.uint8),
        scales,
        columns=codes.shape[1],
        activation_block=activation_block,
        bits=8,
        filling=128,
        zero=128,
    )


def _grouped(
    name: str,
    packed: NDArray[np.uint8],
    scales: NDArray[np.float16 | np.float32],
    *,
    columns: int,
    activation_block: int,
    bits: int,
    filling: int,
    zero: int,
) -> PackedLinear:
    """Split rows into the largest groups that MLX has and that lie inside one block of weights.

    `packed` is (R, bytes), `scales` (R, blocks); `filling` is a byte of zero codes, `zero` what stands for code 0.
    """
    block = columns // scales.shape[1]
    group = next((size for size in GROUPS if block % size == 0), GROUPS[-1])
    if block % group and block != columns:
        raise ShapeError(
            f"{name} has blocks of {block} columns, which MLX cannot group: use a weight_block of 128, 256 or row"
        )
    groups = -(-columns // group)
    words = np.full((packed.shape[0], groups * group * bits // 8), filling, np.uint8)
    words[:, : packed.shape[1]] = packed
    repeated = np.repeat(scales.astype(np.float32), groups // scales.shape[1], axis=1)
    return PackedLinear(
        words=mx.array(words.view(np.uint32)),
        scales=mx.array(repeated),
        biases=mx.array(repeated * np.float32(-zero)),
        bits=bits,
        group=group,
        columns=columns,
        activation_block=activation_block,
    )
