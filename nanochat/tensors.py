"""This file holds safetensors files, one or several in a folder: tensors that are mapped, checked and written.

The library's own reader copies tensors, and a model may be as large as memory.
"""

import json
import logging
import math
import mmap
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from nanochat.errors import FormatError, InputError, SaveError
from nanochat.files import atomic_directory, exists, parse_json, read_bytes, require_file

__all__ = [
    "CHECKSUMS",
    "DTYPES",
    "INDEX",
    "MAX_INDEX_BYTES",
    "MAX_SHARD_BYTES",
    "PICKLES",
    "SINGLE",
    "Tensor",
    "TensorFiles",
    "file_type",
    "find_tensors",
    "is_weights",
    "load_tensors",
    "read_tensors",
    "release",
    "save_tensors",
    "write_tensors",
]

# Types of a model's tensors, by their names in the format.
DTYPES: Mapping[str, type[np.generic]] = {
    "F32": np.float32,
    "U32": np.uint32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I8": np.int8,
    "U8": np.uint8,
}
# Key of a file's metadata under which the CRC-32 of each tensor stands, as JSON: the metadata hold only text.
CHECKSUMS = "crc32"
# 12,000 tensors of a mixture of 64 experts in 32 layers need 2 MB.
_MAX_HEADER_BYTES = MAX_INDEX_BYTES = 32 * 2**20
_MAX_DIMENSIONS = 8
# The file of tensors that needs no index, and the index, which may name files of other names.
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SUFFIX = ".safetensors"
# Endings of files of tensors that are never opened.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_PLAIN = re.compile(rf"[^/\\:\0]+{re.escape(_SUFFIX)}")
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
# The Hub's own default, bytes.
MAX_SHARD_BYTES = 5 * 10**9
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
        """Its numbers, a view of the file."""
        values = self.data.view(DTYPES[self.dtype]).reshape(self.shape)
        # Kernels take aligned pointers; a file that was padded otherwise costs a copy.
        return np.require(values, requirements="A")

    def verify(self) -> None:
        """Compare the bytes with their checksum."""
        if self.checksum is not None and zlib.crc32(self.data.data) != self.checksum:
            raise FormatError(
                f"{self.path}: the bytes of {self.key!r:.80} have changed since they were written; "
                "fetch the file again"
            )


def file_type(dtype: np.dtype[Any]) -> str:
    """The name of a type in the format; that of NumPy if it has none.

    >>> file_type(np.dtype(np.float16))
    'F16'
    """
    return next((name for name, known in DTYPES.items() if dtype == known), str(dtype))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file by its key."""
    size = require_file(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8:
                raise FormatError(
                    f"{path}: {size} bytes are too short for a safetensors file; fetch it again"
                )
            if length > min(size - 8, _MAX_HEADER_BYTES):
                raise FormatError(
                    f"{path}: {size} bytes, of which the first eight tell of a header of {length} bytes (at most "
                    f"{_MAX_HEADER_BYTES}): the file was cut, or is no safetensors file; fetch it again"
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
        num_bytes = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        if start != position or end - start != num_bytes:
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
    if position > data.size:
        raise FormatError(
            f"{path}: {size} bytes, of the {8 + length + position} that its tensors take: the file was cut, such as by "
            "a download that did not end; fetch it again"
        )
    if position < data.size:
        _LOGGER.warning(
            "%s: %d bytes follow the last tensor, and are not read", path, data.size - position
        )
    return tensors


def write_tensors(
    path: Path, tensors: Mapping[str, NDArray[np.generic]], *, metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file with a CRC-32 of each tensor; the same tensors give the same bytes.

    See `atomic_file` and `atomic_directory` for writing it whole or not at all.
    """
    # The order of `DTYPES` is that of the format's library, from wide to narrow, so that every tensor is aligned.
    names = {np.dtype(dtype): (order, name) for order, (name, dtype) in enumerate(DTYPES.items())}
    arrays = {key: np.ascontiguousarray(array) for key, array in tensors.items()}
    order = sorted(arrays, key=lambda key: (names[arrays[key].dtype], key))
    checksums = json.dumps({key: zlib.crc32(_bytes(array)) for key, array in arrays.items()})
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
            file.write(_bytes(arrays[key]))


