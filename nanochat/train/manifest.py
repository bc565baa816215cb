"""This file holds the layout of prepared data: ``data.json`` and the files of tokens that it lists.

A file of tokens is a one-dimensional little-endian ``uint16`` array in NumPy's format.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat.errors import DataError, FormatError, VersionError
from nanochat.files import parse_json, read_bytes

__all__ = ["FILE_NAME", "FORMAT", "Manifest", "Shard", "Split"]

FILE_NAME = "data.json"
FORMAT = 1
_MAX_FILE_BYTES = 64 * 2**20
_SHARD_NAME = re.compile(r"(train|held_out)-\d{5,}\.npy")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of tokens.

    Attributes
    ----------
    name : str
        ``train-00000.npy``, ``held_out-00000.npy`` and so on.
    tokens : int
        Length of the array.
    bytes : int
        Size of the file.
    sha256 : str
        Of the file, hexadecimal.
    """

    name: str
    tokens: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        _check_counts(tokens=self.tokens, bytes=self.bytes)
        # A name with a slash could point outside the directory.
        if not isinstance(self.name, str) or not _SHARD_NAME.fullmatch(self.name):
            raise FormatError(f"{self.name!r:.80} is not the name of a shard")
        if not isinstance(self.sha256, str):
            raise FormatError(f"the sha256 of {self.name} is {self.sha256!r:.80}, not a string")

    @classmethod
    def write(cls, path: Path, tokens: NDArray[np.uint16]) -> "Shard":
        """Write `tokens` to `path`."""
        np.save(path, tokens.astype("<u2", copy=False))
        size = path.stat().st_size
        return cls(name=path.name, tokens=len(tokens), bytes=size, sha256=_sha256(path))

    def open(self, directory: Path) -> NDArray[np.uint16]:
        """Map the file into memory, after a check of its size.

        Raises
        ------
        FormatError
            If it is missing, damaged, or of another size or type.
        """
        path = directory / self.name
        try:
            size = path.stat().st_size
            tokens: NDArray[np.uint16] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise FormatError(f"{path}: {error}; copy or prepare it again") from error
        if size != self.bytes or tokens.shape != (self.tokens,) or tokens.dtype != np.dtype("<u2"):
            raise FormatError(
                f"{path}: {size} bytes, {tokens.dtype} of shape {tokens.shape}; {FILE_NAME} says "
                f"{self.bytes} bytes, uint16 of shape ({self.tokens},); copy or prepare it again"
            )
        return tokens

    def verify(self, directory: Path) -> None:
        """Read the whole file and compare its hash.

        Raises
        ------
        FormatError
            If it differs.
        """
        path = directory / self.name
        if _sha256(path) != self.sha256:
            raise FormatError(f"{path}: not the SHA-256 in {FILE_NAME}; copy or prepare it again")


@dataclass(frozen=True, kw_only=True)
class Split:
    """The documents for one purpose, as one stream of tokens cut into shards.

    Attributes
    ----------
    files : int
        Number of documents.
    bytes : int
        Their UTF-8 text, bytes.
    tokens : int
        Their tokens, one ``<|bos|>`` each included.
    shards : tuple of Shard
        In order.
    """

    files: int
    bytes: int
    tokens: int
    shards: tuple[Shard, ...]

    def __post_init__(self) -> None:
        _check_counts(files=self.files, bytes=self.bytes, tokens=self.tokens)
        total = sum(shard.tokens for shard in self.shards)
        if total != self.tokens:
            raise FormatError(f"the shards have {total} tokens, the split says {self.tokens}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a directory of tokens holds and how to make it again.

    Attributes
    ----------
    format : int
        Version of this layout.
    patterns : tuple of str
        Where the text came from.
    held_out : float
        Share of the files that is for evaluation.
    max_file_bytes : int
        Larger files were dropped.
    vocab_size : int
        Tokens are below this.
    tokenizer : str
        ``Tokenizer.fingerprint``.
    dropped : dict of str to int
        Files left out, by reason.
    splits : dict of str to Split
        ``train`` and ``held_out``.
    """

    format: int
    patterns: tuple[str, ...]
    held_out: float
    max_file_bytes: int
    vocab_size: int
    tokenizer: str
    dropped: dict[str, int]
    splits: dict[str, Split]

    def __post_init__(self) -> None:
        _check_counts(vocab_size=self.vocab_size)
        if set(self.splits) != {"train", "held_out"}:
            raise FormatError(f"the splits are {sorted(self.splits)}, not 'held_out' and 'train'")

    def write(self, directory: Path) -> None:
        """Write the manifest to `directory`."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        (directory / FILE_NAME).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Read the manifest of `directory`.

        Raises
        ------
        DataError
            If there is none.
        FormatError
            If it is damaged, or (VersionError) written by a newer version.
        """
        path = directory / FILE_NAME
        if not path.is_file():
            raise DataError(f"{path}: no such file; pass a directory that `prepare` has written")
        data = parse_json(read_bytes(path, limit=_MAX_FILE_BYTES), str(path))
        version = data.get("format")
        if type(version) is not int or version < 1:
            raise FormatError(f"{path}: format is {version!r:.40}; prepare the data again")
        if version > FORMAT:
            raise VersionError(
                f"{path}: format {version} is newer than {FORMAT}; upgrade nanochat-ternary"
            )
        try:
            return cls(**_fields(data))
        except (AttributeError, KeyError, TypeError, FormatError) as error:
            raise FormatError(f"{path}: damaged ({error}); prepare the data again") from error


def _fields(data: Any) -> Any:
    splits = {name: _split(split) for name, split in data["splits"].items()}
    return {**data, "splits": splits, "patterns": tuple(data["patterns"])}


def _split(data: Any) -> Split:
    return Split(**{**data, "shards": tuple(Shard(**shard) for shard in data["shards"])})


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if type(count) is not int or count < 0:
            raise FormatError(f"{name} is {count!r:.40}, not a count")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
