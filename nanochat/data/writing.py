"""This file holds the writing of tokens: each split one stream, cut into files."""

import logging
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nanochat.data.chat import encode_chat
from nanochat.data.documents import Document
from nanochat.data.index import Beside, Shard, Split, Tokens, token_type
from nanochat.text.tokenizer import Tokenizer

__all__ = ["write_splits"]

_BATCH_CHARACTERS = 4_000_000
_LOGGER = logging.getLogger(__name__)


def write_splits(
    read: Iterator[Document], directory: Path, tokenizer: Tokenizer, shard_tokens: int
) -> dict[str, Split]:
    """Write the tokens of documents, and return what was written of either split."""
    kind = token_type(tokenizer.vocab_size)
    writers = {
        split: _Writer(directory, split, shard_tokens, kind) for split in ("train", "held_out")
    }
    for group in _batches(read):
        for document, tokens, edges in _encoded(group, tokenizer):
            split = "held_out" if document.held_out else "train"
            writers[split].add(document.text, tokens, edges)
        _LOGGER.info("%d tokens", sum(writer.tokens for writer in writers.values()))
    return {split: writer.close() for split, writer in writers.items()}


def _encoded(
    group: list[Document], tokenizer: Tokenizer
) -> Iterator[tuple[Document, list[int], list[int]]]:
    """The tokens of each document, and of a conversation where its answers begin and end."""
    if group[0].messages:
        for document in group:
            yield (document, *encode_chat(document.messages, tokenizer, document.place))
        return
    encoded = tokenizer.encode_batch([document.text for document in group])
    for document, tokens in zip(group, encoded, strict=True):
        yield document, [tokenizer.bos, *tokens], []


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
        self.tokens = self._bytes = 0
        self._directory = directory
        self._split = split
        self._shard_tokens = shard_tokens
        self._kind = kind
        self._parts: list[Tokens] = []
        self._shards: list[Shard] = []
        # Eight bytes a document, where a list would take forty.
        self._starts, self._answers = array("q"), array("q")

    def add(self, text: str, tokens: list[int], edges: list[int]) -> None:
        self._answers.extend(self.tokens + edge for edge in edges)
        self._starts.append(self.tokens)
        self._bytes += len(text.encode())
        self.tokens += len(tokens)
        self._parts.append(np.array(tokens, self._kind))
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
