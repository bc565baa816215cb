"""This file holds the tokens of one split, and batches of them.

Which tokens a batch holds is a function of the seed, its number and size, their length and the order: of no batch
before.
"""

import functools
import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nanochat.data.index import FILE_NAME, DataIndex, token_type
from nanochat.errors import DataError, FormatError
from nanochat.files import record_file
from nanochat.text.tokenizer import Tokenizer

__all__ = ["Shards"]


class Shards:
    """The tokens of one split, memory mapped.

    Parameters
    ----------
    directory : str or Path
        What :func:`nanochat.data.prepare.prepare` wrote.
    split : {"train", "held_out"}
        Which stream of tokens.
    seed : int
        Chooses the order of the windows of :meth:`batch`.

    Attributes
    ----------
    index : DataIndex
        Contents of ``data.json``.
    tokenizer : Tokenizer
        The one that wrote the tokens.
    num_tokens : int
        Length of the stream.
    """

    def __init__(
        self, directory: str | Path, split: Literal["train", "held_out"] = "train", *, seed: int = 0
    ) -> None:
        self.directory = Path(directory)
        self.index = DataIndex.read(self.directory)
        if split not in self.index.splits:
            raise DataError(f"unknown split {split!r}: pass 'train' or 'held_out'")
        self.tokenizer = Tokenizer.load(self.directory)
        if self.tokenizer.fingerprint != self.index.tokenizer:
            raise FormatError(
                f"{self.directory}: tokenizer.json is not the tokenizer that wrote the tokens; "
                "prepare the data again"
            )
        self.num_tokens = self.index.splits[split].tokens
        if not self.num_tokens:
            raise DataError(
                f"{self.directory}: split {split!r} is empty; prepare the data again with --held-out 0.02 "
                "(held_out=0.02 in Python)"
            )
        self._seed = seed
        self._split = self.index.splits[split]
        self._shards = self._split.shards
        self._arrays = [
            shard.open(self.directory, token_type(self.index.vocab_size)) for shard in self._shards
        ]
        self._starts = list(accumulate((len(array) for array in self._arrays), initial=0))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over those of the shards: two streams of the same fingerprint hold the same tokens."""
        return hashlib.sha256("".join(s.sha256 for s in self._shards).encode()).hexdigest()

    def verify(self) -> None:
        """Read every file of the split and compare its SHA-256 with that in ``data.json``."""
        hashes = {part.name: part.sha256 for part in self._shards}
        if self._split.starts is not None:
            hashes[self._split.starts.name] = self._split.starts.sha256
        for name, sha256 in hashes.items():
            path = self.directory / name
            if record_file(path).sha256 != sha256:
                raise FormatError(
                    f"{path}: not the SHA-256 in {FILE_NAME}; copy or prepare it again"
                )

    @functools.cached_property
    def document_starts(self) -> NDArray[np.int64]:
        """Where each document starts in the stream, with its ``<|bos|>``, ascending; memory mapped."""
        if self._split.starts is None:
            raise DataError(
                f"{self.directory} has no index of its documents, which were prepared before there was one: prepare "
                "them again"
            )
        starts = self._split.starts.open(self.directory, self._split.files)
        if starts[0] != 0 or starts[-1] >= self.num_tokens or (np.diff(starts) < 1).any():
            raise FormatError(
                f"{self.directory / self._split.starts.name}: not the ascending starts of documents in "
                f"{self.num_tokens} tokens; copy or prepare it again"
            )
        return starts

    def num_windows(self, length: int) -> int:
        """Return the number of windows of `length` tokens in one epoch of :meth:`batch`."""
        if not 1 <= length < self.num_tokens:
            raise DataError(
                f"{self.directory}: no window of {length} tokens in {self.num_tokens} tokens: a window and its "
                f"next token must fit; pass a length from 1 to {self.num_tokens - 1} (--set data.length of a run), or "
                "prepare more text"
            )
        return max(1, (self.num_tokens - length) // length)

    def batch(
        self, step: int, batch_size: int, length: int, *, order: int = 0
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the inputs and targets of one training step.

        An epoch visits each window of `length` tokens once, in an order of its own and cut at an
        offset of its own. Sample ``i`` of step ``s`` is number ``s * batch_size + i`` of the run. Each `order` is
        another one of the same seed.

        Returns
        -------
        inputs, targets : int64 arrays, shape (batch_size, length)
            ``targets[:, t]`` is the token after ``inputs[:, t]``.
        """
        if step < 0 or batch_size < 1:
            raise DataError(
                f"step={step}, batch_size={batch_size}: pass step >= 0, batch_size >= 1"
            )
        num_windows = self.num_windows(length)
        starts = []
        for sample in range(step * batch_size, (step + 1) * batch_size):
            epoch, number = divmod(sample, num_windows)
            # The first order is that of before there were others.
            seeds = (self._seed, epoch, order) if order else (self._seed, epoch)
            starts.append(int(_window_starts(self.num_tokens, num_windows, length, seeds)[number]))
        return self._read(starts, length)

    def window_starts(self, length: int) -> range:
        """Return where the windows of :meth:`windows` start in the stream."""
        self.num_windows(length)
        return range(0, self.num_tokens - length, length)

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
        starts = self.window_starts(length)
        for first in range(0, len(starts), batch_size):
            inputs, targets = self._read(starts[first : first + batch_size], length)
            yield inputs, targets, self.tokenizer.num_bytes[targets].sum(axis=1)

    def _read(
        self, starts: Sequence[int], length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The windows that start there, and the same moved on by one token."""
        tokens = np.empty((len(starts), length + 1), np.int64)
        for row, start in zip(tokens, starts, strict=True):
            shard = bisect_right(self._starts, start) - 1
            offset, filled = start - self._starts[shard], 0
            while filled < len(row):
                part = self._arrays[shard][offset : offset + len(row) - filled]
                row[filled : filled + len(part)] = part
                filled += len(part)
                shard, offset = shard + 1, 0
            if row.max() >= self.index.vocab_size:
                raise FormatError(
                    f"{self.directory}: token {row.max()} near position {start} is outside the "
                    f"vocabulary of {self.index.vocab_size}; prepare the data again"
                )
        return tokens[:, :-1], tokens[:, 1:]


@functools.lru_cache(maxsize=4)
def _window_starts(
    num_tokens: int, num_windows: int, length: int, seeds: tuple[int, ...]
) -> NDArray[np.int64]:
    """Return where each window of one epoch starts, in the order of its samples."""
    # Bit generators are stable across versions of NumPy; Generator.permutation is not (NEP 19).
    random = np.random.Philox(np.random.SeedSequence(seeds))
    slack = min(length - 1, num_tokens - 1 - num_windows * length)
    offset = int(random.random_raw()) % (slack + 1)
    order = np.argsort(random.random_raw(num_windows), kind="stable")
    return offset + length * order.astype(np.int64)
