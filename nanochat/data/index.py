"""This file holds what is on disk: ``data.json``, and the token files that it lists.

A split is one stream of tokens, each document behind a ``<|bos|>``, cut into shards of equal length: files of
one-dimensional little-endian arrays in NumPy's format, ``uint16`` or, for more than 65,536 tokens, ``uint32``. Beside
them an ``int64`` array says where in the stream each document starts, and of conversations another where answers are.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from nanochat.errors import DataError, FormatError, VersionError
from nanochat.files import parse_json, read_bytes, record_file

__all__ = [
    "FILE_NAME",
    "Beside",
    "DataIndex",
    "Shard",
    "Split",
    "Tokens",
    "array_file",
    "token_type",
]

Tokens = NDArray[np.unsignedinteger]

FILE_NAME = "data.json"
# The first version has uint16 only, the second uint32 too; neither says where documents start.
_FORMAT = 3
_MAX_FILE_BYTES = 64 * 2**20
_NAME = re.compile(r"(train|held_out)-(\d{5,}|starts|answers)\.npy")
# Where documents start.
_PLACE = np.dtype("<i8")


def token_type(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """What tokens of such a vocabulary are stored as, little-endian.

    Examples
    --------
    >>> token_type(65_536).name, token_type(65_537).name
    ('uint16', 'uint32')
    """
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A file of places in the stream, such as ``train-starts.npy``, and what must be found in it.

    Parameters
    ----------
    places, bytes : int
        Length of the array, size of the file.
    sha256 : str
        Of the file, hexadecimal.
    """

    name: str
    places: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        _check_file(self.name, self.sha256, places=self.places, bytes=self.bytes)

    @classmethod
    def write(cls, path: Path, places: NDArray[np.int64]) -> "Beside":
        """Write places, in ascending order, to `path`."""
        _save(path, places.astype(_PLACE))
        record = record_file(path)
        return cls(name=path.name, places=len(places), bytes=record.bytes, sha256=record.sha256)

    def open(self, directory: Path) -> NDArray[np.int64]:
        """Map the places into memory, after a check of the file's size, but not of its hash."""
        found: NDArray[np.int64] = _mapped(directory / self.name, self.bytes, self.places, _PLACE)
        return found


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of tokens: its name, such as ``train-00000.npy``, and what must be found in it.

    Parameters
    ----------
    tokens, bytes : int
        Length of the array, size of the file.
    sha256 : str
        Of the file, hexadecimal.
    """

    name: str
    tokens: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        _check_file(self.name, self.sha256, tokens=self.tokens, bytes=self.bytes)

    @classmethod
    def write(cls, path: Path, tokens: Tokens) -> "Shard":
        """Write `tokens`, of their `token_type`, to `path`."""
        _save(path, tokens)
        record = record_file(path)
        return cls(name=path.name, tokens=len(tokens), bytes=record.bytes, sha256=record.sha256)

    def open(self, directory: Path, dtype: np.dtype[np.unsignedinteger]) -> Tokens:
        """Map the file into memory, after a check of its size and type, but not of its hash."""
        found: Tokens = _mapped(directory / self.name, self.bytes, self.tokens, dtype)
        return found


@dataclass(frozen=True, kw_only=True)
class Split:
    """The documents for one purpose, as one stream of tokens cut into shards.

    Parameters
    ----------
    files, bytes, tokens : int
        Number of documents, which are files or pieces of them, size of their text in UTF-8, number of their tokens, one
        ``<|bos|>`` each included.
    starts : Beside, optional
        Where each document starts; data of before there was such an index have none.
    answers : Beside, optional
        Of conversations, where what the assistant wrote begins and ends, alternately; only that is learnt.
    """

    files: int
    bytes: int
    tokens: int
    shards: tuple[Shard, ...]
    starts: Beside | None = None
    answers: Beside | None = None

    @property
    def files_beside(self) -> tuple[Beside, ...]:
        """Those of its files that are no shards."""
        return tuple(each for each in (self.starts, self.answers) if each is not None)

    def __post_init__(self) -> None:
        _check_counts(files=self.files, bytes=self.bytes, tokens=self.tokens)
        total = sum(shard.tokens for shard in self.shards)
        if total != self.tokens:
            raise FormatError(f"the shards have {total} tokens, the split says {self.tokens}")
        if self.starts is not None and self.starts.places != self.files:
            raise FormatError(f"{self.starts.places} of {self.files} documents have a start")


@dataclass(frozen=True, kw_only=True)
class DataIndex:
    """What a directory of tokens holds and how to make it again: ``data.json``.

    Parameters
    ----------
    patterns, held_out, max_file_bytes, column, chat, near_duplicates
        Of the text; see :func:`nanochat.data.prepare.prepare`.
    vocab_size : int
        Tokens are below this.
    tokenizer : str
        ``Tokenizer.fingerprint``.
    dropped : dict of str to int
        Texts left out, by reason.
    splits : dict of str to Split
        ``train`` and ``held_out``.
    commits : dict of str to str
        Of data sets of the Hub, what their names stood for.
    """

    patterns: tuple[str, ...]
    held_out: float
    max_file_bytes: int
    vocab_size: int
    tokenizer: str
    dropped: dict[str, int]
    splits: dict[str, Split]
    column: str = "text"
    chat: bool = False
    near_duplicates: float = 0.0
    commits: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_counts(vocab_size=self.vocab_size)
        if set(self.splits) != {"train", "held_out"}:
            raise FormatError(f"the splits are {sorted(self.splits)}, not 'held_out' and 'train'")

    def write(self, directory: Path) -> None:
        """Write ``data.json`` to `directory`."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=2) + "\n"
        (directory / FILE_NAME).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> "DataIndex":
        """Read ``data.json`` of `directory`."""
        path = directory / FILE_NAME
        if not path.is_file():
            raise DataError(f"{path}: no such file; pass a directory that `prepare` has written")
        data: dict[str, Any] = parse_json(read_bytes(path, limit=_MAX_FILE_BYTES), str(path))
        version = data.pop("format", None)
        if type(version) is not int or version < 1:
            raise FormatError(f"{path}: format is {version!r:.40}; prepare the data again")
        if version > _FORMAT:
            raise VersionError(
                f"{path}: format {version} is newer than {_FORMAT}; upgrade nanochat-ternary"
            )
        try:
            splits = {name: _split(split) for name, split in data["splits"].items()}
            return cls(**{**data, "splits": splits, "patterns": tuple(data["patterns"])})
        except (AttributeError, KeyError, TypeError, FormatError) as error:
            raise FormatError(f"{path}: damaged ({error}); prepare the data again") from error


