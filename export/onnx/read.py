"""This file holds the reader of exported ONNX files: the model's own codes and scales, as they were before the export.

Nothing that a file says is believed before the configuration in it has been checked, and no tensor is read that does
not have the bytes which that asks for. Tensors beside the file may stand in its own folder only.
"""

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto

from nanochat import ternary
from nanochat.bundle import Bundle, Golden, golden_from_json
from nanochat.checkpoint import require_legal
from nanochat.config import ModelConfig, config_from_dict
from nanochat.errors import FormatError
from nanochat.export.directory import read_folder
from nanochat.export.format import ModelFiles
from nanochat.export.onnx.digest import GOLDEN, graph_digest
from nanochat.export.onnx.leaves import BLOCK, members
from nanochat.files import parse_json, read_bytes, require_file
from nanochat.shapes import shapes
from nanochat.weights import (
    DENSE_DTYPES,
    Dense,
    Int8,
    Spec,
    Stored,
    Ternary,
    Weights,
    map_leaves,
    named_leaves,
)

__all__ = [
    "read_bundle",
    "read_config",
    "read_golden",
    "read_graph",
    "read_model",
    "require_digest",
]

_LARGEST_FILE = 2**31
_TYPES: Mapping[int, type[np.generic]] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
    TensorProto.UINT8: np.uint8,
}
_BITS: Mapping[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.UINT8: 8,
    TensorProto.UINT2: 2,
}
# Of an offset or a length in a file.
_MAX_DIGITS = 18


def read_bundle(files: ModelFiles, path: Path, *, licence: str) -> Bundle:
    """What `nanochat.export.onnx.write.export_onnx` has written to `path`, with what its folder says of it.

    The golden record is the folder's, or else that in the graph.
    """
    model = files.once(read_graph, path)
    bundle = read_folder(files, *read_model(path, model))
    golden = bundle.golden or read_golden(path, model)
    return replace(bundle, golden=golden, licence=licence, graph=path)


def read_graph(path: Path) -> onnx.ModelProto:
    """The graph in a file, without tensors that stand in another."""
    data = read_bytes(path, limit=_LARGEST_FILE)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise FormatError(
            f"{path}: no ONNX file, or a truncated one; export the model again, or fetch the file again"
        ) from error
    return model


def read_config(path: Path, model: onnx.ModelProto) -> ModelConfig:
    """The configuration in a graph."""
    metadata = _metadata(path, model)
    if "config" not in metadata or model.producer_name != "nanochat-ternary":
        producer = f"{model.producer_name!r:.80}" if model.producer_name else "another program"
        raise FormatError(
            f"{path}: written by {producer}: pass a file that nanochat-export wrote, or the model directory"
        )
    config = config_from_dict(parse_json(_bytes(metadata["config"]), f"{path}, config"))
    if config.activation_block != BLOCK:
        raise FormatError(
            f"{path}: activation_block={config.activation_block!r}, and no exported graph rounds in other blocks than "
            f"{BLOCK}; fetch the file again"
        )
    return config


def require_digest(path: Path, model: onnx.ModelProto) -> None:
    """Refuse a graph that is not the one of its own golden record."""
    golden = read_golden(path, model)
    if golden is None or not golden.graph:
        return
    files: dict[str, NDArray[np.uint8]] = {}
    found = graph_digest(model, lambda tensor: _stored(path, tensor, files).data)
    if found != golden.graph:
        raise FormatError(
            f"{path}: a node, an attribute or a constant is not as it was when the golden record was made: the file "
            "was changed; fetch it again, or export the model again"
        )


def read_golden(path: Path, model: onnx.ModelProto) -> Golden | None:
    """The golden record in a graph; `None` if it has none."""
    text = _metadata(path, model).get(GOLDEN)
    return None if text is None else golden_from_json(text, f"{path}, {GOLDEN}")


def read_model(path: Path, model: onnx.ModelProto) -> tuple[ModelConfig, Weights[Stored]]:
    """The configuration and the weights in a graph; see `read_bundle`."""
    config = read_config(path, model)
    others = parse_json(_bytes(_metadata(path, model).get("leaves", "{}")), f"{path}, leaves")
    wanted = shapes(config)
    reader = _Reader(path, dict(named_leaves(wanted)), _tensors(path, model), others)
    weights = map_leaves(reader.leaf, wanted)
    for name, leaf in named_leaves(weights):
        require_legal(name, leaf)
    return config, weights


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tensor:
    """A tensor of the file: its type in the format, its shape, and its bytes, which are all there."""

    type: int
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


