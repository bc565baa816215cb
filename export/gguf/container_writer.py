"""This file holds the writer of GGUF files of version 3: metadata, and tensors of any type, one at a time.

The gguf library's writer knows neither `Q2_0` nor tensors whose parts are packed one after the other.

References
----------
.. [1] github.com/ggml-org/ggml, docs/gguf.md, version 3.
"""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
from numpy.typing import NDArray

from nanochat.export.gguf.types import TensorType

__all__ = ["Field", "NewTensor", "Progress", "write_container"]

# A NumPy number goes into the file as the type that it has; a list, as an array of texts or of numbers of one type.
Field = str | np.generic | Sequence[str] | NDArray[np.generic]
# Called with the tensors written and the tensors to write.
Progress = Callable[[int, int], None]

_VERSION = 3
_ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT
_KIND = gguf.GGUFValueType
_KINDS = {
    np.dtype(np.uint32): _KIND.UINT32,
    np.dtype(np.int32): _KIND.INT32,
    np.dtype(np.int64): _KIND.INT64,
    np.dtype(np.float32): _KIND.FLOAT32,
    np.dtype(np.float64): _KIND.FLOAT64,
    np.dtype(np.bool_): _KIND.BOOL,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class NewTensor:
    """A tensor to write.

    Parameters
    ----------
    name : str
    kind : TensorType
    shape : tuple of int
        Rows before columns.
    parts : callable
        Gives its bytes, part after part, when they are written.
    """

    name: str
    kind: TensorType
    shape: tuple[int, ...]
    parts: Callable[[], Iterable[NDArray[np.uint8]]]

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        return self.kind.num_bytes(self.shape)


def write_container(
    path: Path,
    metadata: Mapping[str, Field],
    tensors: Sequence[NewTensor],
    *,
    progress: Progress | None = None,
) -> None:
    """Write a file; at no time is more than one part of a tensor in memory.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
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
            position += _round_up(tensor.num_bytes)
        _pad(file)
        for number, tensor in enumerate(tensors, 1):
            begin = file.tell()
            for part in tensor.parts():
                file.write(np.ascontiguousarray(part).data)
            assert file.tell() - begin == tensor.num_bytes, tensor.name
            _pad(file)
            if progress is not None:
                progress(number, len(tensors))


def _value(value: Field) -> bytes:
    match value:
        case str():
            return struct.pack("<I", _KIND.STRING) + _text(value)
        case np.generic():
            return struct.pack("<I", _KINDS[value.dtype]) + _little_endian(np.asarray(value))
        case np.ndarray():
            header = struct.pack("<IIQ", _KIND.ARRAY, _KINDS[value.dtype], value.size)
            return header + _little_endian(value)
        case _:
            header = struct.pack("<IIQ", _KIND.ARRAY, _KIND.STRING, len(value))
            return header + b"".join(map(_text, value))


def _little_endian(array: NDArray[np.generic]) -> bytes:
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _pad(file: BinaryIO) -> None:
    file.write(bytes(_round_up(file.tell()) - file.tell()))


def _round_up(position: int) -> int:
    return -(-position // _ALIGNMENT) * _ALIGNMENT
