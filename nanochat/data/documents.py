"""This file holds the reading of documents: one record, one document, or pieces of one, each contents once."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat.data.chat import Messages, messages_of, text_of_chat
from nanochat.data.records import text_of
from nanochat.data.sources import Sources, find_sources
from nanochat.data.splits import is_held_out, pieces
from nanochat.errors import DataError, InputError, counted, how_to_install

__all__ = ["Document", "Unit", "choose_unit", "documents", "documents_of", "log_dropped"]

Unit = Literal["document", "piece"]

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
    sources = find_sources(patterns, max_bytes=max_file_bytes)
    yield from documents_of(sources, held_out, counts, unit, column=column)
    if dropped is None:
        log_dropped(counts)


def documents_of(
    sources: Sources,
    held_out: float,
    counts: Counter[str],
    unit: Unit,
    *,
    column: str = "text",
    chat: bool = False,
    near_duplicates: float = 0.0,
) -> Iterator[Document]:
    """Yield what `documents` does, of sources that are found already; `counts` receives what is left out.

    With `chat`, records are conversations, and those without an answer are left out. With `near_duplicates`, what
    resembles an earlier text of either split so much is left out, too.
    """
    seen: set[bytes] = set()
    is_new = _near_duplicates(near_duplicates)
    for chunk in sources.chunks(counts):
        for record in chunk.records(counts):
            messages = messages_of(record) if chat else ()
            text = text_of_chat(messages) if chat else text_of(record, column)
            if chat and not any(message["role"] == "assistant" for message in messages):
                counts["without an answer"] += 1
                continue
            if not text.strip():
                counts["empty"] += 1
                continue
            contents = _contents(text)
            if contents in seen:
                counts["duplicate"] += 1
                continue
            seen.add(contents)
            if not is_new(text):
                counts["near-duplicate"] += 1
                continue
            if chat:
                yield Document(
                    name=record.name,
                    text=text,
                    held_out=is_held_out(record.name, held_out),
                    messages=messages,
                    place=record.place,
                )
            else:
                yield from _parts(record.name, text, held_out, unit)


def choose_unit(sources: Sources, column: str, held_out: float) -> Unit:
    """Documents, if there are some for either split; this reads as many as it takes to see that."""
    found = set()
    num_documents = 0
    for document in documents_of(sources, held_out, Counter(), "document", column=column):
        found.add(document.held_out)
        num_documents += 1
        if len(found) == 2:
            return "document"
    if not held_out or not num_documents:
        return "document"
    _LOGGER.warning(
        "too few documents to hold some of them out (documents: %d, share: %s): the end of each, or of every million "
        "characters in it, is held out instead",
        num_documents,
        held_out,
    )
    return "piece"


def log_dropped(dropped: Counter[str]) -> None:
    """Warn of what was left out, by reason."""
    if dropped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        _LOGGER.warning("left out %s: %s", counted(dropped.total(), "document"), reasons)


def _near_duplicates(threshold: float) -> Callable[[str], bool]:
    """What tells of a text whether it resembles none that it was told of before."""
    if not 0 <= threshold <= 1:
        raise InputError(
            f"near_duplicates={threshold} is no resemblance: pass 0 to keep all, or up to 1; 0.8 is usual"
        )
    if not threshold:
        return lambda _: True
    try:
        from nanochat.data.near import NearDuplicates
    except ModuleNotFoundError as error:
        raise DataError(
            f"near_duplicates={threshold} needs the package {error.name}: {how_to_install('data')}"
        ) from error
    return NearDuplicates(threshold).add


def _contents(text: str) -> bytes:
    """A hash of all but whitespace."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


def _parts(name: str, text: str, held_out: float, unit: Unit) -> Iterator[Document]:
    if unit == "document":
        yield Document(name=name, text=text, held_out=is_held_out(name, held_out))
        return
    for number, part, is_for_evaluation in pieces(text, held_out):
        yield Document(name=f"{name}#{number}", text=part, held_out=is_for_evaluation)
