"""This file holds the reader of other people's GGUF files: ternary models that stock llama.cpp runs.

llama.cpp rounds a linear's input in blocks of 256 or 32, as the type of its matrix asks for; here a model has one block
for all of them, the nearest that there is.

References
----------
.. [1] github.com/ggml-org/llama.cpp, src/models and convert_hf_to_gguf.py, commit 0c1e570.
"""

import itertools
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.checkpoint import require_legal
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError, NumericError, ShapeError
from nanochat.export.gguf.container import FOLDER_INSTEAD, GgufFile, GgufTensor
from nanochat.export.gguf.foreign_config import ARCHITECTURES, read_hyperparameters
from nanochat.export.gguf.tensors import tensor_members
from nanochat.export.gguf.types import (
    Q2_0,
    TQ1_0,
    TQ2_0,
    TensorType,
    dequantize_q2_0,
    unpack_q8_0,
    unpack_ternary,
)
from nanochat.export.gguf.vocabulary import read_vocabulary
from nanochat.shapes import shapes
from nanochat.text.codec import TextCodec
from nanochat.weights import Dense, Int8, Spec, Stored, Ternary, Weights, map_leaves, named_leaves

__all__ = ["load_foreign_gguf"]

_LOGGER = logging.getLogger(__name__)

_TERNARY = {kind.number: kind for kind in (TQ1_0, TQ2_0, Q2_0)}
# What a fork of llama.cpp calls BitNet, of which it computes another form than `bitnet` is.
_OF_BITNET_CPP = "bitnet-b1.58"
_ROPE_FACTORS = "rope_freqs.weight"
# Blocks of weights and of activations.
_Blocks = tuple[Literal[256, 128, "row"], Literal[256, 128, "token"]]
_LARGE: _Blocks = (256, 256)
_SMALL: tuple[_Blocks, ...] = ((128, 128), ("row", "token"))


