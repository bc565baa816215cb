"""This file holds the reading and writing of files that may be hostile, or for which the disk may be too small.

Tensors of a safetensors file are mapped: the library's own reader copies them, and a model may be as large as memory.
Writers work aside and rename: a file is complete or not there, and what stood there before survives every failure.
Readers know how many bytes they accept before they read one.
"""

import json
import logging
import math
import mmap
import os
import stat
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat.errors import FormatError, SaveError

__all__ = [
    "CHECKSUMS",
    "DTYPES",
    "MAX_HEADER_BYTES",
    "Tensor",
    "atomic_directory",
    "atomic_file",
    "atomic_write",
    "exists",
    "parse_json",
    "read_bytes",
    "read_tensors",
    "release",
    "require_file",
    "write_tensors",
]

# Types of a model's tensors, by their names in the format. NumPy has no bfloat16: those bits are the high half of a
# float32's.
DTYPES: Mapping[str, type[np.generic]] = {
    "F32": np.float32,
    "U32": np.uint32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I8": np.int8,
    "U8": np.uint8,
}
# Key of a file's metadata under which the CRC-32 of each tensor stands, as JSON: the metadata hold only text.
CHECKSUMS = "crc32"
# 12,000 tensors of a mixture of 64 experts in 32 layers need 2 MB.
MAX_HEADER_BYTES = 32 * 2**20
_MAX_DIMENSIONS = 8
# A JSON integer beyond 64 bits is no count of anything, and quadratic to parse.
_MAX_DIGITS = 20
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tensor:
    """A tensor of a file: mapped, read-only, not read. `checksum` is the file's CRC-32 of it, if it has one."""

    path: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]
    checksum: object

    def array(self) -> NDArray[np.generic]:
        """Its numbers, a view of the file; those of type BF16 as float32, a copy."""
        values = self.data.view(DTYPES[self.dtype]).reshape(self.shape)
        if self.dtype == "BF16":
            bits = values.astype(np.uint32)
            bits <<= np.uint32(16)
            return bits.view(np.float32)
        # Kernels take aligned pointers; a file that was padded otherwise costs a copy.
        return np.require(values, requirements="A")

    def verify(self) -> None:
        """Compare the bytes with their checksum.

        Raises
        ------
        FormatError
            If it is another.
        """
        if self.checksum is not None and zlib.crc32(self.data.data) != self.checksum:
            raise FormatError(
                f"{self.path}: the bytes of {self.key!r:.80} have changed since they were written; "
                "fetch the file again"
            )


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`; the file written there replaces `path` when the block ends well.

    Raises
    ------
    SaveError
        If the block or the replacement meets an `OSError`; `path` is as it was.
    """
    with _aside(path, path.parent) as directory:
        new = directory / path.name
        yield new
        _sync(new)
        new.replace(path)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory whose files move to `path` when the block ends well.

    If there is no `path`, it appears complete or not at all. Otherwise each file replaces its namesake once all are
    written, and other files of `path` stay.

    Raises
    ------
    SaveError
        If the block or the move meets an `OSError`; without space for all files, `path` is as it was.
    """
    # Inside, where possible: `path` may be a mount point, or its parent read-only.
    with _aside(path, path if path.is_dir() else path.parent) as directory:
        new = directory / "new"
        new.mkdir()
        yield new
        files = sorted(file for file in new.rglob("*") if file.is_file())
        for file in files:
            _sync(file)
        if not path.exists():
            new.replace(path)
            return
        for file in files:
            place = path / file.relative_to(new)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)


def atomic_write(path: Path, data: bytes) -> None:
    """Replace the content of `path`, or leave it as it was.

    Raises
    ------
    SaveError
        If the file cannot be written.
    """
    with atomic_file(path) as new:
        new.write_bytes(data)


def exists(path: Path) -> bool:
    """Whether something of that name can be seen; names that no file can have are not there."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def release(array: NDArray[Any]) -> None:
    """Give back the memory of an array that is a view of a mapped file; what is read again comes from the file."""
    owner: object = array
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if not isinstance(owner, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    # What was written to a private copy of a file's page would be lost.
    if not memoryview(owner).readonly:
        return
    start = array.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
    # Pages that hold the ends of neighbours stay.
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        owner.madvise(mmap.MADV_DONTNEED, first, last - first)


def require_file(path: Path) -> int:
    """Return the size of `path` in bytes; links are followed, pipes and devices refused.

    Raises
    ------
    FormatError
        If there is no regular file.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: {_reason(error)}; copy or fetch the file again") from error
    if not stat.S_ISREG(status.st_mode):
        raise FormatError(f"{path}: not a regular file; put a copy of the file there")
    return status.st_size


def read_bytes(path: Path, *, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes.

    Raises
    ------
    FormatError
        If the file is missing, unreadable or larger.
    """
    size = require_file(path)
    if size > limit:
        raise FormatError(f"{path}: {size} bytes, over the limit of {limit}; fetch the file again")
    try:
        with path.open("rb") as file:
            # Not `limit`: Python reserves what it is asked to read.
            return file.read(size)
    except OSError as error:
        raise FormatError(f"{path}: {_reason(error)}; make the file readable") from error


def parse_json(data: bytes, name: str) -> dict[str, object]:
    """Return the JSON object in `data`.

    Parameters
    ----------
    name : str
        Where `data` comes from, for the error.

    Raises
    ------
    FormatError
        If it is not one JSON object in UTF-8, or repeats a key.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_without_repeats, parse_int=_integer
        )
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name}: not valid JSON ({error}); fetch the file again") from error
    if not isinstance(value, dict):
        raise FormatError(f"{name}: holds no JSON object; fetch the file again")
    return value


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file by its key.

    Raises
    ------
    FormatError
        If the file is missing, truncated, padded, or its header is not what the format asks for.
    """
    size = require_file(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise FormatError(
                    f"{path}: a header of {length} bytes in a file of {size}: it must fit, and be at most "
                    f"{MAX_HEADER_BYTES} bytes; fetch the file again"
                )
            header = parse_json(file.read(length), str(path))
        data = np.asarray(np.memmap(path, np.uint8, mode="r"))[8 + length :]
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror or error}; make the file readable") from error
    checksums = _checksums(path, header.pop("__metadata__", None))
    tensors: dict[str, Tensor] = {}
    position = 0
    described = {key: _describe(path, key, value) for key, value in header.items()}
    for key, (dtype, shape, start, end) in sorted(described.items(), key=lambda item: item[1][2:]):
        # No gap and no overlap, so that no byte of the file is hidden or has two meanings.
        if start != position or end - start != _num_bytes(dtype, shape):
            raise FormatError(
                f"{path}: {key!r:.80}, of type {dtype} and shape {list(shape)}, has the bytes {start} to "
                f"{end}: must start at {position} and fit; fetch the file again"
            )
        position = end
        tensors[key] = Tensor(
            path=path,
            key=key,
            dtype=dtype,
            shape=shape,
            data=data[start:end],
            checksum=checksums.get(key),
        )
    if position != data.size:
        raise FormatError(
            f"{path}: {data.size} bytes follow the header, which describes {position}; fetch the file again"
        )
    return tensors


def write_tensors(
    path: Path, tensors: Mapping[str, NDArray[np.generic]], *, metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file with a CRC-32 of each tensor; the same tensors give the same bytes.

    Parameters
    ----------
    path : Path
        The file to write; see `atomic_file` and `atomic_directory` for writing it whole or not at all.
    tensors : mapping
        Arrays of `DTYPES` by key.
    metadata : mapping
        Further texts for the header.
    """
    # The order of `DTYPES` is that of the format's library, from wide to narrow, so that every tensor is aligned.
    names = {np.dtype(dtype): (order, name) for order, (name, dtype) in enumerate(DTYPES.items())}
    arrays = {key: np.ascontiguousarray(array) for key, array in tensors.items()}
    order = sorted(arrays, key=lambda key: (names[arrays[key].dtype], key))
    checksums = json.dumps({key: zlib.crc32(array.data) for key, array in arrays.items()})
    header: dict[str, object] = {"__metadata__": {CHECKSUMS: checksums, **metadata}}
    end = 0
    for key in order:
        start, end = end, end + arrays[key].nbytes
        header[key] = {
            "dtype": names[arrays[key].dtype][1],
            "shape": arrays[key].shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            file.write(arrays[key].data)


@contextmanager
def _aside(path: Path, parent: Path) -> Iterator[Path]:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        # A directory, because a file made by `tempfile` would keep its narrow permissions.
        with tempfile.TemporaryDirectory(
            dir=parent, prefix=f".{path.name[:100]}.", ignore_cleanup_errors=True
        ) as directory:
            yield Path(directory)
    except SaveError:
        raise
    except OSError as error:
        raise SaveError(
            f"cannot write {path}: {_reason(error)}; free space or pass another path"
        ) from error


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r:.80} is there twice")
        values[key] = value
    return values


def _checksums(path: Path, metadata: object) -> dict[str, object]:
    if isinstance(metadata, dict) and isinstance(metadata.get(CHECKSUMS), str):
        return parse_json(metadata[CHECKSUMS].encode(errors="replace"), f"{path}, {CHECKSUMS}")
    _LOGGER.warning("%s has no checksums: damage that leaves legal numbers goes unnoticed", path)
    return {}


def _describe(path: Path, key: str, value: object) -> tuple[str, tuple[int, ...], int, int]:
    match value:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]}:
            whole = all(type(count) is int and count >= 0 for count in shape)
            if dtype in DTYPES and whole and len(shape) <= _MAX_DIMENSIONS:
                return dtype, tuple(shape), start, end
    raise FormatError(
        f"{path}: {key!r:.80} is described as {value!r:.200}: must be of type {', '.join(DTYPES)}, with a shape "
        "and two offsets; convert the model, or fetch it again"
    )


def _num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
