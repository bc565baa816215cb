"""This file holds the score of a text: how probable a model finds it, in windows that its context holds."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from nanochat.errors import InputError
from nanochat.generation.engine import Runner
from nanochat.generation.prompts import encode_prompt
from nanochat.text.codec import TextCodec

__all__ = ["Convention", "Score", "Window", "nats_of_all", "score", "scored_ids", "windows"]

# How a text that is longer than a window is read: windows that overlap by half, so that every token has at least half a
# window before it, or all that stands there; windows side by side, each of which knows nothing of the one before but
# its last token; or those as well, but the last one as long as they are, as in EleutherAI's lm-evaluation-harness.
Convention = Literal["overlapping", "disjoint", "lm-eval"]

# Of windows that are read together.
_TOKENS = 2048


class Window(NamedTuple):
    """The tokens from `start` to before `end` are read, and those from `scored` + 1 to `end` are predicted."""

    start: int
    end: int
    scored: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """How probable a model finds a text of so many tokens and bytes.

    `nats` is minus the natural logarithm of the text's probability after ``<|bos|>``.

    Examples
    --------
    >>> score = Score(nats=32.0 * math.log(2), tokens=4, bytes=16)
    >>> score.bits_per_byte, round(score.nats_per_token, 3), round(score.perplexity)
    (2.0, 5.545, 256)
    """

    nats: float
    tokens: int
    bytes: int

    @property
    def nats_per_token(self) -> float:
        """Mean cross-entropy; depends on the tokenizer."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """How many tokens the model hesitates between, on average; depends on the tokenizer."""
        return math.exp(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float:
        """Bits to code one byte of the text; comparable between tokenizers."""
        return self.nats / math.log(2) / self.bytes


def scored_ids(text: str, tokenizer: TextCodec) -> list[int]:
    """The tokens of a text behind one that they can follow: every token but the first is scored.

    The first is that of the start of a text, or whatever texts begin with.

    Raises
    ------
    InputError
        If the text is empty or not a string.
    """
    ids = encode_prompt(text, tokenizer)
    if not tokenizer.opening and tokenizer.eos is not None:
        # In training the end of another text stood before it.
        ids = [tokenizer.eos, *ids]
    if len(ids) < 2:
        raise InputError(
            "the text is one token, and this model's tokenizer has none to stand before it: pass a longer text"
        )
    return ids


def score(engine: Runner[Any], ids: Sequence[int], *, num_bytes: int) -> Score:
    """Score every token of `ids` but the first, in windows that overlap by half a context.

    `ids` are at least two tokens, `num_bytes` the length of the text that they stand for.
    """
    (nats,) = nats_of_all(
        engine, [ids], convention="overlapping", size=engine.config.context_length
    )
    return Score(nats=nats, tokens=len(ids) - 1, bytes=num_bytes)


def nats_of_all(
    engine: Runner[Any],
    sequences: Sequence[Sequence[int]],
    *,
    convention: Convention,
    size: int,
    progress: Callable[[int], object] = lambda _: None,
) -> list[float]:
    """Nats that all tokens of each sequence but its first cost, with windows of at least two tokens and at most `size`.

    Windows that are about as long are read together. `progress` is called with the number of tokens that are scored,
    after each reading.
    """
    every = [
        (number, window)
        for number, ids in enumerate(sequences)
        for window in windows(len(ids) - 1, size=size, convention=convention)
    ]
    every.sort(key=lambda item: item[1].start - item[1].end)
    parts: list[dict[int, float]] = [{} for _ in sequences]
    for batch in _batches(every):
        found = engine.losses_of_all(
            [sequences[number][window.start : window.end + 1] for number, window in batch]
        )
        for (number, window), losses in zip(batch, found, strict=True):
            scored = losses[window.scored - window.start :]
            parts[number][window.start] = float(scored.sum(dtype=np.float64))
        progress(sum(window.end - window.scored for _, window in batch))
    return [sum(nats for _, nats in sorted(part.items())) for part in parts]


def windows(num_targets: int, *, size: int, convention: Convention) -> Iterator[Window]:
    """Yield the windows in which so many targets are scored, each once, in order.

    Examples
    --------
    >>> [tuple(window) for window in windows(10, size=4, convention="overlapping")]
    [(0, 4, 0), (2, 6, 4), (4, 8, 6), (6, 10, 8)]
    >>> [tuple(window) for window in windows(10, size=4, convention="disjoint")]
    [(0, 4, 0), (4, 8, 4), (8, 10, 8)]
    >>> [tuple(window) for window in windows(10, size=4, convention="lm-eval")]
    [(0, 4, 0), (4, 8, 4), (6, 10, 8)]
    """
    scored = start = 0
    while scored < num_targets:
        end = min(start + size, num_targets)
        if convention == "lm-eval":
            start = max(end - size, 0)
        yield Window(start, end, scored)
        scored, start = end, end - size // 2 if convention == "overlapping" else end


def _batches(every: Sequence[tuple[int, Window]]) -> Iterator[Sequence[tuple[int, Window]]]:
    """Windows, the longest first, in parts of about as many tokens."""
    start = 0
    while start < len(every):
        longest = every[start][1]
        count = max(1, _TOKENS // (longest.end - longest.start))
        yield every[start : start + count]
        start += count
