"""This file holds scores of many texts: how many bits a model needs for a byte of them, as a whole and one by one."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from nanochat.data.documents import documents
from nanochat.errors import DataError, InputError
from nanochat.generation.scoring import Convention, Score, nats_of_all, scored_ids
from nanochat.lm import Model

__all__ = ["TextScores", "read_texts", "score_texts"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class TextScores:
    """Scores of texts, and how those that are longer than a window were read.

    Nats and bytes are summed over all texts before they are divided: a mean of the texts' own ratios would give a short
    one as much weight as a long one.

    Parameters
    ----------
    convention : Convention
        How windows lie. Those of different conventions or sizes give different numbers, and are not to be compared.
    window : int
        Most tokens that were read at once.
    scores : mapping of str to Score
        By the names of the texts, for resampling texts, or comparing two models on the same ones.

    Examples
    --------
    >>> short = Score(nats=2 * math.log(2), tokens=1, bytes=1)
    >>> long = Score(nats=8 * math.log(2), tokens=3, bytes=9)
    >>> scores = {"a.txt": short, "b.txt": long}
    >>> TextScores(convention="disjoint", window=512, scores=scores).total.bits_per_byte
    1.0
    """

    convention: Convention
    window: int
    scores: Mapping[str, Score]

    @property
    def total(self) -> Score:
        """The score of all texts together."""
        every = self.scores.values()
        return Score(
            nats=math.fsum(score.nats for score in every),
            tokens=sum(score.tokens for score in every),
            bytes=sum(score.bytes for score in every),
        )

    def record(self) -> dict[str, object]:
        """All of it, ready for JSON."""
        total = self.total
        return {
            "convention": self.convention,
            "window": self.window,
            "documents": len(self.scores),
            **vars(total),
            "bits_per_byte": total.bits_per_byte,
            "nats_per_token": total.nats_per_token,
            "perplexity": total.perplexity,
            "scores": {name: dict(vars(score)) for name, score in self.scores.items()},
        }


def score_texts(
    model: Model,
    texts: Mapping[str, str] | Sequence[str],
    *,
    convention: Convention = "overlapping",
    window: int | None = None,
    progress: Progress = lambda done, total: None,  # noqa: ARG005
) -> TextScores:
    """Measure how well a model predicts texts, each of which follows ``<|bos|>`` or whatever its texts begin with.

    Special tokens carry no bytes: what texts begin with is read, and not predicted.

    Parameters
    ----------
    texts : mapping of str to str, or sequence of str
        With their names, or else they are called by their numbers.
    convention : Convention
        How windows lie in texts that are longer than one. With "overlapping", each text has the score of
        `nanochat.lm.Model.score`; with "lm-eval", that of the harness of this name.
    window : int, optional
        Most tokens that are read at once; by default as many as the context holds.
    progress : callable
        Is told how many tokens of how many are scored.

    Raises
    ------
    InputError
        If there is no text, or one is empty, or an option is out of range.
    """
    if isinstance(texts, str):
        raise InputError("texts is one text: pass a list of texts, or a mapping with their names")
    named = (
        texts
        if isinstance(texts, Mapping)
        else {str(number): text for number, text in enumerate(texts)}
    )
    if not named:
        raise InputError("there is no text to score: pass at least one")
    if convention not in get_args(Convention):
        raise InputError(
            f"convention={convention!r:.80} is none: choose one of {', '.join(get_args(Convention))}"
        )
    context = model.config.context_length
    size = context if window is None else window
    if not 2 <= size <= context:
        raise InputError(
            f"window={size} tokens: pass 2 to {context}, which the context holds, or leave it out"
        )
    sequences = [_scored_ids(model, name, text) for name, text in named.items()]
    total = sum(len(ids) - 1 for ids in sequences)
    done = 0

    def tell(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(done, total)

    progress(done, total)
    nats = nats_of_all(model.engine, sequences, convention=convention, size=size, progress=tell)
    return TextScores(
        convention=convention,
        window=size,
        scores={
            name: Score(nats=lost, tokens=len(ids) - 1, bytes=len(text.encode()))
            for (name, text), ids, lost in zip(named.items(), sequences, nats, strict=True)
        },
    )


def read_texts(
    paths: Sequence[str | Path], *, column: str = "text", held_out: float = 0.0
) -> dict[str, str]:
    """Read texts by name: files, and all below folders, as `nanochat data prepare` reads them.

    Lines of ``.jsonl`` and rows of ``.parquet`` are texts of their own. Of equal texts, one is kept; those left out are
    counted in the log.

    Parameters
    ----------
    paths : sequence of str or Path
        Files, folders and globs, and data sets of the Hub as ``hub:org/name``.
    column : str
        Field of a record that holds its text.
    held_out : float
        Read only the texts that `nanochat data prepare` holds out of the same paths with this share; 0 reads all.

    Raises
    ------
    DataError
        If there is nothing there, or it cannot be read, or holds no text.
    """
    texts: dict[str, str] = {}
    for document in documents(paths, column=column, held_out=held_out):
        if held_out and not document.held_out:
            continue
        # Two folders may hold files of one name.
        name = document.place if document.name in texts else document.name
        texts[name] = document.text
    if not texts:
        raise DataError(
            f"no text in {', '.join(map(str, paths))}{f' is held out by held_out={held_out}' if held_out else ''}: "
            "pass files of UTF-8 that are not empty, or a larger share"
        )
    return texts


def _scored_ids(model: Model, name: str, text: str) -> list[int]:
    try:
        return scored_ids(text, model.tokenizer)
    except InputError as error:
        raise InputError(f"text {name}: {error}") from error