def _split(found: dict[str, Any]) -> Split:
    shards = tuple(Shard(**each) for each in found["shards"])
    beside = {
        name: None if found.get(name) is None else Beside(**found[name])
        for name in ("starts", "answers")
    }
    return Split(**{**found, "shards": shards, **beside})


@contextmanager
def array_file(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    """A file in NumPy's format, into which the bytes of an array are written in their order.

    On a full disk `numpy.save` loses the last kilobytes without a word, and a mapped file ends the process by a signal;
    here it is an `OSError`.
    """
    with path.open("wb") as file:
        descr = np.lib.format.dtype_to_descr(dtype)
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield file
        file.flush()
        os.fsync(file.fileno())


def _save(path: Path, array: NDArray[Any]) -> None:
    with array_file(path, array.dtype, array.shape) as file:
        file.write(np.ascontiguousarray(array).data)


def _mapped(path: Path, size: int, length: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    try:
        found = path.stat().st_size
        # Not `numpy.load`, which takes a file that begins otherwise for another format.
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: {error}; copy or prepare it again") from error
    if found != size or array.shape != (length,) or array.dtype != dtype:
        raise FormatError(
            f"{path}: {found} bytes, {array.dtype} of shape {array.shape}; {FILE_NAME} says "
            f"{size} bytes, {dtype} of shape ({length},); copy or prepare it again"
        )
    return array


def _check_file(name: object, sha256: object, **counts: int) -> None:
    _check_counts(**counts)
    # A name with a slash could point outside the directory.
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise FormatError(f"{name!r:.80} is not the name of a shard")
    if not isinstance(sha256, str):
        raise FormatError(f"the sha256 of {name} is {sha256!r:.80}, not a string")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if type(count) is not int or count < 0:
            raise FormatError(f"{name} is {count!r:.40}, not a count")
