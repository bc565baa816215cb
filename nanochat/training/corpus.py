"""This file holds the way from text files to training data: one file, one document.

Every file belongs to one split, by a hash of its path relative to its pattern. So a file stays in its split when the
corpus moves, grows or is read again. Where files are too few for that, one file most of all, pieces of each are held
out.
"""

import glob
import hashlib
import itertools
import logging
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from nanochat.errors import DataError, InputError, SaveError
from nanochat.text.tokenizer import Tokenizer
from nanochat.training.data import FILE_NAME, DataIndex, Shard, Split, Tokens, token_type

__all__ = ["Document", "Unit", "documents", "find_files", "is_held_out", "position", "prepare"]

Unit = Literal["file", "piece"]

# Their relative and their real paths.
_Files = Sequence[tuple[str, Path]]

_BATCH_CHARACTERS = 4_000_000
# Of a file, each of which ends with a piece that is held out.
_SECTION_CHARACTERS = 2**20
# How far before its place a cut may be, to be at the start of a line.
_LINE_CHARACTERS = 1000
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Document:
    """The text of one file or piece, unchanged, its path relative to the pattern, and whether it is for evaluation."""

    path: str
    text: str
    held_out: bool


def prepare(
    patterns: Sequence[str | Path],
    output: str | Path,
    tokenizer: Tokenizer | int,
    *,
    held_out: float = 0.02,
    shard_tokens: int = 2**26,
    max_file_bytes: int = 2**30,
    sample_bytes: int = 20_000_000,
    overwrite: bool = False,
    beside: Mapping[str, bytes] | None = None,
) -> DataIndex:
    """Write the tokens of all files that `patterns` match, their tokenizer and ``data.json``, which is returned.

    The directory appears complete or not at all. Files are held out whole, unless that leaves a split without any.

    Parameters
    ----------
    patterns, held_out, max_file_bytes
        See :func:`documents`.
    output : str or Path
        Directory to create. If it lies in what `patterns` match, its files are no text of theirs.
    tokenizer : Tokenizer or int
        A tokenizer, or the size of the vocabulary to train on this text.
    shard_tokens : int
        Tokens per file.
    sample_bytes : int
        Text that a new tokenizer is trained on, bytes, drawn from the training files.
    overwrite : bool
        Replace `output` if it holds prepared data.
    beside : dict of str to bytes, optional
        Other files to put there, by name.
    """
    output = Path(output)
    for name, size in (
        ("shard_tokens", shard_tokens),
        ("max_file_bytes", max_file_bytes),
        ("sample_bytes", sample_bytes),
    ):
        if size < 1:
            raise InputError(f"{name}={size} leaves no room: pass 1 or more")
    _check_output(output, overwrite)
    dropped: Counter[str] = Counter()
    # Before this writes files of its own.
    files = [each for each in find_files(patterns) if output.resolve() not in each[1].parents]
    unit = _choose_unit(files, held_out, max_file_bytes)
    if isinstance(tokenizer, int):
        texts = _sample(files, held_out, max_file_bytes, sample_bytes, unit)
        tokenizer = Tokenizer.train(texts, tokenizer)
    read = _documents(files, held_out, max_file_bytes, dropped, unit)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as aside:
            new = Path(aside) / "new"
            new.mkdir()
            for name, content in {**tokenizer.files(), **(beside or {})}.items():
                (new / name).write_bytes(content)
            splits = _write_splits(read, new, tokenizer, shard_tokens)
            _log_dropped(dropped)
            _check_splits(splits, held_out)
            index = DataIndex(
                patterns=tuple(map(str, patterns)),
                held_out=held_out,
                max_file_bytes=max_file_bytes,
                vocab_size=tokenizer.vocab_size,
                tokenizer=tokenizer.fingerprint,
                dropped=dict(dropped),
                splits=splits,
            )
            index.write(new)
            if output.exists():
                output.rename(Path(aside) / "old")
            new.rename(output)
    except OSError as error:
        raise SaveError(
            f"cannot write {output}: {error.strerror or error}; free space or pass another path"
        ) from error
    return index


