"""This file holds training data on disk: `prepare` writes token shards, `Shards` reads batches of them.

A split is one stream of tokens, each document behind a ``<|bos|>``, cut into ``uint16`` files of equal
length. Which tokens a batch holds depends on the seed and the step only: a run resumes exactly from its
step number.
"""

import functools
import hashlib
import logging
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nanochat.errors import DataError, FormatError, InputError, SaveError
from nanochat.text.tokenizer import Tokenizer
from nanochat.train.corpus import (
    Document,
    documents,
    find_files,
    is_held_out,
    log_dropped,
    position,
)
from nanochat.train.manifest import FILE_NAME, FORMAT, Manifest, Shard, Split

__all__ = ["MAX_VOCABULARY", "Shards", "prepare"]

# A token is stored in 16 bits.
MAX_VOCABULARY = 65_536
_BATCH_CHARACTERS = 4_000_000
_LOGGER = logging.getLogger(__name__)


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
) -> Manifest:
    """Write the tokens of all files that `patterns` match, their tokenizer and ``data.json``.

    The directory appears complete or not at all.

    Parameters
    ----------
    patterns, held_out, max_file_bytes
        See :func:`nanochat.train.corpus.documents`.
    output : str or Path
        Directory to create.
    tokenizer : Tokenizer or int
        A tokenizer, or the size of the vocabulary to train on this text.
    shard_tokens : int
        Tokens per file.
    sample_bytes : int
        Text that a new tokenizer is trained on, bytes, drawn from the training files.
    overwrite : bool
        Replace `output` if it holds prepared data.

    Raises
    ------
    DataError
        If the text is unusable.
    InputError
        If an argument is out of its range, or `output` holds what must not be replaced.
    SaveError
        If a file cannot be written.
    """
    output = Path(output)
    vocab_size = tokenizer if isinstance(tokenizer, int) else tokenizer.vocab_size
    if vocab_size > MAX_VOCABULARY:
        raise InputError(
            f"a vocabulary of {vocab_size} tokens does not fit 16 bits: use at most {MAX_VOCABULARY}"
        )
    sizes = {
        "shard_tokens": shard_tokens,
        "max_file_bytes": max_file_bytes,
        "sample_bytes": sample_bytes,
    }
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name}={size} leaves no room: pass 1 or more")
    _check_output(output, overwrite)
    dropped: Counter[str] = Counter()
    if isinstance(tokenizer, int):
        texts = _sample(patterns, held_out, max_file_bytes, sample_bytes)
        tokenizer = Tokenizer.train(texts, tokenizer)
    read = documents(patterns, held_out=held_out, max_file_bytes=max_file_bytes, dropped=dropped)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as aside:
            new = Path(aside) / "new"
            new.mkdir()
            for name, content in tokenizer.files().items():
                (new / name).write_bytes(content)
            splits = _write_splits(read, new, tokenizer, shard_tokens)
            log_dropped(dropped)
            _check_splits(splits, held_out)
            manifest = Manifest(
                format=FORMAT,
                patterns=tuple(map(str, patterns)),
                held_out=held_out,
                max_file_bytes=max_file_bytes,
                vocab_size=tokenizer.vocab_size,
                tokenizer=tokenizer.fingerprint,
                dropped=dict(dropped),
                splits=splits,
            )
            manifest.write(new)
            if output.exists():
                output.rename(Path(aside) / "old")
            new.rename(output)
    except OSError as error:
        raise SaveError(
            f"cannot write {output}: {error.strerror or error}; free space or pass another path"
        ) from error
    return manifest


