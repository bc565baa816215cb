"""This file holds the way from documents to their tokens, in one process or several.

With several, chunks are read and tokenised elsewhere and come back in their order. What was met before is decided here
alone, so the outcome is the same for any number.
"""

import itertools
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TypeVar

import numpy as np

from nanochat.data.chat import encode_chat
from nanochat.data.documents import Document, Met, Text, documents_of, texts_in
from nanochat.data.index import Tokens, token_type
from nanochat.data.reading import Reading
from nanochat.data.records import Chunk
from nanochat.data.sources import Sources
from nanochat.errors import DataError
from nanochat.text.tokenizer import Tokenizer

__all__ = ["Encoded", "encoded_documents"]

Item = TypeVar("Item")

# Of documents that are tokenised at once, and of chunks that are read at once.
_BATCH_CHARACTERS, _GROUP_BYTES = 4_000_000, 2**20
# Groups that wait for each process, read or unread.
_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The tokens of a document, the size of its text in UTF-8, and where answers in it begin and end."""

    held_out: bool
    num_bytes: int
    tokens: Tokens
    edges: tuple[int, ...]


# What a process sends of each text: without its documents, which stay there, but their tokens.
_Found = list[tuple[Text, list[Encoded]]]


def encoded_documents(
    sources: Sources,
    reading: Reading,
    counts: Counter[str],
    tokenizer: Path,
    processes: int,
) -> Iterator[Encoded]:
    """Yield the tokens of `documents_of`, read by so many processes, with the tokenizer in a directory.

    Raises
    ------
    DataError
        If a process dies.
    """
    if processes == 1:
        # The tokenizer uses all cores.
        yield from _encode(documents_of(sources, reading, counts), Tokenizer.load(tokenizer))
        return
    met = Met(reading)
    for found, dropped in _elsewhere(
        sources.chunks(reading, counts), reading, tokenizer, processes
    ):
        counts.update(dropped)
        for text, encoded in found:
            if met.is_new(text, counts):
                yield from encoded


def _encode(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[Encoded]:
    for batch in _grouped(documents, lambda each: len(each.text), _BATCH_CHARACTERS):
        yield from _encode_batch(batch, tokenizer)


def _encode_batch(documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[Encoded]:
    kind = token_type(tokenizer.vocab_size)
    is_chat = any(document.messages for document in documents)
    texts = [] if is_chat else [document.text for document in documents]
    of_texts = iter(tokenizer.encode_batch(texts))
    for document in documents:
        edges: Sequence[int] = ()
        if is_chat:
            tokens, edges = encode_chat(document.messages, tokenizer, document.place)
        else:
            tokens = [tokenizer.bos, *next(of_texts)]
        yield Encoded(
            held_out=document.held_out,
            num_bytes=len(document.text.encode()),
            tokens=np.array(tokens, kind),
            edges=tuple(edges),
        )


def _grouped(
    items: Iterable[Item], size_of: Callable[[Item], int], limit: int
) -> Iterator[list[Item]]:
    """Items in lists of at least that size, but for the last one."""
    group: list[Item] = []
    size = 0
    for item in items:
        group.append(item)
        size += size_of(item)
        if size >= limit:
            yield group
            group, size = [], 0
    if group:
        yield group


def _elsewhere(
    chunks: Iterable[Chunk], reading: Reading, tokenizer: Path, processes: int
) -> Iterator[tuple[_Found, Counter[str]]]:
    """What processes find in chunks, in their order; few groups are under way at a time."""
    waiting: deque[Future[tuple[_Found, Counter[str]]]] = deque()
    # A fork would take over the tokenizer's threads as they are.
    pool = ProcessPoolExecutor(
        processes,
        mp_context=get_context("spawn"),
        initializer=_begin,
        # What is more than a pipe holds is written to one that dies before it reads for ever.
        initargs=(reading, tokenizer),
    )
    try:
        for group in _grouped(chunks, lambda each: each.size, _GROUP_BYTES):
            waiting.append(pool.submit(_find, group))
            if len(waiting) == _AHEAD * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a process that reads text died, perhaps for want of memory: pass fewer --processes (processes= in Python, "
            'in a script below `if __name__ == "__main__":`)'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


# Of a process that reads.
_OWN: dict[str, object] = {}


def _begin(reading: Reading, tokenizer: Path) -> None:
    # The process that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Others run beside it.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _OWN.update(reading=reading, tokenizer=Tokenizer.load(tokenizer))


def _end_with_parent() -> None:
    """Wait for the process that started this one, which ends nobody if it is killed."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _find(group: Sequence[Chunk]) -> tuple[_Found, Counter[str]]:
    reading, tokenizer = _OWN["reading"], _OWN["tokenizer"]
    assert isinstance(reading, Reading)
    assert isinstance(tokenizer, Tokenizer)
    dropped: Counter[str] = Counter()
    texts = [text for chunk in group for text in texts_in(chunk, reading, dropped)]
    encoded = _encode((document for text in texts for document in text.documents), tokenizer)
    found: _Found = []
    for text in texts:
        tokens = list(itertools.islice(encoded, len(text.documents)))
        found.append((replace(text, documents=()), tokens))
    return found, dropped
