"""This file holds the score of a text: how probable a model finds it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanochat.generation.engine import Runner

__all__ = ["Score", "score"]


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


def score(engine: Runner[Any], ids: Sequence[int], *, num_bytes: int) -> Score:
    """Score every token of `ids` but the first, in windows that overlap by half a context.

    `ids` are at least two tokens, `num_bytes` the length of the text that they stand for.
    """
    context = engine.config.context_length
    num_targets = len(ids) - 1
    nats, start, scored = 0.0, 0, 0
    while scored < num_targets:
        end = min(start + context, num_targets)
        losses = engine.losses(ids[start : end + 1])[scored - start :]
        nats += float(losses.sum(dtype=np.float64))
        scored, start = end, end - context // 2
    return Score(nats=nats, tokens=num_targets, bytes=num_bytes)