def _bytes(array: NDArray[np.generic]) -> memoryview:
    """Those of a whole array; a buffer has no element type for all that NumPy has."""
    return array.reshape(-1).view(np.uint8).data


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
    # Of a view that leaves bytes out, these go, too.
    start, end = (
        address - np.frombuffer(owner, np.uint8).ctypes.data
        for address in np.lib.array_utils.byte_bounds(array)
    )
    # Pages that hold the ends of neighbours stay.
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = end // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        owner.madvise(mmap.MADV_DONTNEED, first, last - first)


def save_tensors(
    directory: Path,
    tensors: Mapping[str, NDArray[np.generic]],
    *,
    texts: Mapping[str, Mapping[str, object]],
    others: Mapping[str, bytes],
    metadata: Mapping[str, str] | None = None,
    finish: Callable[[Path], None] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write tensors of any names, and the files that belong to them: all, or none.

    Parameters
    ----------
    directory : Path
        Made if it is not there; the tensors that it holds are replaced, other files stay.
    texts, others : mapping
        Content of further files by name: objects that become JSON, and bytes.
    metadata : mapping, optional
        Texts for the header of each file of tensors.
    finish : callable, optional
        Called with the folder in which all files are complete, before they are put in place; it may add to them.
    max_shard_bytes : int
        Tensors of more bytes than this go to several files, with an index.
    """
    shards = _split(tensors, max_shard_bytes)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(array.nbytes for array in tensors.values())},
            "weight_map": {key: name for name, keys in shards.items() for key in keys},
        }
        texts = {**texts, INDEX: index}
    contents = {name: _json(value, name) for name, value in texts.items()}
    with atomic_directory(directory) as new:
        for name, content in {**contents, **others}.items():
            (new / name).write_bytes(content)
        for name, keys in shards.items():
            part = {key: tensors[key] for key in keys}
            write_tensors(new / name, part, metadata=metadata or {})
        if finish is not None:
            finish(new)
    _remove_others(directory, {*contents, *shards})


def load_tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a folder by its key: mapped, not read."""
    if not exists(directory / SINGLE) and not exists(directory / INDEX):
        raise FormatError(_without_tensors(directory))
    found = find_tensors(
        lambda name: exists(directory / name),
        lambda name: read_bytes(directory / name, limit=MAX_INDEX_BYTES),
        where=str(directory),
    )
    tensors: dict[str, Tensor] = {}
    for name in sorted(found.files):
        for key, tensor in read_tensors(directory / name).items():
            # What an index does not know is read all the same, as by everybody.
            if found.homes.get(key, name) != name or key in tensors:
                raise FormatError(
                    f"{directory / name}: holds {key!r:.80}, which is in another file, by {INDEX} or in fact; fetch "
                    "all of them again"
                )
            tensors[key] = tensor
    missing = sorted(found.homes.keys() - tensors.keys())
    if missing:
        # Whether the model has a place for it is known to whoever asked for the tensors.
        _LOGGER.warning(
            "%s: %s places %r in %s, which lacks it, and %d others so",
            directory,
            INDEX,
            missing[0],
            found.homes[missing[0]],
            len(missing) - 1,
        )
    return tensors


@dataclass(frozen=True, kw_only=True)
class TensorFiles:
    """Which files of a folder hold its tensors; `homes` are those of the keys, empty if no index says them."""

    files: frozenset[str]
    homes: Mapping[str, str]


def find_tensors(
    is_there: Callable[[str], bool], read: Callable[[str], bytes], *, where: str
) -> TensorFiles:
    """The files that hold the tensors of a folder: those that its index names, if it has one, else the one.

    Parameters
    ----------
    is_there : callable
        Whether the folder has a file of a name.
    read : callable
        Content of the file of a name.
    where : str
        The folder, for messages.
    """
    single = TensorFiles(files=frozenset({SINGLE}), homes={})
    if not is_there(INDEX):
        return single
    homes = _read_index(read(INDEX), f"{where}/{INDEX}")
    files = frozenset(homes.values())
    if SINGLE in files or not is_there(SINGLE):
        return TensorFiles(files=files, homes=homes)
    there = sorted(filter(is_there, files))
    if there:
        raise FormatError(
            f"{where}: holds both {SINGLE} and {there[0]} of {INDEX}, two models of which other programs read one or "
            f"the other; delete the one that is older, with {INDEX} if that is the one in parts"
        )
    # transformers deletes the parts of a model that it replaces by one file, but not their index.
    _LOGGER.warning("%s: %s is of a model that is not there, and is not read", where, INDEX)
    return single


def is_weights(name: str) -> bool:
    """Whether a file of that name holds tensors of a model, or says which file holds them.

    Examples
    --------
    >>> is_weights("model.safetensors"), is_weights("model-00002-of-00003.safetensors"), is_weights("x.safetensors")
    (True, True, False)
    """
    return name in (SINGLE, INDEX) or _SHARD.fullmatch(name) is not None


def _without_tensors(directory: Path) -> str:
    """What is there instead of tensors that could be read, and what to do."""
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    pickles = [name for name in names if name.endswith(PICKLES)]
    others = [name for name in names if name.endswith(_SUFFIX)]
    why = f"{directory}: no {SINGLE}"
    if any(map(_SHARD.fullmatch, others)):
        return f"{why}, and no {INDEX} beside {others[0]}: fetch that file, too"
    if others:
        return f"{why}, and no {INDEX} that names {others[0]}: if that one is the whole model, rename it to {SINGLE}"
    if pickles:
        return (
            f"{why}, but {pickles[0]}: pickles can run code and are not opened; convert it to safetensors, or choose "
            "a model that has"
        )
    return f"{why}: the download is incomplete; fetch the model again"


def _read_index(content: bytes, where: str) -> dict[str, str]:
    """The file of each key."""
    homes = parse_json(content, where).get("weight_map")
    if not isinstance(homes, dict) or not homes:
        raise FormatError(f"{where}: no object 'weight_map' of tensors; fetch the file again")
    for key, name in homes.items():
        # No index can lead out of its folder, nor to what is no file of tensors.
        if not isinstance(name, str) or not _PLAIN.fullmatch(name):
            raise FormatError(
                f"{where}: places {key!r:.80} in {name!r:.80}, must be the name of a {_SUFFIX} file beside it; do not "
                "use this model"
            )
    return homes


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


def _split(tensors: Mapping[str, NDArray[np.generic]], limit: int) -> dict[str, list[str]]:
    """Return the keys of each file, in order."""
    groups: list[list[str]] = [[]]
    size = 0
    for key, array in tensors.items():
        if groups[-1] and size + array.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(key)
        size += array.nbytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    count = len(groups)
    return {f"model-{i + 1:05}-of-{count:05}.safetensors": keys for i, keys in enumerate(groups)}


def _json(value: Mapping[str, object], name: str) -> bytes:
    try:
        return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} has no JSON form ({error}): pass plain values") from error


def _remove_others(directory: Path, written: set[str]) -> None:
    """Delete the weights that were just replaced but bear other names."""
    for path in directory.iterdir():
        if is_weights(path.name) and path.name not in written:
            try:
                path.unlink()
            except OSError as error:
                raise SaveError(
                    f"cannot delete {path}, of the model that was replaced: {error.strerror}; "
                    "delete it, or the new model will not load"
                ) from error
