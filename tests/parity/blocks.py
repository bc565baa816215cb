"""This file holds ternary matrices in the blocks of other programs' files, written by the words of their formats."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.export.gguf.types import PQ2_0, PTQ1_0, Q2_0, TQ1_0, TQ2_0, TensorType, pack_ternary
from nanochat.weights import Packing, Ternary, TernaryBlocks

__all__ = ["KINDS", "Kind", "damaged", "in_blocks", "kind_of"]


@dataclass(frozen=True)
class Kind:
    """A format: how it packs, columns of a block, and the place of the scale in it, if it lies there."""

    name: str
    packing: Packing
    columns: int
    type: TensorType | None = None
    scale_first: bool = True

    def __str__(self) -> str:
        return self.name


KINDS = [
    Kind("Q2_0", "pairs", 64, Q2_0),
    Kind("PQ2_0", "pairs", 128, PQ2_0),
    Kind("MLX", "pairs", 128),
    Kind("TQ2_0", "quarters", 256, TQ2_0, scale_first=False),
    Kind("TQ1_0", "trits_256", 256, TQ1_0, scale_first=False),
    Kind("PTQ1_0", "trits_128", 128, PTQ1_0, scale_first=False),
    Kind("Q1_0", "bits", 128),
    Kind("I2_S", "high_quarters", 128),
]


def in_blocks(
    kind: Kind,
    rows: int,
    blocks: int,
    *,
    weight_block: int | None = None,
    activation_block: int = 128,
    factor: float = 1.0,
) -> tuple[TernaryBlocks, Ternary]:
    """A random matrix whose rows and blocks lie in the file in another order, and the matrix that it stands for.

    Of two more rows in the file than there are in the matrix. Some blocks have no code but 0, and some have the scale
    0. Where blocks share a scale, `weight_block`, all of a row have one.
    """
    generator = np.random.default_rng([rows, blocks, kind.columns])
    codes = generator.integers(-1, 2, (rows + 2, blocks, kind.columns)).astype(np.int8)
    scales = generator.uniform(0.01, 2, (rows + 2, blocks)).astype(np.float16)
    if kind.name == "Q1_0":
        codes[codes == 0] = 1
    elif kind.name == "I2_S":
        scales[:] = 1
    else:
        codes[generator.random(codes.shape[:2]) < 0.1] = 0
        scales[generator.random(scales.shape) < 0.1] = 0
    columns = blocks * kind.columns
    weight_block = kind.columns if weight_block is None else weight_block
    if weight_block > kind.columns:
        scales = np.where(scales == 0, scales, scales.max(axis=1, keepdims=True))
    data, stored = _written(kind, codes, scales)
    row_order, block_order = generator.permutation(rows + 2)[:rows], generator.permutation(blocks)
    leaf = TernaryBlocks(
        codes=data,
        scales=stored,
        packing=kind.packing,
        rows=row_order,
        blocks=block_order,
        columns=columns,
        weight_block=weight_block,
        activation_block=activation_block,
        name="blk.0.attn_q.weight",
        factor=factor,
    )
    return leaf, _matrix(codes[row_order][:, block_order], scales[row_order][:, block_order], leaf)


def kind_of(name: str) -> Kind:
    """The format of that name."""
    return next(kind for kind in KINDS if kind.name == name)


def damaged(
    kind: Kind, *, byte: tuple[int, int] | None = None, scale: float | None = None
) -> TernaryBlocks:
    """A matrix of 37 rows of 2 blocks: the file's row 20, block 1, has another byte, by place and value, or scale."""
    leaf, _ = in_blocks(kind, 37, 2)
    codes, scales = leaf.codes.copy(), leaf.scales.copy()
    if byte is not None:
        codes[20, 1, byte[0]] = byte[1]
    if scale is not None:
        scales[20, 1] = scale
    return replace(leaf, codes=codes, scales=scales, rows=np.arange(38)[::-1].copy())


def _matrix(codes: Any, scales: Any, leaf: TernaryBlocks) -> Ternary:
    codes = np.where(scales[:, :, None] == 0, np.int8(0), codes)
    zero = (codes == 0).all(axis=2)
    with np.errstate(over="ignore"):
        products = (scales.astype(np.float64) * leaf.factor).astype(np.float16)
    count = leaf.columns // leaf.weight_block
    if count > products.shape[1]:
        products, zero = (np.repeat(a, count // a.shape[1], axis=1) for a in (products, zero))
    products = np.where(zero, 0, products).reshape(len(codes), count, -1).max(axis=2)
    return Ternary(
        packed=ternary.pack(codes.reshape(len(codes), -1)),
        scales=np.where(products == 0, 2.0**-14, products).astype(np.float16),
        columns=leaf.columns,
        activation_block=leaf.activation_block,
    )


def _written(kind: Kind, codes: Any, scales: Any) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    rows, blocks, columns = codes.shape
    if kind.type is not None:
        data = pack_ternary(kind.type, codes.reshape(rows, -1), scales)
        data = data.reshape(rows, blocks, -1)
        if kind.scale_first:
            return data[:, :, 2:], data[:, :, :2].view(np.float16)[:, :, 0]
        return data[:, :, :-2], data[:, :, -2:].view(np.float16)[:, :, 0]
    if kind.name == "MLX":
        return ternary.pack(codes.reshape(rows, -1)).reshape(rows, blocks, -1), scales
    if kind.name == "Q1_0":
        data = np.empty((rows, blocks, 2 + columns // 8), np.uint8)
        data[:, :, 2:] = np.packbits(codes > 0, axis=2, bitorder="little")
        data[:, :, :2] = scales[:, :, None].view(np.uint8)
        return data[:, :, 2:], data[:, :, :2].view(np.float16)[:, :, 0]
    digits = (codes + 1).astype(np.uint8).reshape(rows, blocks, 4, 32)
    found = digits[:, :, 0] << 6 | digits[:, :, 1] << 4 | digits[:, :, 2] << 2 | digits[:, :, 3]
    return found, np.broadcast_to(np.float16(1), (rows, blocks))
