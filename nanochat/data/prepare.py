"""This file holds the way from text to training data: a directory that appears complete or not at all."""

import glob
import heapq
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nanochat.data.documents import Document, choose_unit, documents_of, log_dropped
from nanochat.data.encoding import encoded_documents
from nanochat.data.index import DataIndex, Split, token_type
from nanochat.data.reading import Reading
from nanochat.data.sources import find_sources
from nanochat.data.splits import position
from nanochat.data.writing import write_splits
from nanochat.errors import DataError, FormatError, InputError, SaveError
from nanochat.text.tokenizer import Tokenizer

__all__ = ["prepare"]

_LOGGER = logging.getLogger(__name__)


def prepare(
    patterns: Sequence[str | Path],
    output: str | Path,
    tokenizer: Tokenizer | int,
    *,
    column: str = "text",
    chat: bool = False,
    revision: str | None = None,
    near_duplicates: float = 0.0,
    held_out: float = 0.02,
    shard_tokens: int = 2**26,
    max_file_bytes: int = 2**30,
    sample_bytes: int = 20_000_000,
    processes: int = 1,
    overwrite: bool = False,
    beside: Mapping[str, bytes] | None = None,
) -> DataIndex:
    """Write the tokens of all texts that `patterns` match, their tokenizer and ``data.json``, which is returned.

    The directory appears complete or not at all. Texts are held out whole, unless that leaves a split without any.

    Parameters
    ----------
    patterns, column, held_out, max_file_bytes
        See :func:`nanochat.data.documents.documents`; a pattern ``hub:org/name`` is a data set of the Hugging Face Hub,
        and ``hub:org/name:configuration`` one of its configurations, of which the training split is read.
    output : str or Path
        Directory to create. If it lies in what `patterns` match, its files are no text of theirs.
    tokenizer : Tokenizer or int
        A tokenizer, or the size of the vocabulary to train on this text.
    chat : bool
        Whether records are conversations: ``messages``, each with ``role`` and ``content``, or ``conversations`` as
        ShareGPT's. Of them only the answers are learnt.
    revision : str, optional
        Branch, tag or commit of the data sets of the Hub.
    near_duplicates : float
        Leave out texts that resemble an earlier one so much, of whichever split: the share of sequences of five words,
        of those in either text, that are in both. 0 keeps them.
    shard_tokens : int
        Tokens per file.
    sample_bytes : int
        Text that a new tokenizer is trained on, bytes, drawn from the training texts; of the Hub, the first ones.
    processes : int
        Processes that read and tokenise; the files that are written are the same for any number.
    overwrite : bool
        Replace `output` if it holds prepared data.
    beside : dict of str to bytes, optional
        Other files to put there, by name.
    """
    # A link to a directory stays one.
    output = Path(output).resolve()
    for name, size in (
        ("shard_tokens", shard_tokens),
        ("max_file_bytes", max_file_bytes),
        ("sample_bytes", sample_bytes),
        ("processes", processes),
    ):
        if size < 1:
            raise InputError(f"{name}={size} leaves no room: pass 1 or more")
    _check_output(output, overwrite)
    dropped: Counter[str] = Counter()
    found = find_sources(patterns, revision=revision)
    # What `tempfile` adds to a name has eight characters.
    left = [*output.parent.glob(f".{glob.escape(output.name)}.{'?' * 8}")]
    for path in left:
        _LOGGER.warning(
            "%s is left of a process that did not end: delete it if none is running", path
        )
    # Before this writes files of its own.
    own = {output, *left}
    files = [each for each in found.files if own.isdisjoint(each[1].resolve().parents)]
    sources = replace(found, files=files)
    reading = Reading(
        held_out=held_out,
        column=column,
        chat=chat,
        near_duplicates=near_duplicates,
        max_bytes=max_file_bytes,
    )
    # A piece of a conversation is none.
    if not chat:
        reading = replace(reading, unit=choose_unit(sources, reading))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as aside:
            new = Path(aside) / "new"
            new.mkdir()
            if isinstance(tokenizer, int):
                sample = _first if sources.streams else _sample
                read = documents_of(sources, reading, Counter())
                tokenizer = Tokenizer.train(sample(read, sample_bytes), tokenizer)
            for name, content in {**tokenizer.files(), **(beside or {})}.items():
                (new / name).write_bytes(content)
            encoded = encoded_documents(sources, reading, dropped, new, processes)
            splits = write_splits(encoded, new, token_type(tokenizer.vocab_size), shard_tokens)
            log_dropped(dropped)
            _check_splits(splits, held_out)
            index = DataIndex(
                patterns=tuple(map(str, patterns)),
                column=column,
                chat=chat,
                near_duplicates=near_duplicates,
                commits={name: commit for name, commit in sources.streams.items() if commit},
                held_out=held_out,
                max_file_bytes=max_file_bytes,
                vocab_size=tokenizer.vocab_size,
                tokenizer=tokenizer.fingerprint,
                dropped=dict(sorted(dropped.items())),
                splits=splits,
            )
            index.write(new)
            # Again, for another process may have written there.
            _check_output(output, overwrite)
            old = Path(aside) / "old"
            if output.exists():
                output.rename(old)
            try:
                new.rename(output)
            except OSError:
                if old.exists():
                    old.rename(output)
                raise
    except OSError as error:
        raise SaveError(
            f"cannot write {output}: {error.strerror or error}; free space or pass another path"
        ) from error
    return index


def _sample(read: Iterator[Document], sample_bytes: int) -> Iterator[str]:
    """The texts to train a tokenizer on: those whose names have the lowest hashes, of about so many bytes in all."""
    chosen: list[tuple[float, str, int, str]] = []
    total = 0
    for document in read:
        if document.held_out:
            continue
        name, size = document.name, len(document.text.encode())
        heapq.heappush(chosen, (-position(name, "sample"), name, size, document.text))
        total += size
        while (least := total - chosen[0][2]) >= sample_bytes:
            heapq.heappop(chosen)
            total = least
    yield from (text for *_, text in chosen)


def _first(read: Iterator[Document], sample_bytes: int) -> Iterator[str]:
    """The first texts of about so many bytes: what comes from a network is not read twice as a whole."""
    size = 0
    for document in read:
        if not document.held_out:
            size += len(document.text.encode())
            yield document.text
        if size >= sample_bytes:
            return


def _check_output(output: Path, overwrite: bool) -> None:
    if output.is_mount():
        raise InputError(
            f"{output} is a mount point, which cannot be replaced: pass a directory below it"
        )
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    try:
        # Others have a file of that name, too.
        DataIndex.read(output)
    except (DataError, FormatError) as error:
        raise InputError(
            f"{output} exists and is not prepared data: pass another path, or delete it"
        ) from error
    if not overwrite:
        raise InputError(
            f"{output} already holds prepared data: pass --overwrite, or overwrite=True in Python, to replace it"
        )


def _check_splits(splits: dict[str, Split], held_out: float) -> None:
    if not splits["train"].tokens and not splits["held_out"].tokens:
        raise DataError(
            "the files hold no text: pass patterns that match UTF-8 text, or another --column of their records"
        )
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