class _Reader:
    """Makes leaves of the tensors of a file."""

    def __init__(
        self,
        path: Path,
        specs: Mapping[str, Spec],
        tensors: Mapping[str, _Tensor],
        others: Mapping[str, object],
    ) -> None:
        self._path = path
        self._specs = specs
        self._tensors = tensors
        self._others = others
        # Each leaf of the graph, with the name of the tensors that hold it and others.
        self._wholes: dict[str, str] = {}
        for name in tensors:
            whole = name.removesuffix(".codes")
            parts = members(whole)
            if set(parts) <= specs.keys():
                for part in parts:
                    if self._wholes.setdefault(part, whole) != whole:
                        raise self._error(part, f"stands in {whole!r:.80} and elsewhere")

    def leaf(self, name: str, spec: Spec) -> Stored:
        """The leaf of that name."""
        whole = self._wholes.get(name)
        if spec.kind == "dense":
            values = self._other(name, spec) if whole is None else self._dense(whole, name, spec)
            return Dense(values=values)
        if whole is None:
            raise self._error(name, "is missing")
        if spec.kind == "int8":
            return self._int8(name, spec)
        return self._ternary(whole, name, spec)

    def _ternary(self, whole: str, name: str, spec: Spec) -> Ternary:
        first, total = self._place(whole, name)
        rows, columns = spec.shape
        tensor = self._tensor(f"{whole}.codes")
        written = {
            (TensorProto.UINT8, (total, columns // BLOCK, BLOCK // 4)),
            (TensorProto.UINT2, (total, columns)),
        }
        if (tensor.type, tensor.shape) not in written:
            raise self._error(f"{whole}.codes", f"has type {tensor.type} and shape {tensor.shape}")
        codes = tensor.data.reshape(total, columns // 4)[first : first + rows]
        groups = columns // spec.weight_block
        return Ternary(
            # Each pair of bits is code + 2. A pair of 0, which is no code, becomes the illegal 0b11 by borrowing.
            packed=codes - np.uint8(0x55),
            scales=self._scales(whole, total, columns, groups)[first : first + rows],
            columns=columns,
            activation_block=spec.activation_block,
        )

    def _int8(self, name: str, spec: Spec) -> Int8:
        rows, columns = spec.shape
        tensor = self._tensor(f"{name}.codes")
        shapes = (rows, columns), (rows, columns // BLOCK, BLOCK)
        if tensor.type != TensorProto.UINT8 or tensor.shape not in shapes:
            raise self._error(f"{name}.codes", f"has type {tensor.type} and shape {tensor.shape}")
        # The byte is code + 128.
        codes = (tensor.data ^ np.uint8(0x80)).view(np.int8).reshape(rows, columns)
        scales = self._scales(name, rows, columns, 1)
        return Int8(codes=codes, scales=scales, activation_block=spec.activation_block)

    def _scales(self, whole: str, rows: int, columns: int, groups: int) -> NDArray[np.float16]:
        """The scales that are repeated for every block of a group."""
        shape = (rows, columns // BLOCK)
        values = self._numbers(f"{whole}.scales", np.dtype(np.float32), shape)
        ternary.require_finite(values, f"{self._path}: {whole}.scales")
        with np.errstate(over="ignore"):
            scales = values.reshape(rows, groups, -1)[:, :, 0].astype(np.float16)
        repeated = np.repeat(scales.astype(np.float32), shape[1] // groups, axis=1)
        if not np.array_equal(repeated, values):
            raise self._error(
                f"{whole}.scales",
                f"are not {groups} numbers of float16 for each row of {columns} columns",
            )
        return scales

    def _dense(self, whole: str, name: str, spec: Spec) -> NDArray[Any]:
        first, total = self._place(whole, name)
        shape = (total, *spec.shape[1:])
        stored = (total, 1, *shape[1:]) if name.endswith("_conv") else shape
        numbers = self._numbers(whole, DENSE_DTYPES[spec.dtype], stored).reshape(shape)
        return numbers[first : first + spec.shape[0]]

    def _other(self, name: str, spec: Spec) -> NDArray[np.float32]:
        text = self._others.get(name)
        if not isinstance(text, str):
            raise self._error(name, "is missing")
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise self._error(name, f"is no base 64 ({error})") from error
        if len(data) != 4 * math.prod(spec.shape):
            raise self._error(
                name, f"has {len(data)} bytes, and {list(spec.shape)} numbers need 4 each"
            )
        return np.frombuffer(data, np.float32).reshape(spec.shape)

    def _place(self, whole: str, name: str) -> tuple[int, int]:
        """First row of a leaf in a joined one, and all rows of that."""
        parts = members(whole)
        sizes = [self._specs[part].shape[0] for part in parts]
        return sum(sizes[: parts.index(name)]), sum(sizes)

    def _numbers(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        tensor = self._tensor(name)
        if _TYPES.get(tensor.type) != dtype or tensor.shape != shape:
            raise self._error(
                name,
                f"has type {tensor.type} and shape {list(tensor.shape)}, and must be {dtype} of {list(shape)}",
            )
        return tensor.data.view(dtype).reshape(shape)

    def _tensor(self, name: str) -> _Tensor:
        if name not in self._tensors:
            raise self._error(name, "is missing")
        return self._tensors[name]

    def _error(self, name: str, what: str) -> FormatError:
        return FormatError(
            f"{self._path}: {name} {what}; export the model again, or fetch the file again"
        )


def _metadata(path: Path, model: onnx.ModelProto) -> dict[str, str]:
    metadata: dict[str, str] = {}
    for entry in model.metadata_props:
        key = _text(path, entry.key)
        if key in metadata:
            raise FormatError(f"{path}: the key {key!r:.80} is there twice; fetch the file again")
        metadata[key] = _text(path, entry.value)
    return metadata


def _tensors(path: Path, model: onnx.ModelProto) -> dict[str, _Tensor]:
    tensors: dict[str, _Tensor] = {}
    files: dict[str, NDArray[np.uint8]] = {}
    for tensor in model.graph.initializer:
        name, shape = _text(path, tensor.name), tuple(tensor.dims)
        if name in tensors:
            raise FormatError(f"{path}: {name!r:.80} is there twice; fetch the file again")
        if tensor.data_type not in _BITS:
            continue
        if min(shape, default=1) < 0:
            raise FormatError(
                f"{path}: {name!r:.80} has the shape {list(shape)}; fetch the file again"
            )
        # Python's integers: the product of forged dimensions may have hundreds of digits.
        size = -(-math.prod(shape) * _BITS[tensor.data_type] // 8)
        data = _stored(path, tensor, files)
        if data.size != size:
            raise FormatError(
                f"{path}: {name!r:.80} of shape {list(shape)} needs {size} bytes and has {data.size}; fetch the file "
                "again"
            )
        tensors[name] = _Tensor(type=tensor.data_type, shape=shape, data=data)
    return tensors


def _stored(
    path: Path, tensor: TensorProto, files: dict[str, NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """The bytes of a tensor, which may stand in another file; `files` are those that are mapped already."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return np.frombuffer(tensor.raw_data, np.uint8)
    place = {_text(path, e.key): _text(path, e.value) for e in tensor.external_data}
    location = place.get("location", "")
    offset, length = (place.get(key, "0") for key in ("offset", "length"))
    if location in ("", ".", "..") or set(location) & set("/\\\0:"):
        raise FormatError(
            f"{path}: {tensor.name!r:.80} stands in {location!r:.80}, which must be the name of a file in the same "
            "folder; do not use this file"
        )
    if not all(number.isdecimal() and len(number) <= _MAX_DIGITS for number in (offset, length)):
        raise FormatError(
            f"{path}: {tensor.name!r:.80} has {length!r:.40} bytes from {offset!r:.40} on; fetch the file again"
        )
    if location not in files:
        file = path.with_name(location)
        if not require_file(file):
            raise FormatError(f"{file}: empty; fetch the file again")
        files[location] = np.asarray(np.memmap(file, np.uint8, mode="r"))
    return files[location][int(offset) : int(offset) + int(length)]


def _text(path: Path, value: object) -> str:
    # What is no UTF-8 comes as bytes.
    if not isinstance(value, str):
        raise FormatError(f"{path}: the name {value!r:.80} is no text; fetch the file again")
    return value


def _bytes(text: str) -> bytes:
    return text.encode(errors="replace")