def documents(
    patterns: Sequence[str | Path],
    *,
    held_out: float = 0.02,
    max_file_bytes: int = 2**30,
    dropped: Counter[str] | None = None,
    unit: Unit = "file",
) -> Iterator[Document]:
    """Yield the files that `patterns` match, or pieces of them, in order of their paths, each contents once.

    Left out and counted: files that are not UTF-8, are empty, are larger than `max_file_bytes`, or
    equal an earlier file but for whitespace.

    Parameters
    ----------
    patterns : sequence of str or Path
        Files, directories (all files below them) and globs (``**`` crosses directories).
    held_out : float
        Share of the files, or of each file's text, that is for evaluation, at least 0 and below 1.
    max_file_bytes : int
        Largest file that is read, bytes. Large source files are mostly generated tables.
    dropped : Counter, optional
        Receives the number of files left out, by reason. Without it, the log does.
    unit : {"file", "piece"}
        What is held out whole: files, chosen by a hash of their paths; or the ends of sections of every file, which
        are a million characters long, or shorter.
    """
    counts: Counter[str] = Counter() if dropped is None else dropped
    yield from _documents(find_files(patterns), held_out, max_file_bytes, counts, unit)
    if dropped is None:
        _log_dropped(counts)


def _documents(
    files: _Files, held_out: float, max_file_bytes: int, counts: Counter[str], unit: Unit
) -> Iterator[Document]:
    seen: set[bytes] = set()
    for name, path in files:
        text = _read(path, max_file_bytes, counts)
        if text is None:
            continue
        contents = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
        if contents in seen:
            counts["duplicate"] += 1
            continue
        seen.add(contents)
        if unit == "piece":
            yield from _pieces(name, text, held_out)
        else:
            yield Document(path=name, text=text, held_out=is_held_out(name, held_out))


def find_files(patterns: Sequence[str | Path]) -> list[tuple[str, Path]]:
    """Return the relative and the real path of each file that `patterns` match, once, sorted."""
    if isinstance(patterns, str | Path) or not patterns:
        raise DataError(f"patterns is {patterns!r}: pass a list with at least one path or glob")
    found: dict[Path, str] = {}
    for pattern in patterns:
        base, paths = _expand(str(pattern))
        files = [path for path in paths if path.is_file()]
        if not files:
            raise DataError(
                f"{pattern} matches no file below {Path.cwd()}: correct the path, and quote a glob "
                "in the shell"
            )
        for path in files:
            found.setdefault(path.resolve(), path.relative_to(base).as_posix())
    return sorted((name, path) for path, name in found.items())


def is_held_out(name: str, share: float) -> bool:
    """Return whether the file of this relative path is for evaluation, as are a `share` of all."""
    if not 0 <= share < 1:
        raise InputError(f"held_out={share} is not a share of the files: pass 0 <= held_out < 1")
    return position(name) < share


def position(name: str, salt: str = "split") -> float:
    """Return a number in [0, 1) that depends on `name` and `salt` only."""
    digest = hashlib.blake2b(f"{salt}\0{name}".encode("utf-8", "surrogateescape"), digest_size=8)
    # 53 bits, what a float holds exactly.
    return (int.from_bytes(digest.digest()) >> 11) / 2**53


def _log_dropped(dropped: Counter[str]) -> None:
    if dropped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        _LOGGER.warning("left out %d files: %s", dropped.total(), reasons)


