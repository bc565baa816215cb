"""This file holds the container of GGUF: metadata and tensors, mapped when read, and packed one at a time when written.

No count is believed before its bytes are there: the gguf library's reader loops as often as a file's counts tell it to,
and makes an array for each token. Its writer knows neither `Q2_0` nor tensors whose parts are packed one after the
other.

References
----------
.. [1] github.com/ggml-org/ggml, docs/gguf.md, version 3.
"""

import logging
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
from numpy.typing import NDArray

from nanochat.errors import FormatError, VersionError
from nanochat.export.format import Progress
from nanochat.export.gguf.offsets import Entry, find_kinds, round_up
from nanochat.export.gguf.types import TYPES, TensorType
from nanochat.files import require_file

__all__ = [
    "FOLDER_INSTEAD",
    "Field",
    "GgufFile",
    "GgufTensor",
    "MetadataValue",
    "NewTensor",
    "read_gguf",
    "write_container",
]

MetadataValue = bool | int | float | str | list[str] | NDArray[np.generic]
# To write: a NumPy number goes into the file as the type that it has; a list, as an array of texts or of numbers of one
# type.
Field = str | np.generic | Sequence[str] | NDArray[np.generic]

_VERSION = 3
# The one before has the same layout, in little-endian order only.
_VERSIONS = (2, _VERSION)
# Metadata of a vocabulary of 2**20 tokens need 50 MB.
_MAX_METADATA_BYTES = 128 * 2**20
_MAX_DIMENSIONS = 4
_ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT
_LENGTH = struct.Struct("<Q")
_TYPE = gguf.GGUFValueType
_DTYPES: dict[gguf.GGUFValueType, np.dtype[np.generic]] = {
    _TYPE.UINT8: np.dtype("<u1"),
    _TYPE.INT8: np.dtype("<i1"),
    _TYPE.UINT16: np.dtype("<u2"),
    _TYPE.INT16: np.dtype("<i2"),
    _TYPE.UINT32: np.dtype("<u4"),
    _TYPE.INT32: np.dtype("<i4"),
    _TYPE.FLOAT32: np.dtype("<f4"),
    _TYPE.BOOL: np.dtype("?"),
    _TYPE.UINT64: np.dtype("<u8"),
    _TYPE.INT64: np.dtype("<i8"),
    _TYPE.FLOAT64: np.dtype("<f8"),
}

# Types of a fork of llama.cpp, under numbers that llama.cpp has given up.
_OF_BITNET_CPP: Mapping[int, str] = {37: "I8_S", 38: "TL1"}
# What to do with that fork's files.
FOLDER_INSTEAD = (
    "pass the model's Hugging Face folder instead, such as microsoft/bitnet-b1.58-2B-4T"
)
_LOGGER = logging.getLogger(__name__)

