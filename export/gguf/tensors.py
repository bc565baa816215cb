"""This file holds how the leaves of a model become tensors of a GGUF file, and tensors leaves again.

In a file of this package's own architecture, tensors have the names of the model directory. In one of a stock
architecture they have that architecture's, and the matrices of a layer's experts are stacked to one tensor.

References
----------
.. [1] github.com/ggml-org/llama.cpp, src/llama-arch.cpp, commit 0c1e570: names of tensors.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.blocks.plain import plain
from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError, ShapeError
from nanochat.export.gguf.container import GgufTensor, NewTensor
from nanochat.export.gguf.places import places, with_heads
from nanochat.export.gguf.types import (
    BF16,
    F16,
    F32,
    Q2_0,
    Q8_0,
    TQ1_0,
    TQ2_0,
    TensorType,
    pack_q8_0,
    pack_ternary,
    unpack_q8_0,
    unpack_ternary,
)
from nanochat.export.places import Place
from nanochat.shapes import shapes
from nanochat.weights import (
    DENSE_DTYPES,
    Dense,
    Int8,
    Latent,
    Spec,
    Stored,
    Ternary,
    Weights,
    map_leaves,
    named_leaves,
)

__all__ = [
    "ARCHITECTURE",
    "OUTTYPES",
    "RATES",
    "OutType",
    "new_tensors",
    "read_leaves",
    "require_exact",
    "tensor_members",
]

OutType = Literal["tq2_0", "tq1_0", "q2_0", "f16"]

# End of the name of the tensor that has rates where this package has their logarithms.
RATES = ".ssm_a"
# This package's own, which stock llama.cpp does not know.
ARCHITECTURE = "nanochat"
OUTTYPES: Mapping[OutType, TensorType] = {"tq2_0": TQ2_0, "tq1_0": TQ1_0, "q2_0": Q2_0, "f16": F16}
_FLOATS = {"float32": F32, "float16": F16, "bfloat16": BF16}
_DTYPES: Mapping[TensorType, np.dtype[Any]] = {
    F32: np.dtype("<f4"),
    F16: np.dtype("<f2"),
    BF16: DENSE_DTYPES["bfloat16"],
}
_TABLES = frozenset({"embedding", "head"})


def new_tensors(
    bundle: Bundle, architecture: str, *, outtype: OutType, half_tables: bool
) -> list[NewTensor]:
    """The tensors of a model's file, packed when they are written.

    With `half_tables`, dense tables are written as float16, which must hold their numbers.
    """
    leaves = dict(named_leaves(bundle.weights))
    specs = dict(named_leaves(shapes(bundle.config)))
    tensors: list[NewTensor] = []
    for name, members in tensor_members(bundle.config, architecture).items():
        spec = specs[next(iter(members))]
        half = half_tables and not _TABLES.isdisjoint(members)
        dense = F16 if half else _FLOATS[spec.dtype]
        kind = {"ternary": OUTTYPES[outtype], "int8": Q8_0, "dense": dense}[spec.kind]
        shape = (len(members), *spec.shape) if _is_stacked(name) else spec.shape
        own = [leaves[leaf] for leaf in members]
        parts = partial(_pack_all, own, kind)
        if name.endswith(RATES):
            (rates,) = own
            parts = partial(_pack_rates, rates, members.popitem()[1])
        elif any(place.rows is not None or place.heads is not None for place in members.values()):
            shape = (sum(specs[leaf].shape[0] for leaf in members), *spec.shape[1:])
            parts = partial(_pack_moved, own, list(members.values()), kind)
        tensors.append(NewTensor(name=name, kind=kind, shape=shape, parts=parts))
    return tensors


def read_leaves(
    path: Path,
    config: ModelConfig,
    architecture: str,
    tensors: Mapping[str, GgufTensor],
    check: Callable[[str, Stored], None],
) -> Weights[Stored]:
    """A model's leaves from the tensors of its file, each checked when it is read; float32 leaves are views of it."""
    specs = shapes(config)
    members_of = tensor_members(config, architecture)
    different = sorted(members_of.keys() ^ tensors.keys())
    if different:
        name = different[0]
        raise FormatError(
            f"{path}: {len(different)} tensors are missing or no part of the model, the first "
            f"{'is missing' if name in members_of else 'is no part'}: {name!r:.80}; fetch the file again"
        )
    places = {
        member: (name, number, len(members))
        for name, members in members_of.items()
        for number, member in enumerate(members)
    }

    def read(leaf: str, spec: Spec) -> Stored:
        name, number, count = places[leaf]
        tensor = tensors[name]
        shape = (count, *spec.shape) if _is_stacked(name) else spec.shape
        if tensor.shape != shape:
            raise ShapeError(
                f"{path}: {name} has shape {list(tensor.shape)} but the configuration asks for {list(shape)}: "
                "fetch the file again"
            )
        data = tensor.data.reshape(count, -1)[number]
        stored = _unpack(path, leaf, spec, tensor.kind, data)
        check(leaf, stored)
        return stored

    return map_leaves(read, specs)


