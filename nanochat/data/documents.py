"""This file holds the reading of documents: one record, one document, or pieces of one, each contents once."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from nanochat.data.chat import Messages, messages_of, text_of_chat
from nanochat.data.reading import Reading, Unit
from nanochat.data.records import Chunk, text_of
from nanochat.data.sources import Sources, find_sources, packages_for
from nanochat.data.splits import is_held_out, pieces
from nanochat.errors import counted

__all__ = [
    "Document",
    "Met",
    "Text",
    "choose_unit",
    "documents",
    "documents_of",
    "log_dropped",
    "texts_in",
]

_PART_CHARACTERS = 2**20
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Document:
    """The text of one record or piece, unchanged, its name, and whether it is for evaluation.

    Of a conversation, `messages` are it, and `text` is what is said in it.
    """

    name: str
    text: str
    held_out: bool
    messages: Messages = ()
    place: str = ""


def documents(
    patterns: Sequence[str | Path],
    *,
    column: str = "text",
    held_out: float = 0.02,
    max_file_bytes: int = 2**30,
    dropped: Counter[str] | None = None,
    unit: Unit = "document",
) -> Iterator[Document]:
    """Yield the texts that `patterns` match, or pieces of them, in order of their paths, each contents once.

    Left out and counted: texts that are not UTF-8, are empty, are larger than `max_file_bytes`, or equal an earlier
    one but for whitespace.

    Parameters
    ----------
    patterns : sequence of str or Path
        Files, directories (all files below them) and globs (``**`` crosses directories).
    column : str
        Field of a record that holds its text, in files of records (``.jsonl``, ``.parquet``).
    held_out : float
        Share of the texts, or of the end of each, that is for evaluation, at least 0 and below 1.
    max_file_bytes : int
        Largest file of text, or record, that is read, bytes. Large source files are mostly generated tables.
    dropped : Counter, optional
        Receives the number of texts left out, by reason. Without it, the log does.
    unit : {"document", "piece"}
        What is held out whole: texts, chosen by a hash of their names; or the ends of sections of every text, which
        are a million characters long, or shorter.
    """
    counts: Counter[str] = Counter() if dropped is None else dropped
    sources = find_sources(patterns)
    reading = Reading(held_out=held_out, unit=unit, column=column, max_bytes=max_file_bytes)
    yield from documents_of(sources, reading, counts)
    if dropped is None:
        log_dropped(counts)


@dataclass(frozen=True, kw_only=True)
class Text:
    """The documents of one record, with what tells whether there was such a one before."""

    documents: tuple[Document, ...]
    contents: bytes
    signature: object = None


class Met:
    """The texts that were kept, as far as later ones are compared with them."""

    def __init__(self, reading: Reading) -> None:
        self._contents: set[bytes] = set()
        near, self._near = reading.near_duplicates, None
        if near:
            self._near = _near(near).NearDuplicates(near)

    def is_new(self, text: Text, counts: Counter[str]) -> bool:
        """Whether a text is none that was met, nor resembles one; if so it is met now, or else counted."""
        if text.contents in self._contents:
            counts["duplicate"] += 1
            return False
        self._contents.add(text.contents)
        if self._near is not None and not self._near.add(text.signature):
            counts["near-duplicate"] += 1
            return False
        return True


def documents_of(sources: Sources, reading: Reading, counts: Counter[str]) -> Iterator[Document]:
    """Yield what `documents` does, of sources that are found already; `counts` receives what is left out."""
    met = Met(reading)
    for chunk in sources.chunks(reading, counts):
        for text in texts_in(chunk, reading, counts):
            if met.is_new(text, counts):
                yield from text.documents


def texts_in(chunk: Chunk, reading: Reading, counts: Counter[str]) -> Iterator[Text]:
    """Yield the texts of a chunk that can serve, which depends on nothing else."""
    near = _near(reading.near_duplicates) if reading.near_duplicates else None
    for record in chunk.records(counts):
        messages = messages_of(record) if reading.chat else ()
        text = text_of_chat(messages) if reading.chat else text_of(record, reading.column)
        size = _num_bytes(text)
        if size is None:
            counts["not UTF-8"] += 1
        elif size > reading.max_bytes:
            counts[f"larger than {reading.max_bytes} bytes"] += 1
        elif not text.strip():
            counts["empty"] += 1
        elif reading.chat and not any(message["role"] == "assistant" for message in messages):
            counts["without an answer"] += 1
        else:
            whole = Document(
                name=record.name,
                text=text,
                held_out=is_held_out(record.name, reading.held_out),
                messages=messages,
                place=record.place,
            )
            yield Text(
                documents=tuple(_pieces(whole, reading)),
                contents=_contents(text),
                signature=None if near is None else near.signature(text),
            )


def choose_unit(sources: Sources, reading: Reading) -> Unit:
    """Documents, if there are some for either split; this reads as many as it takes to see that."""
    found = set()
    num_documents = 0
    for document in documents_of(sources, replace(reading, near_duplicates=0.0), Counter()):
        found.add(document.held_out)
        num_documents += 1
        if len(found) == 2:
            return "document"
    if not reading.held_out or not num_documents:
        return "document"
    _LOGGER.warning(
        "too few documents to hold some of them out (documents: %d, share: %s): the end of each, or of every million "
        "characters in it, is held out instead",
        num_documents,
        reading.held_out,
    )
    return "piece"


def log_dropped(dropped: Counter[str]) -> None:
    """Warn of what was left out, by reason."""
    if dropped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        _LOGGER.warning("left out %s: %s", counted(dropped.total(), "document"), reasons)


def _near(threshold: float) -> ModuleType:
    with packages_for(f"near_duplicates={threshold}"):
        from nanochat.data import near
    return near


def _num_bytes(text: str) -> int | None:
    """The size of a text in UTF-8; none if it has no such form, as half of a character, which JSON can spell."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None


def _contents(text: str) -> bytes:
    """A hash of the words, and of no more than that there is whitespace between them."""
    digest = hashlib.blake2b(digest_size=16)
    in_word = False
    # In parts, for the words of a text take ten times its memory.
    for start in range(0, len(text), _PART_CHARACTERS):
        part = text[start : start + _PART_CHARACTERS]
        if words := " ".join(part.split()):
            continues = in_word and not part[0].isspace()
            digest.update((words if continues else f" {words}").encode())
        in_word = not part[-1].isspace()
    return digest.digest()


def _pieces(whole: Document, reading: Reading) -> Iterator[Document]:
    if reading.unit == "document":
        yield whole
        return
    for number, part, is_for_evaluation in pieces(whole.text, reading.held_out):
        yield Document(name=f"{whole.name}#{number}", text=part, held_out=is_for_evaluation)
