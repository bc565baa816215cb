"""This file holds the form in which weights are kept, matrices in tiles of rows, and how they are laid out.

That is done at the speed of memory and without copies: a row is read once, from the checkpoint's file if it lies there,
and a tile is written in the cache.

Legend: see `linear`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.backends.numba.products.activation import padded_width
from nanochat.backends.numba.products.blocks import (
    COLUMNS_OF_BLOCKS,
    COLUMNS_OF_TILES,
    lay,
    run_all,
)
from nanochat.backends.numba.products.trit_codes import CodeLayout
from nanochat.backends.numba.runtime.compilation import kernel
from nanochat.backends.numba.runtime.isa import has_half
from nanochat.backends.numba.runtime.lanes import WORDS, fits_trits
from nanochat.backends.numba.runtime.memory import WeightMemory
from nanochat.backends.numba.runtime.vectors import LANES
from nanochat.blocks.plain import ZEROS, plain, read_rows, scale_table, stored_scales
from nanochat.errors import InputError
from nanochat.tensors import release
from nanochat.weights import Dense, Int8, Latent, Stored, Ternary, TernaryBlocks

__all__ = [
    "Leaf",
    "NarrowMatrix",
    "TiledLinear",
    "TiledProjection",
    "dense",
    "lay_bytes",
    "lay_padded",
    "num_ternary",
    "prepare_leaf",
    "require_trits_fit",
    "tile_projection",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class TiledLinear:
    """A ternary matrix or an 8-bit table, whose rows lie in lanes."""

    # (tiles, blocks, groups, LANES, 4) for ternary codes in two bits, (tiles, blocks / 2, WORDS, LANES, 4) for five to
    # a byte, and (tiles, blocks, 4 groups, LANES, 4) for 8-bit ones, in the order that `linear` describes.
    codes: NDArray[np.uint8]
    # Bits of float16, or float32, (tiles, weight blocks, LANES).
    scales: NDArray[np.uint16 | np.float32]
    rows: int
    columns: int
    activation_block: int
    # How ternary codes lie; 8-bit ones have but one layout, and the name of the usual one.
    layout: CodeLayout = "two_bits"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows, self.columns

    @property
    def is_wide(self) -> bool:
        """Whether scales are float32."""
        return self.scales.dtype == np.float32

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.codes.nbytes + self.scales.nbytes


@dataclass(frozen=True, kw_only=True, eq=False)
class TiledProjection:
    """A projection as the kernels read it."""

    # The bits of float16, or float32, (n C, L).
    numbers: NDArray[np.uint16] | NDArray[np.float32]
    # Without padding.
    rows: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows, len(self.numbers)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.numbers.nbytes


@dataclass(frozen=True, kw_only=True, eq=False)
class NarrowMatrix:
    """A dense matrix of 16 bits a number, (R, C), given as such."""

    bits: NDArray[np.uint16]
    # Whether they are bfloat16, or else float16.
    brain: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        return self.bits.shape

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.bits.nbytes


Leaf = TiledLinear | NarrowMatrix | NDArray[np.float32]


def dense(leaf: Leaf) -> NDArray[np.float32]:
    """The numbers of a leaf that is not rounded."""
    assert isinstance(leaf, np.ndarray)
    return leaf


def prepare_leaf(
    name: str,
    leaf: Stored,
    memory: WeightMemory,
    layout: CodeLayout = "two_bits",
    *,
    threads: int = 1,
) -> Leaf:
    """Lay codes out, after rounding latent weights; copy dense numbers.

    A ternary matrix whose shape the layout does not fit is laid out in two bits. What a mapped file took of the memory
    is given back: a tensor is there twice only while it is laid out.
    """
    prepared = _prepare(name, leaf, memory, layout, threads)
    for values in vars(leaf).values():
        if isinstance(values, np.ndarray):
            release(values)
    return prepared


def num_ternary(leaf: Stored) -> int:
    """How many ternary weights a leaf has."""
    match leaf:
        case Ternary():
            return len(leaf.packed) * leaf.columns
        case TernaryBlocks():
            return len(leaf.rows) * leaf.columns
        case Latent(kind="ternary"):
            return leaf.values.size
    return 0


def require_trits_fit(name: str, leaf: Stored) -> None:
    """Refuse a ternary matrix that cannot be kept five codes to a byte, by an `InputError`."""
    if num_ternary(leaf) == 0:
        return
    assert isinstance(leaf, Ternary | TernaryBlocks | Latent)
    columns = leaf.values.shape[1] if isinstance(leaf, Latent) else leaf.columns
    if not fits_trits(columns, leaf.activation_block):
        raise InputError(
            f"layout='five_trits' keeps pairs of activation blocks of 128 columns, and {name} has {columns} columns in "
            f"blocks of {leaf.activation_block}: choose layout='auto', which keeps such a matrix in two bits"
        )


def _prepare(
    name: str, leaf: Stored, memory: WeightMemory, layout: CodeLayout, threads: int
) -> Leaf:
    match leaf:
        case Dense():
            if leaf.values.itemsize == 2:
                brain = leaf.values.dtype != np.float16
                return NarrowMatrix(bits=np.array(leaf.values.view(np.uint16)), brain=brain)
            return np.array(leaf.values, np.float32, order="C")
        case Int8():
            return _eight_bits(memory, leaf.codes, leaf.scales, leaf.activation_block, threads)
        case Latent(kind="int8"):
            table, table_scales = ternary.quantize_table(
                leaf.values, block=leaf.weight_block, name=name
            )
            return _eight_bits(memory, table, table_scales, leaf.activation_block, threads)
        case Latent():
            codes, scales = ternary.quantize(leaf.values, block=leaf.weight_block, name=name)
            leaf = Ternary(
                packed=ternary.pack(codes, name=name),
                scales=scales,
                columns=leaf.values.shape[1],
                activation_block=leaf.activation_block,
            )
    if leaf.activation_block % COLUMNS_OF_TILES or leaf.weight_block % COLUMNS_OF_BLOCKS:
        return _padded(memory, name, leaf, threads)
    return _ternary(memory, name, leaf, layout, threads)


def _ternary(
    memory: WeightMemory,
    name: str,
    leaf: Ternary | TernaryBlocks,
    layout: CodeLayout,
    threads: int,
) -> TiledLinear:
    columns, block = leaf.columns, leaf.activation_block
    if isinstance(leaf, Ternary):
        stored, table = _as_blocks(name, leaf), stored_scales()
    else:
        stored, table = leaf, scale_table(leaf.factor)
    rows, blocks = len(stored.rows), ternary.num_blocks(columns, block)
    tiles = -(-rows // LANES)
    shape = tiles, blocks, block // COLUMNS_OF_TILES, LANES, 4
    if not fits_trits(columns, block):
        layout = "two_bits"
    elif layout != "two_bits":
        shape = tiles, blocks // 2, WORDS, LANES, 4
    codes = memory.empty(shape, np.uint8)
    scales = memory.empty((tiles, columns // stored.weight_block, LANES), np.uint16)
    wrong = lay(stored, codes, scales, table=table, layout=layout, threads=threads)
    if wrong is not None:
        if isinstance(leaf, Ternary):
            ternary.require_legal(leaf.packed, name)
            ternary.require_finite(leaf.scales, f"the scales of {name}")
        else:
            read_rows(leaf, leaf.rows[wrong * LANES : (wrong + 1) * LANES])
        raise AssertionError(name)
    return TiledLinear(
        codes=codes,
        scales=scales,
        rows=rows,
        columns=columns,
        activation_block=block,
        layout=layout,
    )


def _as_blocks(name: str, leaf: Ternary) -> TernaryBlocks:
    """The same matrix as blocks in the order in which they lie."""
    assert leaf.packed.shape[1] == -(-leaf.columns // 4)
    rows, blocks = leaf.scales.shape
    return TernaryBlocks(
        codes=leaf.packed.reshape(rows, blocks, -1),
        scales=leaf.scales,
        packing="pairs",
        rows=np.arange(rows),
        blocks=np.arange(blocks),
        columns=leaf.columns,
        weight_block=leaf.weight_block,
        activation_block=leaf.activation_block,
        name=name,
    )


def _padded(
    memory: WeightMemory, name: str, leaf: Ternary | TernaryBlocks, threads: int
) -> TiledLinear:
    """A matrix whose blocks are not made of whole words."""
    matrix = plain(leaf)
    assert isinstance(matrix, Ternary)
    ternary.require_legal(matrix.packed, name)
    columns, block = matrix.columns, matrix.activation_block
    assert matrix.packed.shape[1] == -(-columns // 4)
    rows, blocks = len(matrix.packed), ternary.num_blocks(columns, block)
    tiles = -(-rows // LANES)
    codes = memory.empty((tiles, blocks, padded_width(block) // 16, LANES, 4), np.uint8)
    source = np.ascontiguousarray(matrix.packed)
    run_all(
        lay_padded, source, block, codes, tasks=tiles, num_bytes=16 * codes.nbytes, threads=threads
    )
    return TiledLinear(
        codes=codes,
        scales=_scales(memory, matrix.scales),
        rows=rows,
        columns=columns,
        activation_block=block,
    )


def _eight_bits(
    memory: WeightMemory,
    table: NDArray[np.int8],
    scales: NDArray[np.float16 | np.float32],
    block: int,
    threads: int,
) -> TiledLinear:
    rows, columns = table.shape
    tiles, blocks = -(-rows // LANES), ternary.num_blocks(columns, block)
    codes = memory.empty((tiles, blocks, padded_width(block) // 4, LANES, 4), np.uint8)
    source = np.ascontiguousarray(table).view(np.uint8)
    run_all(lay_bytes, source, block, codes, tasks=tiles, num_bytes=codes.nbytes, threads=threads)
    return TiledLinear(
        codes=codes,
        scales=_scales(memory, scales),
        rows=rows,
        columns=columns,
        activation_block=block,
    )


def _scales(
    memory: WeightMemory, scales: NDArray[np.float16 | np.float32]
) -> NDArray[np.uint16 | np.float32]:
    """From (rows, weight blocks), with 0 for rows that are missing in the last tile."""
    rows, blocks = scales.shape
    tiles = -(-rows // LANES)
    kept: NDArray[Any] = scales if scales.dtype == np.float32 else scales.view(np.uint16)
    padded = np.zeros((tiles * LANES, blocks), kept.dtype)
    padded[:rows] = kept
    laid = memory.empty((tiles, blocks, LANES), kept.dtype.type)
    laid[...] = padded.reshape(tiles, LANES, blocks).transpose(0, 2, 1)
    return laid


@kernel
def lay_padded(
    packed: NDArray[np.uint8], block: int, codes: NDArray[np.uint8], first: int, last: int
) -> None:
    """Lay packed rows (R, bytes) out as codes (tiles, B, G, L, 4), whatever the block, one task a tile."""
    blocks, groups = codes.shape[1], codes.shape[2]
    for tile in range(first, last):
        codes_t = codes[tile]
        for lane in range(LANES):
            r = tile * LANES + lane
            if r >= packed.shape[0]:
                codes_t[:, :, lane] = ZEROS
                continue
            row = packed[r]
            for b in range(blocks):
                for i in range(4 * groups):
                    byte = np.uint8(0)
                    for f in range(4):
                        column = b * block + 4 * i + f
                        pair = row[column // 4] >> column % 4 * 2 & 3 if 4 * i + f < block else 1
                        byte |= np.uint8(pair << 2 * f)
                    codes_t[b, i // 4, lane, i % 4] = byte


@kernel
def lay_bytes(
    table: NDArray[np.uint8], block: int, codes: NDArray[np.uint8], first: int, last: int
) -> None:
    """Lay rows of 8-bit codes (R, columns) out as codes (tiles, B, 4 G, L, 4), one task a tile."""
    for tile in range(first, last):
        codes_t = codes[tile]
        for lane in range(LANES):
            r = tile * LANES + lane
            if r >= table.shape[0]:
                codes_t[:, :, lane] = 0
                continue
            for b in range(codes.shape[1]):
                row = table[r, b * block : (b + 1) * block]
                for part in range(codes.shape[2]):
                    start = part // 4 * 16 + part % 4
                    for j in range(4):
                        column = start + 4 * j
                        codes_t[b, part, lane, j] = row[column] if column < block else 0


def tile_projection(projection: NDArray[np.float32 | np.float16]) -> TiledProjection:
    """Lay out a projection (R, n C).

    Numbers that float16 does not hold exactly stay float32, as all do where the processor cannot widen.
    """
    rows, columns = projection.shape
    lanes = -(-rows // 8) * 8
    tiled = np.zeros((columns, lanes), np.float32)
    tiled[:, :rows] = projection.T
    with np.errstate(over="ignore"):
        halves = tiled.astype(np.float16)
    exact = projection.dtype == np.float16 or np.array_equal(halves, tiled)
    return TiledProjection(
        numbers=halves.view(np.uint16) if exact and has_half() else tiled, rows=rows
    )