class Shards:
    """The tokens of one split, memory mapped.

    Parameters
    ----------
    directory : str or Path
        What :func:`prepare` wrote.
    split : {"train", "held_out"}
        Which stream of tokens.
    seed : int
        Chooses the order of the windows of :meth:`batch`.

    Attributes
    ----------
    manifest : Manifest
        Contents of ``data.json``.
    tokenizer : Tokenizer
        The one that wrote the tokens.
    num_tokens : int
        Length of the stream.

    Raises
    ------
    DataError
        If there is no prepared data, or the split is empty.
    FormatError
        If a file is damaged, has the wrong size or is missing. Contents: see :meth:`verify`.
    """

    def __init__(
        self,
        directory: str | Path,
        split: Literal["train", "held_out"] = "train",
        *,
        seed: int = 0,
    ) -> None:
        self.directory = Path(directory)
        self.manifest = Manifest.read(self.directory)
        if split not in self.manifest.splits:
            raise DataError(f"unknown split {split!r}: pass 'train' or 'held_out'")
        self.tokenizer = Tokenizer.load(self.directory)
        if self.tokenizer.fingerprint != self.manifest.tokenizer:
            raise FormatError(
                f"{self.directory}: tokenizer.json is not the tokenizer that wrote the tokens; "
                "prepare the data again"
            )
        self.num_tokens = self.manifest.splits[split].tokens
        if not self.num_tokens:
            raise DataError(
                f"{self.directory}: split {split!r} is empty; prepare the data again with "
                "0 < held_out < 1"
            )
        self._seed = seed
        self._shards = self.manifest.splits[split].shards
        self._arrays = [shard.open(self.directory) for shard in self._shards]
        self._starts = list(accumulate((len(array) for array in self._arrays), initial=0))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over those of the shards: two streams of the same fingerprint hold the same tokens."""
        return hashlib.sha256("".join(s.sha256 for s in self._shards).encode()).hexdigest()

    def verify(self) -> None:
        """Compare the SHA-256 of each shard with the manifest.

        Raises
        ------
        FormatError
            If one differs.
        """
        for shard in self._shards:
            shard.verify(self.directory)

    def num_windows(self, length: int) -> int:
        """Return the number of windows of `length` tokens in one epoch of :meth:`batch`.

        Raises
        ------
        DataError
            If the stream has no window of that length.
        """
        if not 1 <= length < self.num_tokens:
            raise DataError(
                f"no window of {length} tokens in {self.num_tokens} tokens: a window and its next "
                f"token must fit; pass a length from 1 to {self.num_tokens - 1}, or more text"
            )
        return max(1, (self.num_tokens - length) // length)

    def batch(
        self, step: int, batch_size: int, length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the inputs and targets of one training step.

        An epoch visits each window of `length` tokens once, in an order of its own and cut at an
        offset of its own. Sample ``i`` of step ``s`` is number ``s * batch_size + i`` of the run.

        Returns
        -------
        inputs, targets : int64 arrays, shape (batch_size, length)
            ``targets[:, t]`` is the token after ``inputs[:, t]``.

        Raises
        ------
        DataError
            If `step` or `batch_size` is out of range, or no window has this `length`.
        """
        if step < 0 or batch_size < 1:
            raise DataError(
                f"step={step}, batch_size={batch_size}: pass step >= 0, batch_size >= 1"
            )
        num_windows = self.num_windows(length)
        rows = []
        for sample in range(step * batch_size, (step + 1) * batch_size):
            epoch, index = divmod(sample, num_windows)
            starts = _window_starts(self.num_tokens, num_windows, length, self._seed, epoch)
            rows.append(self._read(int(starts[index]), length + 1))
        window = np.stack(rows)
        return window[:, :-1], window[:, 1:]

    def windows(
        self, batch_size: int, length: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
        """Yield the stream once, in order, in batches of windows that do not overlap.

        A rest that is shorter than `length` is left out.

        Yields
        ------
        inputs, targets : int64 arrays, shape (rows, length)
            As in :meth:`batch`; the last batch may have fewer than `batch_size` rows.
        num_bytes : int64 array, shape (rows,)
            Bytes of text in each row's targets, for bits per byte. ``<|bos|>`` has none.
        """
        if batch_size < 1:
            raise DataError(f"batch_size={batch_size}: pass 1 or more")
        self.num_windows(length)
        starts = range(0, self.num_tokens - length, length)
        for first in range(0, len(starts), batch_size):
            rows = [self._read(start, length + 1) for start in starts[first : first + batch_size]]
            window = np.stack(rows)
            targets = window[:, 1:]
            yield window[:, :-1], targets, self.tokenizer.num_bytes[targets].sum(axis=1)

    def _read(self, start: int, count: int) -> NDArray[np.int64]:
        tokens = np.empty(count, np.int64)
        filled = 0
        shard = bisect_right(self._starts, start) - 1
        offset = start - self._starts[shard]
        while filled < count:
            part = self._arrays[shard][offset : offset + count - filled]
            tokens[filled : filled + len(part)] = part
            filled += len(part)
            shard, offset = shard + 1, 0
        if tokens.max() >= self.manifest.vocab_size:
            raise FormatError(
                f"{self.directory}: token {tokens.max()} near position {start} is outside the "
                f"vocabulary of {self.manifest.vocab_size}; prepare the data again"
            )
        return tokens


@functools.lru_cache(maxsize=4)
def _window_starts(
    num_tokens: int, num_windows: int, length: int, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Return where each window of one epoch starts, in the order of its samples."""
    # Bit generators are stable across versions of NumPy; Generator.permutation is not (NEP 19).
    random = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    slack = min(length - 1, num_tokens - 1 - num_windows * length)
    offset = int(random.random_raw()) % (slack + 1)
    order = np.argsort(random.random_raw(num_windows), kind="stable")
    return offset + length * order.astype(np.int64)


def _sample(
    patterns: Sequence[str | Path], held_out: float, max_file_bytes: int, sample_bytes: int
) -> Iterator[str]:
    """Yield the text of training files, chosen by a hash, of about `sample_bytes` in all."""
    sizes = {
        name: path.stat().st_size
        for name, path in find_files(patterns)
        if not is_held_out(name, held_out)
    }
    total = sum(size for size in sizes.values() if size <= max_file_bytes)
    share = sample_bytes / max(1, total)
    read = documents(patterns, held_out=held_out, max_file_bytes=max_file_bytes, dropped=Counter())
    for document in read:
        if not document.held_out and position(document.path, "sample") < share:
            yield document.text


def _write_splits(
    read: Iterator[Document], directory: Path, tokenizer: Tokenizer, shard_tokens: int
) -> dict[str, Split]:
    writers = {split: _Writer(directory, split, shard_tokens) for split in ("train", "held_out")}
    for group in _groups(read):
        encoded = tokenizer.encode_batch([document.text for document in group])
        for document, tokens in zip(group, encoded, strict=True):
            split = "held_out" if document.held_out else "train"
            writers[split].add(document.text, [tokenizer.bos, *tokens])
        _LOGGER.info("%d tokens", sum(writer.tokens for writer in writers.values()))
    return {split: writer.close() for split, writer in writers.items()}


def _groups(read: Iterator[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    characters = 0
    for document in read:
        group.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


class _Writer:
    """Cuts a stream of tokens into files."""

    def __init__(self, directory: Path, split: str, shard_tokens: int) -> None:
        self.tokens = 0
        self._directory = directory
        self._split = split
        self._shard_tokens = shard_tokens
        self._files = 0
        self._bytes = 0
        self._parts: list[NDArray[np.uint16]] = []
        self._shards: list[Shard] = []

    def add(self, text: str, tokens: list[int]) -> None:
        self._files += 1
        self._bytes += len(text.encode())
        self.tokens += len(tokens)
        self._parts.append(np.array(tokens, "<u2"))
        if self.tokens - self._shard_tokens * len(self._shards) >= self._shard_tokens:
            self._flush(last=False)

    def close(self) -> Split:
        self._flush(last=True)
        return Split(
            files=self._files, bytes=self._bytes, tokens=self.tokens, shards=tuple(self._shards)
        )

    def _flush(self, *, last: bool) -> None:
        stream = np.concatenate(self._parts) if self._parts else np.empty(0, "<u2")
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
            f"no text for training: all {splits['held_out'].files} files are held out at "
            f"held_out={held_out}; add files or pass a smaller share"
        )
    if held_out and not splits["held_out"].tokens:
        raise DataError(
            f"none of {splits['train'].files} files is held out at held_out={held_out}: pass a larger "
            "share, more and smaller files, or 0"
        )