def require_exact(config: ModelConfig, outtype: OutType) -> None:
    """Refuse a model of which a file of that type cannot hold every number."""
    kind = OUTTYPES[outtype]
    for name, spec in named_leaves(shapes(config)):
        columns = spec.shape[-1]
        if spec.kind == "int8" and columns % Q8_0.columns:
            raise ConfigError(
                f"{name} has {columns} columns: Q8_0 packs {Q8_0.columns} at a time; pass tables=f16, or train with a "
                f"width that is a multiple of {Q8_0.columns}"
            )
        if spec.kind == "int8" and spec.weight_block % Q8_0.columns:
            raise ConfigError(
                f"{name} has a scale for every {spec.weight_block} columns: {Q8_0.name} has one for every "
                f"{Q8_0.columns}; pass tables=f16"
            )
        if spec.kind != "ternary" or _fits(spec, kind):
            continue
        others = [other for other, its in OUTTYPES.items() if _all_fit(config, its)]
        advice = f"pass outtype={' or '.join(others)}"
        if columns % kind.columns:
            raise ConfigError(
                f"{name} has {columns} columns: {kind.name} packs {kind.columns} at a time; {advice}, or train with "
                f"widths that are multiples of {kind.columns}"
            )
        raise ConfigError(
            f"{name} has a scale for every {spec.weight_block} columns: {kind.name} has one for every {kind.columns}, "
            f"and to merge two is to change the model; {advice}, or train with weight_block={kind.columns}"
        )


def _all_fit(config: ModelConfig, kind: TensorType) -> bool:
    specs = (spec for _, spec in named_leaves(shapes(config)) if spec.kind == "ternary")
    return all(_fits(spec, kind) for spec in specs)


def _fits(spec: Spec, kind: TensorType) -> bool:
    return spec.weight_block % kind.columns == 0


def tensor_members(config: ModelConfig, architecture: str) -> dict[str, dict[str, Place]]:
    """The leaves that each tensor of a file is made of, with their places."""
    if architecture == ARCHITECTURE:
        return {name: {name: Place(tensor=name)} for name, _ in named_leaves(shapes(config))}
    members: dict[str, dict[str, Place]] = {}
    for leaf, place in places(config, architecture, grouped=False).items():
        members.setdefault(place.tensor, {})[leaf] = place
    return members


def _is_stacked(name: str) -> bool:
    return name.endswith("_exps.weight")


def _pack_all(leaves: list[Stored], kind: TensorType) -> Iterator[NDArray[np.uint8]]:
    for leaf in leaves:
        yield _pack(leaf, kind)


def _pack_rates(leaf: Stored, place: Place) -> Iterator[NDArray[np.uint8]]:
    """Rates of decay themselves, with a minus, of their logarithms."""
    assert isinstance(leaf, Dense)
    assert place.rows is not None
    values = np.empty_like(leaf.values)
    values[place.rows] = -np.exp(leaf.values)
    yield _pack(Dense(values=values), F32)


def _pack_moved(
    leaves: list[Stored], where: list[Place], kind: TensorType
) -> Iterator[NDArray[np.uint8]]:
    """Leaves of one tensor in the rows, and with the columns, that their places say."""
    rows: list[NDArray[np.int64]] = []
    parts: list[Ternary | Dense] = []
    for leaf, place in zip(leaves, where, strict=True):
        part = plain(leaf)
        assert isinstance(part, Ternary | Dense)
        if place.heads is not None:
            assert isinstance(part, Ternary)
            part = with_heads(part, np.argsort(place.heads))
        parts.append(part)
        count = len(part.packed if isinstance(part, Ternary) else part.values)
        rows.append(np.arange(count) if place.rows is None else place.rows)
    order = np.argsort(np.concatenate(rows))
    if isinstance(parts[0], Dense):
        yield _pack(Dense(values=np.concatenate([_values(part) for part in parts])[order]), kind)
        return
    matrices = [part for part in parts if isinstance(part, Ternary)]
    yield _pack(
        replace(
            matrices[0],
            packed=np.concatenate([part.packed for part in matrices])[order],
            scales=np.concatenate([part.scales for part in matrices])[order],
        ),
        kind,
    )


def _values(leaf: Ternary | Dense) -> NDArray[Any]:
    assert isinstance(leaf, Dense)
    return leaf.values


def _pack(leaf: Stored, kind: TensorType) -> NDArray[np.uint8]:
    leaf = plain(leaf)
    match leaf:
        case Ternary():
            codes = ternary.unpack(leaf.packed, columns=leaf.columns)
            return pack_ternary(kind, codes, leaf.scales)
        case Int8():
            return pack_q8_0(leaf.codes, leaf.scales.astype(np.float16, copy=False))
        case Dense():
            return np.ascontiguousarray(leaf.values, _DTYPES[kind]).reshape(-1).view(np.uint8)
        case Latent():
            raise AssertionError


def _unpack(path: Path, name: str, spec: Spec, kind: TensorType, data: NDArray[np.uint8]) -> Stored:
    _require_kind(path, name, spec, kind)
    if spec.kind == "dense":
        stored = data.view(_DTYPES[kind]).reshape(spec.shape)
        # No copy where the file has the type already.
        return Dense(values=stored.astype(DENSE_DTYPES[spec.dtype], copy=False))
    rows, columns = spec.shape
    matrix = data.reshape(rows, -1)
    if spec.kind == "int8":
        codes, table_scales = unpack_q8_0(
            matrix, num_scales=columns // spec.weight_block, name=name
        )
        return Int8(codes=codes, scales=table_scales, activation_block=spec.activation_block)
    count = columns // spec.weight_block
    codes, scales = unpack_ternary(kind, matrix, num_scales=count, name=name)
    return Ternary(
        packed=ternary.pack(codes),
        scales=scales,
        columns=columns,
        activation_block=spec.activation_block,
    )


def _require_kind(path: Path, name: str, spec: Spec, kind: TensorType) -> None:
    allowed = {"ternary": (*OUTTYPES.values(),), "int8": (Q8_0,), "dense": ()}[spec.kind]
    if spec.kind == "dense":
        may_be_half = name in _TABLES and spec.dtype == "float32"
        allowed = (F32, F16) if may_be_half else (_FLOATS[spec.dtype],)
    if kind not in allowed:
        raise FormatError(
            f"{path}: {name} is {kind.name}, must be {' or '.join(one.name for one in allowed)}: "
            "export the model again with nanochat-ternary"
        )