def _expand(pattern: str) -> tuple[Path, list[Path]]:
    """Return the directory that names are relative to, and the paths."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        return path, list(path.rglob("*"))
    if path.exists():
        return path.parent, [path]
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
    try:
        return Path(*fixed), list(Path(*fixed).glob("/".join(path.parts[len(fixed) :])))
    except ValueError as error:
        raise DataError(f"{pattern} is not a glob ({error}): write ** between slashes") from error


def _read(path: Path, max_file_bytes: int, dropped: Counter[str]) -> str | None:
    try:
        if path.stat().st_size > max_file_bytes:
            dropped[f"larger than {max_file_bytes} bytes"] += 1
            return None
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        dropped["not UTF-8"] += 1
        return None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; make it readable or leave it out") from error
    if not text.strip():
        dropped["empty"] += 1
        return None
    return text


def _choose_unit(files: _Files, held_out: float, max_file_bytes: int) -> Unit:
    """Files, if there are some for either split; this reads as many as it takes to see that."""
    found = set()
    num_files = 0
    for document in _documents(files, held_out, max_file_bytes, Counter(), "file"):
        found.add(document.held_out)
        num_files += 1
        if len(found) == 2:
            return "file"
    if not held_out or not num_files:
        return "file"
    _LOGGER.warning(
        "too few files to hold some of them out (files: %d, share: %s): the end of each, or of every million "
        "characters in it, is held out instead",
        num_files,
        held_out,
    )
    return "piece"


def _pieces(name: str, text: str, share: float) -> Iterator[Document]:
    """Cut a text into sections, and each into a part to train on and the last `share` of it."""
    count = math.ceil(len(text) / _SECTION_CHARACTERS)
    ends = [
        _line_start(text, len(text) * number // count, _LINE_CHARACTERS)
        for number in range(1, count)
    ]
    for number, (start, end) in enumerate(itertools.pairwise([0, *ends, len(text)])):
        length = round((end - start) * share)
        # A share that is small beside the lines would otherwise grow.
        cut = _line_start(text, end - length, min(length, _LINE_CHARACTERS, end - length - start))
        for part, held_out in ((text[start:cut], False), (text[cut:end], True)):
            if part:
                yield Document(path=f"{name}#{number}", text=part, held_out=held_out)


def _line_start(text: str, index: int, reach: int) -> int:
    """Where the line begins that holds `index`, if it is not further back than `reach`."""
    return text.rfind("\n", index - reach, index) + 1 or index


def _sample(
    files: _Files, held_out: float, max_file_bytes: int, sample_bytes: int, unit: Unit
) -> Iterator[str]:
    """Yield the text to train on, chosen by a hash, of about `sample_bytes` in all."""
    sizes = {
        name: path.stat().st_size
        for name, path in files
        if unit == "piece" or not is_held_out(name, held_out)
    }
    total = sum(size for size in sizes.values() if size <= max_file_bytes)
    share = sample_bytes / max(1, total)
    for document in _documents(files, held_out, max_file_bytes, Counter(), unit):
        if not document.held_out and position(document.path, "sample") < share:
            yield document.text


def _write_splits(
    read: Iterator[Document], directory: Path, tokenizer: Tokenizer, shard_tokens: int
) -> dict[str, Split]:
    kind = token_type(tokenizer.vocab_size)
    writers = {
        split: _Writer(directory, split, shard_tokens, kind) for split in ("train", "held_out")
    }
    for group in _batches(read):
        encoded = tokenizer.encode_batch([document.text for document in group])
        for document, tokens in zip(group, encoded, strict=True):
            split = "held_out" if document.held_out else "train"
            writers[split].add(document.text, [tokenizer.bos, *tokens])
        _LOGGER.info("%d tokens", sum(writer.tokens for writer in writers.values()))
    return {split: writer.close() for split, writer in writers.items()}


def _batches(read: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents in lists that are worth a call of the tokenizer, which uses all cores."""
    batch: list[Document] = []
    characters = 0
    for document in read:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _Writer:
    """Cuts a stream of tokens into files."""

    def __init__(
        self,
        directory: Path,
        split: str,
        shard_tokens: int,
        kind: np.dtype[np.unsignedinteger],
    ) -> None:
        self.tokens = self._files = self._bytes = 0
        self._directory = directory
        self._split = split
        self._shard_tokens = shard_tokens
        self._kind = kind
        self._parts: list[Tokens] = []
        self._shards: list[Shard] = []

    def add(self, text: str, tokens: list[int]) -> None:
        self._files += 1
        self._bytes += len(text.encode())
        self.tokens += len(tokens)
        self._parts.append(np.array(tokens, self._kind))
        if self.tokens - self._shard_tokens * len(self._shards) >= self._shard_tokens:
            self._flush(last=False)

    def close(self) -> Split:
        self._flush(last=True)
        return Split(
            files=self._files, bytes=self._bytes, tokens=self.tokens, shards=tuple(self._shards)
        )

    def _flush(self, *, last: bool) -> None:
        stream = np.concatenate(self._parts) if self._parts else np.empty(0, self._kind)
        while len(stream) >= self._shard_tokens or (last and len(stream)):
            path = self._directory / f"{self._split}-{len(self._shards):05d}.npy"
            self._shards.append(Shard.write(path, stream[: self._shard_tokens]))
            stream = stream[self._shard_tokens :]
        self._parts = [stream]


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / FILE_NAME).is_file():
        raise InputError(
            f"{output} exists and is not prepared data: pass another path, or delete it"
        )
    if not overwrite:
        raise InputError(
            f"{output} already holds prepared data: pass --overwrite, or overwrite=True in Python, to replace it"
        )


def _check_splits(splits: dict[str, Split], held_out: float) -> None:
    if not splits["train"].tokens and not splits["held_out"].tokens:
        raise DataError("the files hold no text: pass patterns that match UTF-8 text")
    if not splits["train"].tokens:
        raise DataError(
            f"no text is left to train on at held_out={held_out}: pass a smaller share, or more text"
        )
    if held_out and not splits["held_out"].tokens:
        raise DataError(
            f"no text is held out at held_out={held_out}: pass a larger share, or more text"
        )
    if not held_out:
        _LOGGER.warning(
            "nothing is held out: to train on this data, which needs text to evaluate on, prepare it with "
            "--held-out 0.02 (held_out=0.02 in Python)"
        )
