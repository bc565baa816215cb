"""This file holds the score of a text: how probable a model finds it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat.engine import Runner

__all__ = ["Score", "score"]

# Rows of logits that are turned into probabilities at once, which bounds the float64 copy.
_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Score:
    """How probable a model finds a text of so many tokens and bytes.

    `nats` is minus the natural logarithm of the text's probability after ``<|bos|>``.

    Examples
    --------
    >>> score = Score(nats=32.0 * math.log(2), tokens=4, bytes=16)
    >>> score.bits_per_byte, round(score.nats_per_token, 3)
    (2.0, 5.545)
    """

    nats: float
    tokens: int
    bytes: int

    @property
    def nats_per_token(self) -> float:
        """Mean cross-entropy; depends on the tokenizer."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits to code one byte of the text; comparable between tokenizers."""
        return self.nats / math.log(2) / self.bytes


def score(engine: Runner[Any], ids: Sequence[int], *, num_bytes: int) -> Score:
    """Score every token of `ids` but the first, in windows that overlap by half a context.

    `ids` are at least two tokens, `num_bytes` the length of the text that they stand for.
    """
    context = engine.config.context_length
    num_targets = len(ids) - 1
    nats, start, scored = 0.0, 0, 0
    while scored < num_targets:
        end = min(start + context, num_targets)
        logits = engine.logits(ids[start:end])[scored - start :]
        nats += _cross_entropy(logits, ids[scored + 1 : end + 1])
        scored, start = end, end - context // 2
    return Score(nats=nats, tokens=num_targets, bytes=num_bytes)


def _cross_entropy(logits: NDArray[np.float32], targets: Sequence[int]) -> float:
    """Minus the sum of the targets' log-probabilities, in nats."""
    nats = 0.0
    for start in range(0, len(targets), _ROWS):
        rows = logits[start : start + _ROWS].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        chosen = rows[np.arange(len(rows)), list(targets[start : start + _ROWS])]
        nats += float((np.log(np.exp(rows).sum(axis=1)) - chosen).sum())
    return nats
