"""This file holds the tree of a model's weights, its leaves, and the walks over it.

The tree is generic in its leaves: `shapes` gives a tree of `Spec`, a file one of stored leaves (`Latent`, `Ternary`,
`TernaryBlocks`, `Int8`, `Dense`), a backend one of its own handles. A leaf's name is its dotted path, such as
``layers.0.mixer.q``; it is the key in every file.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DENSE_DTYPES",
    "Attention",
    "Delta",
    "Dense",
    "DenseType",
    "Exit",
    "Experts",
    "FeedForward",
    "Int8",
    "Join",
    "Latent",
    "Layer",
    "LeafKind",
    "Mhc",
    "Node",
    "Packing",
    "Signs",
    "Site",
    "Spec",
    "Stored",
    "Ternary",
    "TernaryBlocks",
    "Weights",
    "leaf_of",
    "map_leaves",
    "named_leaves",
    "replace_leaf",
    "scale_dtype",
]

LeafKind = Literal["ternary", "int8", "dense"]
DenseType = Literal["float32", "float16", "bfloat16"]
# How a block of a file packs ternary codes; see `nanochat.blocks.packings`.
Packing = Literal["bits", "high_quarters", "pairs", "quarters", "trits_128", "trits_256"]
DENSE_DTYPES: Mapping[DenseType, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a leaf must be, without its numbers.

    `shape` is (rows, columns) for linears and tables, `initial` the name of a distribution in `nanochat.init`. Columns
    share a scale in blocks, in the weights and in the input, of which dense leaves have none; `dtype` is that of dense
    numbers, and of the scales of 8-bit tables.
    """

    kind: LeafKind
    shape: tuple[int, ...]
    initial: str
    weight_block: int = 0
    activation_block: int = 0
    dtype: DenseType = "float32"


@dataclass(frozen=True, kw_only=True, eq=False)
class Latent:
    """Float weights that are rounded in every forward pass, with straight-through gradients.

    `kind` says to what: ternary codes or 8 bits, in blocks.
    """

    values: NDArray[np.float32]
    kind: Literal["ternary", "int8"]
    weight_block: int
    activation_block: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Ternary:
    """A packed ternary matrix: bytes (R, ceil(C / 4)) and float16 scales (R, C / weight_block)."""

    packed: NDArray[np.uint8]
    scales: NDArray[np.float16]
    columns: int
    activation_block: int

    @property
    def weight_block(self) -> int:
        """Columns that share a scale."""
        num_blocks: int = self.scales.shape[1]
        return self.columns // num_blocks


@dataclass(frozen=True, kw_only=True, eq=False)
class TernaryBlocks:
    """A ternary matrix as another program's file holds it: views of the mapped file, which nobody has read or checked.

    Of F rows in B blocks there are `codes`, (F, B, bytes of a block), packed as `packing` says, and float16 `scales`,
    (F, B), which may lie among them. Row r of the matrix is row ``rows[r]`` of the file, and its block b of columns is
    block ``blocks[b]``. All scales are multiplied with `factor`, rounded to float16, and there is one for every
    `weight_block` columns: blocks that share one have equal ones. `name` is the tensor's, for errors.

    What does not lay out such bytes itself takes `nanochat.blocks.plain.plain` of a leaf.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    packing: Packing
    rows: NDArray[np.int64]
    blocks: NDArray[np.int64]
    columns: int
    weight_block: int
    activation_block: int
    name: str
    factor: float = 1.0

    def __post_init__(self) -> None:
        num_rows, num_blocks, _ = self.codes.shape
        assert self.scales.shape == (num_rows, num_blocks)
        # Kernels check no bounds.
        for index, count in ((self.rows, num_rows), (self.blocks, num_blocks)):
            assert index.size == 0 or 0 <= index.min() <= index.max() < count, self.name


@dataclass(frozen=True, kw_only=True, eq=False)
class Int8:
    """An embedding or head: codes (R, C) and scales (R, C / weight_block), of which most tables have one for each row.

    Scales are float16, those of blocks of 16 columns float32: in files they are products of two numbers.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float16 | np.float32]
    activation_block: int

    @property
    def weight_block(self) -> int:
        """Columns that share a scale."""
        columns: int = self.codes.shape[1]
        num_blocks: int = self.scales.shape[1]
        return columns // num_blocks


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense:
    """Numbers used in float32, with an input that is not rounded, and kept in any of `DENSE_DTYPES`.

    Those of an mHC projection are float16, for every decoded token reads all of them at every site. Training keeps what
    has 16 bits in float32 and rounds it in every forward pass, half to even, with straight-through gradients.
    """

    values: NDArray[Any]


Stored = Latent | Ternary | TernaryBlocks | Int8 | Dense


def scale_dtype(block: int) -> DenseType:
    """The type of the scales of an 8-bit table; see `Int8`."""
    return "float32" if block == 16 else "float16"


def leaf_of(spec: Spec, values: NDArray[np.float32]) -> Latent | Dense:
    """The leaf in training of such values: latent, or dense and of the type that it has in the file."""
    if spec.kind == "dense":
        return Dense(values=values.astype(DENSE_DTYPES[spec.dtype], copy=False))
    return Latent(
        values=values,
        kind=spec.kind,
        weight_block=spec.weight_block,
        activation_block=spec.activation_block,
    )


