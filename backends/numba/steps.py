"""This file holds the steps of the Numba backend: what kernels want to know of them, and those that are repeated.

A step that is repeated has its numbers where they were noted. It has room for as many tokens as a bucket, and what is
beyond those that it has continues the row that nobody reads.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.numba.attention.attention import QUERIES
from nanochat.rows import MOST_TOGETHER, Step

__all__ = ["NumbaStep", "RepeatedStep", "bucket"]

_Ints = NDArray[np.int64]

# Of the queries of a span, one that is none of them: such a part does nothing.
_NONE = 1 << 32


@dataclass(frozen=True, kw_only=True, eq=False)
class NumbaStep(Step):
    """A step with what the kernels want to know of it besides: for how its attention is cut, see `parts_of`."""

    _parts: dict[tuple[int, int], _Ints] = field(default_factory=dict)

    def parts_of(self, groups: int, share: int) -> _Ints:
        """Parts of `attention_kernel` for so many key heads and queries of a token that share one."""
        key = groups, share
        if key not in self._parts:
            self._parts[key] = np.array(_cut(tuple(self.counts.tolist()), groups, share), np.int64)
        return self._parts[key]


@dataclass(frozen=True, kw_only=True, eq=False)
class RepeatedStep(NumbaStep):
    """A step whose arrays stay where they are, of any rows that have no more tokens together.

    It has as many spans as tokens. Those of its rows come first; then some that have no token, so that a token beyond
    those of the rows is in the span of its own number.
    """

    # The row that nobody reads.
    nobody: int
    # Where a token is in its span.
    places: _Ints
    # The rows and counts that it has now.
    _now: list[tuple[list[int], list[int]]] = field(default_factory=list)

    @classmethod
    def of(cls, size: int, nobody: int) -> "RepeatedStep":
        """One with room for so many tokens."""
        of_spans = np.zeros((4, size), np.int64)
        of_tokens = np.zeros((3, size), np.int64)
        return cls(
            rows=of_spans[0],
            starts=of_spans[1],
            counts=of_spans[2],
            offsets=of_spans[3],
            spans=of_tokens[0],
            positions=of_tokens[1],
            places=of_tokens[2],
            nobody=nobody,
        )

    def become(self, rows: Sequence[int], starts: Sequence[int], counts: Sequence[int]) -> None:
        """Take the numbers of a step."""
        # As a rule the rows are those of the step before.
        if self._now != [(rows, counts)]:
            self._now[:] = [([*rows], [*counts])]
            self._arrange(rows, counts)
        self.starts[: len(rows)] = starts
        np.add(self.starts[self.spans], self.places, out=self.positions)

    def parts_of(self, groups: int, share: int) -> _Ints:
        """As of any step; each token has room for as many parts as it would have alone, and those beyond come last."""
        key = groups, share
        if key not in self._parts:
            size = len(self.spans) * groups * -(-share // QUERIES)
            self._parts[key] = np.empty((size, 3), np.int64)
            self._fill_parts(key)
        return self._parts[key]

    def _arrange(self, rows: Sequence[int], counts: Sequence[int]) -> None:
        number, tokens = len(rows), sum(counts)
        self.rows[:number], self.rows[number:] = rows, self.nobody
        self.starts[:] = 0
        self.counts[:number], self.counts[number:tokens], self.counts[tokens:] = counts, 0, 1
        self.offsets[:] = np.cumsum(self.counts) - self.counts
        self.spans[:] = np.repeat(np.arange(len(self.spans)), self.counts)
        self.places[:] = np.arange(len(self.spans)) - self.offsets[self.spans]
        for key in self._parts:
            self._fill_parts(key)

    def _fill_parts(self, key: tuple[int, int]) -> None:
        (_, counts), parts = self._now[0], self._parts[key]
        tokens, size = sum(counts), len(self.spans)
        end = len(parts) // size * tokens
        of_rows = _cut(tuple(counts), *key)
        parts[:end] = 0, _NONE, 0
        parts[: len(of_rows)] = of_rows
        if tokens < size:
            parts[end:] = _cut((1,) * (size - tokens), *key)
            parts[end:, 0] += tokens


def bucket(rows: int, tokens: int) -> int:
    """The tokens of the step that is repeated for some: products take four at a time; 0 if none is."""
    if tokens > max(rows, MOST_TOGETHER):
        return 0
    if tokens <= 4:
        return tokens
    return -(-tokens // 4) * 4 if tokens <= 32 else -(-tokens // 8) * 8


@lru_cache(maxsize=512)
def _cut(counts: tuple[int, ...], groups: int, share: int) -> list[tuple[int, int, int]]:
    """For spans of so many tokens, parts of some queries: their span, which comes first, and their key head."""
    parts = []
    for span, count in enumerate(counts):
        firsts = deque(range(0, count * share, QUERIES))
        # From both ends in turn: later queries see more, and every thread should have its share of them.
        while firsts:
            parts.append((span, firsts.popleft()))
            if firsts:
                parts.append((span, firsts.pop()))
    heads = range(groups)
    if max(counts) == 1:
        # What one row remembers of its key heads lies together, and is read once.
        return [(*part, head) for part in parts for head in heads]
    # Queries of a row share what it remembers of a key head.
    return [(*part, head) for head in heads for part in parts]