# Of what is written, whose bytes are in the machine's order until then.
_KINDS = {dtype.newbyteorder("="): kind for kind, dtype in _DTYPES.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class GgufTensor:
    """A tensor of the file: its shape with rows first; its blocks, and what its type has behind them, mapped."""

    kind: TensorType
    shape: tuple[int, ...]
    data: NDArray[np.uint8]
    tail: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class GgufFile:
    """What a file holds."""

    metadata: Mapping[str, MetadataValue]
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """The metadata and tensors of a GGUF file of version 2 or 3."""
    size = require_file(path)
    if size < 24:
        raise FormatError(f"{path}: {size} bytes are too short for a GGUF file; fetch it again")
    try:
        mapped = np.asarray(np.memmap(path, np.uint8, mode="r"))
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror or error}; make the file readable") from error
    cursor = _Cursor(path, mapped[:_MAX_METADATA_BYTES].data)
    _check_version(path, bytes(cursor.take(4)), cursor.integer("<I"))
    num_tensors, num_values = cursor.integer("<Q"), cursor.integer("<Q")
    metadata: dict[str, MetadataValue] = {}
    for _ in range(num_values):
        key = cursor.text()
        if key in metadata:
            raise FormatError(f"{path}: the key {key!r:.80} is there twice; fetch the file again")
        metadata[key] = cursor.value()
    entries = [_describe(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment not in {2**n for n in range(17)}:
        raise FormatError(
            f"{path}: alignment is {alignment!r:.40}, must be a power of 2; fetch it again"
        )
    begin = round_up(cursor.position, alignment)
    data = mapped[begin:]
    kinds = find_kinds(path, entries, data, begin=begin, alignment=alignment)
    tensors: dict[str, GgufTensor] = {}
    end = 0
    for entry, kind in zip(entries, kinds, strict=True):
        end = entry.start + kind.num_bytes(entry.shape)
        tensors[entry.name] = GgufTensor(
            kind=kind,
            shape=entry.shape,
            data=data[entry.start : end - kind.tail],
            tail=data[end - kind.tail : end],
        )
    if data.size > round_up(end, alignment):
        _LOGGER.warning(
            "%s: %d bytes follow the last tensor, and are not read",
            path,
            data.size - round_up(end, alignment),
        )
    return GgufFile(metadata=metadata, tensors=tensors)


@dataclass(frozen=True, kw_only=True, eq=False)
class NewTensor:
    """A tensor to write, its shape with rows first; `parts` gives its bytes, part after part, when they are written."""

    name: str
    kind: TensorType
    shape: tuple[int, ...]
    parts: Callable[[], Iterable[NDArray[np.uint8]]]


def write_container(
    path: Path,
    metadata: Mapping[str, Field],
    tensors: Sequence[NewTensor],
    *,
    progress: Progress | None = None,
) -> None:
    """Write a file; at no time is more than one part of a tensor in memory."""
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", _VERSION, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_text(key) + _value(value))
        position = 0
        for tensor in tensors:
            shape = tensor.shape[::-1]
            header = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            file.write(_text(tensor.name) + header)
            file.write(struct.pack("<IQ", tensor.kind.number, position))
            position += round_up(tensor.kind.num_bytes(tensor.shape), _ALIGNMENT)
        _pad(file)
        for number, tensor in enumerate(tensors, 1):
            end = file.tell() + tensor.kind.num_bytes(tensor.shape)
            for part in tensor.parts():
                file.write(np.ascontiguousarray(part).data)
            assert file.tell() == end, tensor.name
            _pad(file)
            if progress is not None:
                progress(number, len(tensors))


class _Cursor:
    """A position in the metadata that cannot leave them."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path = path
        self.position = 0
        self._data = data

    def take(self, size: int) -> memoryview:
        """Return the next `size` bytes."""
        end = self.position + size
        if end > len(self._data):
            length = len(self._data)
            ends = f"of more than {length} bytes" if length == _MAX_METADATA_BYTES else "cut"
            raise FormatError(
                f"{self.path}: the metadata are {ends}: the value at byte {self.position} takes {size} bytes, and "
                f"{length - self.position} follow; fetch the file again"
            )
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def integer(self, form: str) -> int:
        """Return the next number, of a type in the notation of `struct`."""
        (number,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(number)

    def text(self) -> str:
        """Return the next string."""
        data = bytes(self.take(self.integer("<Q")))
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise FormatError(
                f"{self.path}: the text {data[:80]!r:.80} is not UTF-8; fetch the file again"
            ) from error

    def _texts(self, count: int) -> list[str]:
        """Return so many strings: a vocabulary has 250,000, and `text` takes three times as long."""
        found: list[str] = []
        position, end = self.position, len(self._data) - _LENGTH.size
        with suppress(UnicodeDecodeError):
            while len(found) < count and position <= end:
                start = position + _LENGTH.size
                (size,) = _LENGTH.unpack_from(self._data, position)
                if start + size > len(self._data):
                    break
                found.append(str(self._data[start : start + size], "utf-8"))
                position = start + size
        self.position = position
        # What is left begins with one that `text` refuses.
        return found + [self.text() for _ in range(count - len(found))]

    def value(self) -> MetadataValue:
        """Return the next value of the metadata, behind its type."""
        kind = self.integer("<I")
        if kind == _TYPE.ARRAY:
            kind, count = self.integer("<I"), self.integer("<Q")
            if kind == _TYPE.STRING:
                return self._texts(count)
            dtype = self._dtype(kind)
            return np.frombuffer(self.take(count * dtype.itemsize), dtype)
        if kind == _TYPE.STRING:
            return self.text()
        dtype = self._dtype(kind)
        number: bool | int | float = np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()
        return number

    def _dtype(self, kind: int) -> np.dtype[np.generic]:
        if kind not in _DTYPES:
            raise FormatError(f"{self.path}: unknown type {kind} of a value; fetch the file again")
        return _DTYPES[_TYPE(kind)]


def _check_version(path: Path, magic: bytes, version: int) -> None:
    if magic != b"GGUF":
        raise FormatError(f"{path}: begins with {magic!r}, not with GGUF; pass a GGUF file")
    if version in _VERSIONS:
        return
    # Where the low half is zero, the bytes are the other way round.
    if version & 0xFFFF == 0:
        raise FormatError(f"{path}: a big-endian GGUF file; fetch the little-endian one")
    kind = VersionError if version > _VERSION else FormatError
    raise kind(f"{path}: GGUF version {version}, must be 2 or 3; convert the file, or upgrade")


def _describe(cursor: _Cursor) -> Entry:
    """Return what the header says of the next tensor."""
    name = cursor.text()
    num_dimensions = cursor.integer("<I")
    if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
        raise FormatError(
            f"{cursor.path}: {name!r:.80} has {num_dimensions} dimensions, may have 1 to {_MAX_DIMENSIONS}; "
            "fetch the file again"
        )
    shape = tuple(cursor.integer("<Q") for _ in range(num_dimensions))[::-1]
    number = cursor.integer("<I")
    if number not in TYPES:
        raise FormatError(f"{cursor.path}: {name!r:.80} is of type {number}, {_unknown(number)}")
    return Entry(name=name, number=number, shape=shape, start=cursor.integer("<Q"))


def _unknown(number: int) -> str:
    """What a type is that is not in `TYPES`, and what to do."""
    if number in _OF_BITNET_CPP:
        return (
            f"which is {_OF_BITNET_CPP[number]} in files for bitnet.cpp and is not read here: "
            f"{FOLDER_INSTEAD}"
        )
    return (
        "which neither this version nor its gguf library knows: pass a file of the same model whose linears are TQ1_0, "
        "TQ2_0 or Q2_0, or upgrade nanochat-ternary"
    )


def _value(value: Field) -> bytes:
    match value:
        case str():
            return struct.pack("<I", _TYPE.STRING) + _text(value)
        case np.generic():
            return struct.pack("<I", _KINDS[value.dtype]) + _little_endian(np.asarray(value))
        case np.ndarray():
            header = struct.pack("<IIQ", _TYPE.ARRAY, _KINDS[value.dtype], value.size)
            return header + _little_endian(value)
        case _:
            header = struct.pack("<IIQ", _TYPE.ARRAY, _TYPE.STRING, len(value))
            return header + b"".join(map(_text, value))


def _little_endian(array: NDArray[np.generic]) -> bytes:
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _pad(file: BinaryIO) -> None:
    file.write(bytes(round_up(file.tell(), _ALIGNMENT) - file.tell()))