L = TypeVar("L")
M = TypeVar("M")


class Node:
    """Marks the inner nodes of the tree; everything else is a leaf."""


@dataclass(frozen=True, kw_only=True)
class Mhc(Node, Generic[L]):
    """Coefficients of one mHC site for n streams of width C; see `Ops.mhc_read`.

    `read`, `write`: (n,). `mix`: (n!,) for lite, (n * n,) for sinkhorn, absent for identity. Dynamic sites have
    `projection`, float16 (2 n + size of mix, n C), rows in the order read, write, mix, and `gates`, (3,).
    """

    read: L
    write: L
    mix: L | None
    projection: L | None
    gates: L | None


@dataclass(frozen=True, kw_only=True)
class Site(Node, Generic[L]):
    """What stands before a sub-layer: its norm's gain (C,) and, with several streams, its mHC coefficients."""

    norm: L
    mhc: Mhc[L] | None


@dataclass(frozen=True, kw_only=True)
class Attention(Node, Generic[L]):
    """Grouped-query attention; H query heads and G key heads of K features."""

    q: L
    k: L
    v: L
    o: L
    gate: L | None
    q_norm: L | None
    k_norm: L | None
    sub_norm: L | None


@dataclass(frozen=True, kw_only=True)
class Delta(Node, Generic[L]):
    """Gated DeltaNet; see `Ops.delta_rule`."""

    q: L
    k: L
    v: L
    gate: L
    o: L
    q_conv: L
    k_conv: L
    v_conv: L
    beta: L
    decay: L
    log_rate: L
    time_bias: L
    norm: L
    sub_norm: L | None


@dataclass(frozen=True, kw_only=True)
class FeedForward(Node, Generic[L]):
    """Feed-forward network; `gate` is absent for plain squared ReLU."""

    gate: L | None
    up: L
    down: L
    sub_norm: L | None


@dataclass(frozen=True, kw_only=True)
class Experts(Node, Generic[L]):
    """Mixture of experts: a router (E, C), E networks, and perhaps one that serves every token."""

    router: L
    networks: tuple[FeedForward[L], ...]
    shared: FeedForward[L] | None


@dataclass(frozen=True, kw_only=True)
class Layer(Node, Generic[L]):
    """A mixer over tokens and a network over features, each behind its site."""

    mixer_site: Site[L]
    mixer: Attention[L] | Delta[L]
    network_site: Site[L]
    network: FeedForward[L] | Experts[L]


@dataclass(frozen=True, kw_only=True)
class Exit(Node, Generic[L]):
    """The exit gate of a LoopLM: gain (C,), weight (1, C), bias (1,)."""

    norm: L
    weight: L
    bias: L


@dataclass(frozen=True, kw_only=True)
class Join(Node, Generic[L]):
    """What a sequential extra head begins with: two linears (C, C), whose inputs are normed, with gains (C,).

    `state` multiplies what stands before it, and `token` the embedding of the token that it sees.
    """

    state_norm: L
    state: L
    token_norm: L
    token: L


@dataclass(frozen=True, kw_only=True)
class Signs(Node, Generic[L]):
    """The signs, 1 or -1, of a rotated model's inputs, for each role; see `Ops.rotate`.

    `stream`: (C,), of what a norm gives to a mixer, a network or the head, and of embeddings. `attention`: (H K,),
    `delta`: (N V,), and `network`: (F,), of what their last linears read.
    """

    stream: L
    attention: L | None
    delta: L | None
    network: L


@dataclass(frozen=True, kw_only=True)
class Weights(Node, Generic[L]):
    """A whole model. `head` is absent when tied; `ahead` predicts the tokens after the next, in training.

    `signs` are there if `rotation_block` is, and `joins` for each of `ahead` if they are sequential.
    """

    embedding: L
    layers: tuple[Layer[L], ...]
    norm: L
    head: L | None
    exit: Exit[L] | None
    ahead: tuple[Layer[L], ...]
    signs: Signs[L] | None = None
    joins: tuple[Join[L], ...] = ()


def map_leaves(function: Callable[[str, L], M], weights: Weights[L]) -> Weights[M]:
    """The same tree with every leaf replaced by ``function(name, leaf)``, in the order of `named_leaves`."""
    return cast("Weights[M]", _map(function, weights, ""))


def _map(function: Callable[[str, L], M], tree: object, path: str) -> object:
    if tree is None:
        return None
    if isinstance(tree, tuple):
        return tuple(_map(function, child, f"{path}.{i}") for i, child in enumerate(tree))
    if isinstance(tree, Node) and dataclasses.is_dataclass(tree):
        children = {
            field.name: _map(function, getattr(tree, field.name), f"{path}.{field.name}")
            for field in dataclasses.fields(tree)
        }
        return type(tree)(**children)
    return function(path.removeprefix("."), cast("L", tree))


def replace_leaf(weights: Weights[L], name: str, leaf: L) -> Weights[L]:
    """The same tree with another leaf of that name."""
    return map_leaves(lambda each, old: leaf if each == name else old, weights)


def named_leaves(weights: Weights[L]) -> Iterator[tuple[str, L]]:
    """Every leaf with its dotted path, depth first, in the order of the fields."""
    pairs: list[tuple[str, L]] = []
    map_leaves(lambda name, leaf: pairs.append((name, leaf)), weights)
    yield from pairs
