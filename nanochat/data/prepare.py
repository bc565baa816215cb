"""This file holds the way from text files to training data: a directory that appears complete or not at all."""

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nanochat.data.documents import Unit, choose_unit, documents_of, log_dropped
from nanochat.data.index import FILE_NAME, DataIndex, Split
from nanochat.data.sources import Files, find_files
from nanochat.data.splits import is_held_out, position
from nanochat.data.writing import write_splits
from nanochat.errors import DataError, InputError, SaveError
from nanochat.text.tokenizer import Tokenizer

__all__ = ["prepare"]

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
    beside: Mapping[str, bytes] | None = None,
) -> DataIndex:
    """Write the tokens of all files that `patterns` match, their tokenizer and ``data.json``, which is returned.

    The directory appears complete or not at all. Files are held out whole, unless that leaves a split without any.

    Parameters
    ----------
    patterns, held_out, max_file_bytes
        See :func:`nanochat.data.documents.documents`.
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
    unit = choose_unit(files, held_out, max_file_bytes)
    if isinstance(tokenizer, int):
        texts = _sample(files, held_out, max_file_bytes, sample_bytes, unit)
        tokenizer = Tokenizer.train(texts, tokenizer)
    read = documents_of(files, held_out, max_file_bytes, dropped, unit)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as aside:
            new = Path(aside) / "new"
            new.mkdir()
            for name, content in {**tokenizer.files(), **(beside or {})}.items():
                (new / name).write_bytes(content)
            splits = write_splits(read, new, tokenizer, shard_tokens)
            log_dropped(dropped)
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


def _sample(
    files: Files, held_out: float, max_file_bytes: int, sample_bytes: int, unit: Unit
) -> Iterator[str]:
    """Yield the text to train on, chosen by a hash, of about `sample_bytes` in all."""
    sizes = {
        name: path.stat().st_size
        for name, path in files
        if unit == "piece" or not is_held_out(name, held_out)
    }
    total = sum(size for size in sizes.values() if size <= max_file_bytes)
    share = sample_bytes / max(1, total)
    for document in documents_of(files, held_out, max_file_bytes, Counter(), unit):
        if not document.held_out and position(document.path, "sample") < share:
            yield document.text


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
