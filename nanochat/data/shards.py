"""This file holds the tokens of one split, and batches of them.

Which tokens a batch holds is a function of the seed, its number and size, the layout of its sequences and the order: of
no batch before.
"""

import functools
import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nanochat.data.batch import Batch, Layout
from nanochat.data.index import FILE_NAME, Beside, DataIndex, token_type
from nanochat.data.packing import Packed, pack
from nanochat.data.windows import epoch_order, window_starts
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
        Chooses the order of the sequences of :meth:`batch`.

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
        self._name = split
        self._split = self.index.splits[split]
        self._shards = self._split.shards
        self._arrays = [
            shard.open(self.directory, token_type(self.index.vocab_size)) for shard in self._shards
        ]
        self._starts = list(accumulate((len(array) for array in self._arrays), initial=0))
        answers = self._split.answers
        # Where answers begin and end, alternately; none of text, of which all is learnt.
        self._answers = None if answers is None else self._places(answers)
        self._packed_by_length: dict[int, Packed] = {}
        # Of this epoch and the next one, and of no other source.
        self._window_starts = functools.lru_cache(maxsize=2)(window_starts)
        self._epoch_order = functools.lru_cache(maxsize=2)(epoch_order)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the files itself: what is mapped would be copied."""
        return functools.partial(Shards, seed=self._seed), (self.directory, self._name)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over those of the shards: two streams of the same fingerprint have the same tokens and targets."""
        found = [shard.sha256 for shard in self._shards]
        if self._split.answers is not None:
            found.append(self._split.answers.sha256)
        return hashlib.sha256("".join(found).encode()).hexdigest()

    def verify(self) -> None:
        """Read every file of the split and compare its SHA-256 with that in ``data.json``."""
        hashes = [(part.name, part.sha256) for part in self._shards]
        hashes += [(part.name, part.sha256) for part in self._split.files_beside]
        for name, sha256 in hashes:
            path = self.directory / name
            if record_file(path).sha256 != sha256:
                raise FormatError(
                    f"{path}: not the SHA-256 in {FILE_NAME}; copy or prepare it again"
                )

    def require_known_tokens(self) -> None:
        """Read every token, at gigabytes a second, and refuse one that is outside the vocabulary."""
        vocab_size = self.tokenizer.vocab_size
        for shard, tokens in zip(self._shards, self._arrays, strict=True):
            if (largest := tokens.max(initial=0)) >= vocab_size:
                raise FormatError(
                    f"{self.directory / shard.name}: token {largest} is outside the vocabulary of {vocab_size}; "
                    "copy or prepare it again"
                )

    @functools.cached_property
    def document_starts(self) -> NDArray[np.int64]:
        """Where each document starts in the stream, with its ``<|bos|>``, ascending; memory mapped."""
        if self._split.starts is None:
            raise DataError(
                f"{self.directory} has no index of its documents, which were prepared before there was one: prepare "
                "them again, or train on windows of the stream, with --set data.packing=windows"
            )
        starts = self._places(self._split.starts)
        if starts[0] != 0 or starts[-1] == self.num_tokens:
            raise self._misplaced(self._split.starts)
        return starts

    def _places(self, beside: Beside) -> NDArray[np.int64]:
        found = beside.open(self.directory)
        if len(found) and (
            found[0] < 0 or found[-1] > self.num_tokens or (np.diff(found) < 1).any()
        ):
            raise self._misplaced(beside)
        return found

    def _misplaced(self, beside: Beside) -> FormatError:
        return FormatError(
            f"{self.directory / beside.name}: not ascending places in {self.num_tokens} tokens; copy or prepare it "
            "again"
        )

    def num_cut(self, layout: Layout) -> int:
        """Return the number of conversations of which only the beginning fits into a sequence."""
        if self._split.answers is None or layout.packing != "best-fit":
            return 0
        sizes = np.diff(self.document_starts, append=self.num_tokens)
        return int((sizes > layout.length).sum())

    def num_sequences(self, layout: Layout) -> int:
        """Return the number of sequences in one epoch of :meth:`batch`."""
        if layout.packing == "best-fit":
            return len(self._packed(layout.length).firsts) - 1
        return self._num_windows(layout)

    def batch(self, step: int, batch_size: int, layout: Layout, *, order: int = 0) -> Batch:
        """Return the batch of one training step.

        An epoch visits each sequence once, in an order of its own; windows are cut at an offset of its own. Sample
        ``i`` of step ``s`` is number ``s * batch_size + i`` of the run. Each `order` is another one of the same seed.
        """
        if step < 0 or batch_size < 1:
            raise DataError(
                f"step={step}, batch_size={batch_size}: pass step >= 0, batch_size >= 1"
            )
        return self.sequences(range(step * batch_size, (step + 1) * batch_size), layout, order)

    def sequences(self, samples: Sequence[int], layout: Layout, order: int = 0) -> Batch:
        """Return the sequences of these numbers, which count on from epoch to epoch."""
        count = self.num_sequences(layout)
        found = []
        for epoch, number in (divmod(sample, count) for sample in samples):
            # The first order is that of before there were others.
            seeds = (self._seed, epoch, order) if order else (self._seed, epoch)
            if layout.packing == "best-fit":
                found.append(int(self._epoch_order(count, seeds)[number]))
            else:
                starts = self._window_starts(self.num_tokens, count, layout.length, seeds)
                found.append(int(starts[number]))
        return self._laid_out(found, layout)

    def num_in_order(self, layout: Layout) -> int:
        """Return the number of sequences of :meth:`in_order`."""
        if layout.packing == "best-fit":
            return self.num_sequences(layout)
        return len(self._in_order(layout)[0])

    def in_order(
        self, batch_size: int, layout: Layout
    ) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        """Yield the whole stream once, always in the same order, in batches of sequences that do not overlap.

        Windows are in the order of the stream, and a rest that is shorter than one is left out. If all of it is
        shorter, it is one sequence.

        Yields
        ------
        batch : Batch
            As in :meth:`batch`; the last one may have fewer than `batch_size` rows.
        num_bytes : int64 array, shape (rows,)
            Bytes of text in each row's targets, for bits per byte. ``<|bos|>`` has none.
        """
        if batch_size < 1:
            raise DataError(f"batch_size={batch_size}: pass 1 or more")
        found, layout = self._in_order(layout)
        for first in range(0, len(found), batch_size):
            batch = self._laid_out(found[first : first + batch_size], layout)
            num_bytes = self.tokenizer.num_bytes[batch.targets] * (batch.targets >= 0)
            yield batch, num_bytes.sum(axis=1)

    def _in_order(self, layout: Layout) -> tuple[Sequence[int], Layout]:
        """What `_laid_out` needs for the whole stream."""
        if layout.packing == "best-fit":
            # By size, as they were packed, the first would be pieces of the longest documents.
            return epoch_order(self.num_sequences(layout), (0, 0)).tolist(), layout
        layout = replace(layout, length=min(layout.length, self.num_tokens - 1))
        self._num_windows(layout)
        return range(0, self.num_tokens - layout.length, layout.length), layout

    def _num_windows(self, layout: Layout) -> int:
        length = layout.length
        if layout.document_masks:
            # Here, and not when the first batch asks for them, it is told if they are damaged.
            _ = self.document_starts
        if not 1 <= length < self.num_tokens:
            raise DataError(
                f"{self.directory}: no window of {length} tokens in {self.num_tokens} tokens: a window and its "
                f"next token must fit; pass a length from 1 to {self.num_tokens - 1} (--set data.length of a run), or "
                "prepare more text"
            )
        return max(1, (self.num_tokens - length) // length)

    def _packed(self, length: int) -> Packed:
        if length < 1:
            raise DataError(f"length={length}: pass 1 or more")
        if length not in self._packed_by_length:
            starts = self.document_starts
            if self._answers is not None:
                begins = self._answers[::2]
                before = begins - starts[np.searchsorted(starts, begins, side="right") - 1]
                if before.min() > length:
                    raise DataError(
                        f"{self.directory}: no answer in a conversation begins within {length} tokens: pass a length "
                        f"of {before.min()} or more (--set data.length of a run)"
                    )
            # The rest of a conversation answers what cannot be seen any more.
            whole = self._answers is None
            self._packed_by_length[length] = pack(starts, self.num_tokens, length, with_rest=whole)
        return self._packed_by_length[length]

    def _laid_out(self, found: Sequence[int], layout: Layout) -> Batch:
        """The windows that start at these places, or the packed sequences of these numbers."""
        rows = len(found), layout.length
        inputs, targets = np.empty(rows, np.int64), np.empty(rows, np.int64)
        segments = np.zeros(rows, np.int64)
        if layout.packing == "best-fit":
            packed = self._packed(layout.length)
            for row, sequence in enumerate(found):
                place = 0
                for number, (start, size) in enumerate(packed.pieces(sequence)):
                    part = row, slice(place, place + size)
                    inputs[part], targets[part] = self._pairs(start, size)
                    segments[part] = number
                    place += size
                rest = row, slice(place, None)
                inputs[rest], targets[rest], segments[rest] = self.tokenizer.pad, -1, number + 1
            return Batch(inputs=inputs, targets=targets, segments=segments)
        for row, start in enumerate(found):
            inputs[row], targets[row] = self._pairs(start, layout.length)
            if layout.document_masks:
                starts = self.document_starts
                first, last = np.searchsorted(starts, (start + 1, start + layout.length))
                segments[row, starts[first:last] - start] = 1
        masked = segments.cumsum(axis=1) if layout.document_masks else None
        return Batch(inputs=inputs, targets=targets, segments=masked)

    def _pairs(self, start: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """So many tokens of the stream, and the target after each."""
        tokens = self._read(start, min(size + 1, self.num_tokens - start))
        # What follows a document is `<|bos|>`, at which generation stops: its end is learnt like its other tokens.
        targets = np.append(tokens[1:], [self.tokenizer.bos] * (size + 1 - len(tokens)))
        if self._answers is not None:
            places = np.arange(start + 1, start + 1 + size)
            targets[np.searchsorted(self._answers, places, side="right") % 2 == 0] = -1
        return tokens[:size], targets

    def _read(self, start: int, count: int) -> NDArray[np.int64]:
        """So many tokens of the stream, from `start`."""
        tokens, filled = np.empty(count, np.int64), 0
        shard = bisect_right(self._starts, start) - 1
        offset = start - self._starts[shard]
        while filled < count:
            part = self._arrays[shard][offset : offset + count - filled]
            tokens[filled : filled + len(part)] = part
            filled += len(part)
            shard, offset = shard + 1, 0
        return tokens
