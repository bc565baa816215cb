"""This file holds the writing of tokens: each split one stream, cut into files."""

import logging
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from nanochat.data.encoding import Encoded
from nanochat.data.index import Beside, Shard, Split, Tokens

__all__ = ["write_splits"]

_TOLD_TOKENS = 1_000_000
_LOGGER = logging.getLogger(__name__)


def write_splits(
    encoded: Iterable[Encoded],
    directory: Path,
    kind: np.dtype[np.unsignedinteger],
    shard_tokens: int,
) -> dict[str, Split]:
    """Write the tokens of documents, and return what was written of either split."""
    writers = {
        split: _Writer(directory, split, shard_tokens, kind) for split in ("train", "held_out")
    }
    told = 0
    for document in encoded:
        writers["held_out" if document.held_out else "train"].add(document)
        total = sum(writer.tokens for writer in writers.values())
        if total >= told + _TOLD_TOKENS:
            _LOGGER.info("%d tokens", total)
            told = total
    return {split: writer.close() for split, writer in writers.items()}


class _Writer:
    """Cuts a stream of tokens into files."""

    def __init__(
        self,
        directory: Path,
        split: str,
        shard_tokens: int,
        kind: np.dtype[np.unsignedinteger],
    ) -> None:
        self.tokens = self._bytes = 0
        self._directory = directory
        self._split = split
        self._shard_tokens = shard_tokens
        self._kind = kind
        self._parts: list[Tokens] = []
        self._shards: list[Shard] = []
        # Eight bytes a document, where a list would take forty.
        self._starts, self._answers = array("q"), array("q")

    def add(self, document: Encoded) -> None:
        self._answers.extend(self.tokens + edge for edge in document.edges)
        self._starts.append(self.tokens)
        self._bytes += document.num_bytes
        self.tokens += len(document.tokens)
        self._parts.append(document.tokens)
        if self.tokens - self._shard_tokens * len(self._shards) >= self._shard_tokens:
            self._flush(last=False)

    def close(self) -> Split:
        self._flush(last=True)
        starts = self._beside("starts", self._starts)
        answers = self._beside("answers", self._answers) if self._answers else None
        return Split(
            files=len(self._starts),
            bytes=self._bytes,
            tokens=self.tokens,
            shards=tuple(self._shards),
            starts=starts,
            answers=answers,
        )

    def _beside(self, name: str, places: "array[int]") -> Beside:
        path = self._directory / f"{self._split}-{name}.npy"
        return Beside.write(path, np.array(places, np.int64))

    def _flush(self, *, last: bool) -> None:
        stream = np.concatenate(self._parts) if self._parts else np.empty(0, self._kind)
        while len(stream) >= self._shard_tokens or (last and len(stream)):
            path = self._directory / f"{self._split}-{len(self._shards):05d}.npy"
            self._shards.append(Shard.write(path, stream[: self._shard_tokens]))
            stream = stream[self._shard_tokens :]
        self._parts = [stream]