def load_foreign_gguf(path: Path, file: GgufFile) -> tuple[ModelConfig, Weights[Stored], TextCodec]:
    """A model of a file that another program wrote; `path` is for messages."""
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        advice = "pass one of these"
        if isinstance(architecture, str) and architecture == _OF_BITNET_CPP:
            advice = FOLDER_INSTEAD
        raise FormatError(
            f"{path}: architecture is {architecture!r:.80}: of other people's GGUF files this package reads those of "
            f"{', '.join(ARCHITECTURES)}; {advice}"
        )
    try:
        config, weights = _Reader(path, architecture, file).model()
        return config, weights, read_vocabulary(file.metadata, rows=config.vocab_size)
    except (ConfigError, FormatError, ShapeError, NumericError) as error:
        raise type(error)(f"{path}: {error}") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class _Matrix:
    """A packed matrix (R, C / 4) with a scale for each of B blocks of a row, (R, B).

    `zero`, (R, B), tells the blocks of zeros, whose scales mean nothing.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zero: NDArray[np.bool_]

    def with_rows(self, order: NDArray[np.int64]) -> "_Matrix":
        """The same with its rows in another order."""
        return _Matrix(packed=self.packed[order], scales=self.scales[order], zero=self.zero[order])

    def times(self, factor: float, name: str) -> tuple["_Matrix", float]:
        """The same with its scales multiplied, and the largest relative error of their rounding to float16."""
        products = np.where(self.zero, 1.0, self.scales.astype(np.float64) * factor)
        largest = float(np.finfo(np.float16).max)
        # Written so that NaN fails, too.
        if not ((products >= ternary.SMALLEST_SCALE) & (products <= largest)).all():
            raise NumericError(
                f"{name} is {factor:g} and makes scales outside {ternary.SMALLEST_SCALE:g} to {largest:g}, which is "
                "what float16 holds; rescale the matrix, or fetch the file again"
            )
        scales = products.astype(np.float16)
        error = float((np.abs(scales.astype(np.float64) - products) / products).max())
        return replace(self, scales=scales), error

    def shared(self, count: int) -> NDArray[np.float16] | None:
        """Scales (R, count) of larger or smaller blocks; None if blocks that would share one differ."""
        rows, blocks = self.scales.shape
        if count % blocks == 0:
            repeated = np.where(self.zero, np.float16(ternary.SMALLEST_SCALE), self.scales)
            return np.repeat(repeated, count // blocks, axis=1)
        if blocks % count:
            return None
        scales = self.scales.reshape(rows, count, -1)
        zero = self.zero.reshape(scales.shape)
        largest = np.where(zero, np.float16(0), scales).max(axis=2)
        if not (zero | (scales == largest[:, :, None])).all():
            return None
        return np.where(zero.all(axis=2), np.float16(ternary.SMALLEST_SCALE), largest)


def _read_matrix(kind: TensorType, data: NDArray[np.uint8], *, name: str) -> _Matrix:
    """A matrix from its bytes, (R, bytes of a row), of one of the types in `_TERNARY`."""
    rows = len(data)
    blocks = data.shape[1] // kind.bytes
    codes, scales = unpack_ternary(kind, data, num_scales=blocks, name=name)
    ternary.require_finite(scales, f"the scales of {name}")
    if (scales < 0).any():
        raise NumericError(
            f"{name} has the scale {scales.min():g}: scales are positive; fetch the file again"
        )
    grouped = codes.reshape(rows, blocks, -1)
    # A scale of 0 makes zeros of all codes.
    zero = (scales == 0) | ~grouped.any(axis=2)
    grouped[zero] = 0
    return _Matrix(packed=ternary.pack(codes), scales=scales, zero=zero)


class _Reader:
    """Makes our leaves of a file's tensors."""

    def __init__(self, path: Path, architecture: str, file: GgufFile) -> None:
        self._path = path
        self._architecture = architecture
        self._tensors = file.tensors
        self._fields = read_hyperparameters(architecture, file)
        # The blocks are not known before the matrices are, whose names and shapes do not depend on them.
        self._plain = ModelConfig(**self._fields, weight_block="row", activation_block="token")
        # Of the linears.
        self._kinds: set[TensorType] = set()
        # The largest relative error of a scale's rounding to float16, and whose.
        self._rounding: tuple[float, str] = (0.0, "")

    def model(self) -> tuple[ModelConfig, Weights[Stored]]:
        """Configuration and weights."""
        specs = dict(named_leaves(shapes(self._plain)))
        places = tensor_members(shapes(self._plain), self._architecture)
        self._check_names(places, specs)
        matrices: dict[str, _Matrix] = {}
        others: dict[str, Stored] = {}
        for name, members in places.items():
            spec = specs[members[0]]
            shape = (len(members), *spec.shape) if "_exps." in name else spec.shape
            found = self._tensors[name].shape
            if _without_ones(found) != _without_ones(shape):
                raise ShapeError(
                    f"{name} has shape {list(found)} but the metadata ask for {list(shape)}: fetch the file again"
                )
            if spec.kind == "ternary":
                matrices |= zip(members, self._matrices(name, len(members), spec), strict=True)
            else:
                others[members[0]] = self._other(name, spec)
        blocks = self._blocks(matrices)
        config = ModelConfig(**self._fields, weight_block=blocks[0], activation_block=blocks[1])
        weights = map_leaves(
            lambda name, spec: _leaf(others.get(name), matrices.get(name), spec), shapes(config)
        )
        for name, leaf in named_leaves(weights):
            require_legal(name, leaf)
        self._log(config)
        return config, weights

    def _check_names(self, places: Mapping[str, list[str]], specs: Mapping[str, Spec]) -> None:
        missing = sorted(places.keys() - self._tensors.keys())
        if missing:
            raise FormatError(
                f"{len(missing)} tensors are missing, the first is {missing[0]}: the metadata are another model's, or "
                "the file is one of several; fetch it again, or join its parts"
            )
        linears = [name for name, leaves in places.items() if specs[leaves[0]].kind == "ternary"]
        others = self._tensors.keys() - places.keys() - {_companion(name) for name in linears}
        if _ROPE_FACTORS in others:
            raise FormatError(
                f"{_ROPE_FACTORS} scales the frequencies of positions, as Llama 3.1's for longer texts: this package "
                "has no such scaling; pass a model without it"
            )
        if others:
            raise FormatError(
                f"{len(others)} tensors have no place in this model, the first is {min(others)!r:.80}: linears here "
                "have no biases; pass a model without it"
            )

    def _matrices(self, name: str, count: int, spec: Spec) -> list[_Matrix]:
        """The matrices of a tensor: several if it is of experts."""
        tensor = self._tensors[name]
        if tensor.kind.number not in _TERNARY:
            types = ", ".join(kind.name for kind in _TERNARY.values())
            raise FormatError(
                f"{name} is of type {tensor.kind.name}, must be one of {types}: in this package every linear is "
                "ternary; pass a ternary model"
            )
        self._kinds.add(tensor.kind)
        data = tensor.data.reshape(count, spec.shape[0], -1)
        factors = self._factors(_companion(name), count)
        matrices: list[_Matrix] = []
        for part, factor in zip(data, factors, strict=True):
            matrix = _read_matrix(tensor.kind, part, name=name)
            if factor is not None:
                matrix, error = matrix.times(factor, _companion(name))
                self._rounding = max(self._rounding, (error, _companion(name)))
            matrices.append(self._half_split(name, matrix))
        return matrices

    def _factors(self, name: str, count: int) -> list[float] | list[None]:
        if name not in self._tensors:
            return [None] * count
        tensor = self._tensors[name]
        if _without_ones(tensor.shape) != _without_ones((count,)):
            raise ShapeError(
                f"{name} has shape {list(tensor.shape)}, must be [{count}]: fetch the file again"
            )
        factors: list[float] = _dequantize(name, tensor).reshape(-1).tolist()
        return factors

    def _half_split(self, name: str, matrix: _Matrix) -> _Matrix:
        """Rows in the order in which features of a head are rotated here: pairs are half a head apart.

        The architecture llama rotates neighbours.
        """
        heads = {
            "attn_q.weight": self._plain.num_heads,
            "attn_k.weight": self._plain.num_kv_heads,
        }.get(name.split(".", 2)[-1])
        if self._architecture != "llama" or heads is None:
            return matrix
        rows = np.arange(len(matrix.packed)).reshape(heads, self._plain.head_dim // 2, 2)
        return matrix.with_rows(rows.swapaxes(1, 2).reshape(-1))

    def _other(self, name: str, spec: Spec) -> Stored:
        """A norm, router or table."""
        tensor = self._tensors[name]
        if spec.kind == "int8":
            data = tensor.data.reshape(spec.shape[0], -1)
            codes, scales = unpack_q8_0(data, num_scales=1, name=name)
            return Int8(codes=codes, scales=scales, activation_block=spec.activation_block)
        return Dense(values=_dequantize(name, tensor).reshape(spec.shape))

    def _blocks(self, matrices: Mapping[str, _Matrix]) -> _Blocks:
        """The block sizes that hold every scale, as near to llama.cpp's as there are."""
        for blocks in _SMALL if Q2_0 in self._kinds else (_LARGE,):
            if all(_fits(matrix, blocks[0]) for matrix in matrices.values()):
                return blocks
        name = next(name for name, matrix in matrices.items() if not _fits(matrix, 128))
        raise FormatError(
            f"the scales of {name} differ within 128 columns, and within a row: Q2_0 has one for every 64, this "
            "package one for 128, 256 or all columns of a row; pass a model with larger blocks"
        )

    def _log(self, config: ModelConfig) -> None:
        theirs = sorted({32 if kind == Q2_0 else 256 for kind in self._kinds})
        block = config.activation_block
        _LOGGER.info(
            "%s: activations are rounded in blocks of %s, where llama.cpp rounds in blocks of %s",
            self._path,
            "a token" if block == "token" else f"{block} columns",
            " and ".join(map(str, theirs)),
        )
        error, name = self._rounding
        if error:
            _LOGGER.warning(
                "%s: scales are rounded to float16; the largest relative error is %.1e, by %s",
                self._path,
                error,
                name,
            )


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape as llama.cpp compares it: the outer dimensions of 1 may be written or not."""
    return tuple(itertools.dropwhile(lambda size: size == 1, shape))


def _companion(name: str) -> str:
    """Name of the tensor with a factor for all of a linear's scales."""
    return f"{name.removesuffix('.weight')}.scale"


def _fits(matrix: _Matrix, block: int | str) -> bool:
    columns = 4 * matrix.packed.shape[1]
    if isinstance(block, str):
        return matrix.shared(1) is not None
    return columns % block == 0 and matrix.shared(columns // block) is not None


def _leaf(other: Stored | None, matrix: _Matrix | None, spec: Spec) -> Stored:
    if isinstance(other, Int8):
        return Int8(codes=other.codes, scales=other.scales, activation_block=spec.activation_block)
    if matrix is None:
        assert other is not None
        return other
    scales = matrix.shared(spec.shape[1] // spec.weight_block)
    assert scales is not None
    return Ternary(
        packed=matrix.packed,
        scales=scales,
        columns=spec.shape[1],
        activation_block=spec.activation_block,
    )


def _dequantize(name: str, tensor: GgufTensor) -> NDArray[np.float32]:
    """A tensor's numbers, whatever its type."""
    kind = tensor.kind
    data = tensor.data.reshape(math.prod(tensor.shape[:-1]), -1)
    if kind == Q2_0:
        return dequantize_q2_0(data).reshape(tensor.shape)
    try:
        values = gguf.dequantize(data, gguf.GGMLQuantizationType(kind.number))
    # The library knows no such type, or has no way back from it.
    except (NotImplementedError, ValueError, KeyError) as error:
        raise FormatError(
            f"{name} is of type {kind.name}, which the gguf library cannot turn into numbers, as is done here with "
            "tables, norms and routers: pass a file of the same model in which it is F16, Q8_0 or Q6_K"
        ) from error
    return np.ascontiguousarray(values, np.float32).reshape(tensor.shape)
