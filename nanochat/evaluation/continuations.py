"""This file holds the probabilities of continuations: how likely a model finds texts behind a context.

A context that several continuations follow, as the answers of a question do, is read once.

Legend: N flat tokens, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nanochat.errors import ContextLengthError, InputError
from nanochat.generation.engine import PREFILL_CHUNK, Runner
from nanochat.rows import num_pages

__all__ = ["Found", "continuations"]

Ids = tuple[int, ...]

# Contexts that are read together, by their number and by their tokens.
_ROWS, _TOKENS = 32, 2048
# Logits that are formed at once: 64 MB.
_LOGITS = 2**24
# Rows of logits that are turned into probabilities at once, which bounds the float64 copy.
_AT_ONCE = 64


class Found(NamedTuple):
    """Natural logarithm of the probability of continuation `number`, and whether each token is the most probable."""

    number: int
    logprob: float
    is_greedy: bool


@dataclass
class _Answer:
    """A continuation, the requests that ask for it, and what is known of it."""

    ids: Ids
    numbers: list[int] = field(default_factory=list)
    logprob: float = 0.0
    is_greedy: bool = True
    read: int = 0

    def add(self, logprobs: NDArray[np.float64], greedy: NDArray[np.bool_]) -> None:
        self.logprob += float(logprobs.sum())
        self.is_greedy = self.is_greedy and bool(greedy.all())
        self.read += len(logprobs)


def continuations(
    engine: Runner[Any], pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> Iterator[Found]:
    """Yield how likely the second sequence of each pair is behind the first, in the order in which that is computed.

    Raises
    ------
    ContextLengthError
        If a pair has more tokens than the context and one, for the last is not read.
    InputError
        If a sequence is empty.
    """
    context_length = engine.config.context_length
    groups: dict[Ids, dict[Ids, _Answer]] = defaultdict(dict)
    for number, (context, ids) in enumerate(pairs):
        if not len(context) or not len(ids):
            raise InputError(
                f"pair {number} has {len(context)} and {len(ids)} tokens: pass at least one before, and one to score"
            )
        if len(context) + len(ids) > context_length + 1:
            raise ContextLengthError(
                f"pair {number} has {len(context)} and {len(ids)} tokens, and the model's context holds "
                f"{context_length}: leave out the first tokens of the context"
            )
        answers = groups[tuple(context)]
        answers.setdefault(tuple(ids), _Answer(tuple(ids))).numbers.append(number)
    ordered = sorted(groups.items(), key=lambda group: len(group[0]), reverse=True)
    start = 0
    while start < len(ordered):
        count = min(_ROWS, max(1, _TOKENS // len(ordered[start][0])))
        batch = ordered[start : start + count]
        start += count
        _read(engine, [(context, [*answers.values()]) for context, answers in batch])
        for _, answers in batch:
            for answer in answers.values():
                for number in answer.numbers:
                    yield Found(number, answer.logprob, answer.is_greedy)


def _read(engine: Runner[Any], groups: Sequence[tuple[Ids, Sequence[_Answer]]]) -> None:
    """Find what all answers of some contexts need."""
    capacity = max(
        len(context) + len(answer.ids) - 1 for context, answers in groups for answer in answers
    )
    # Rows and pages for the contexts, and for as many answers as go on together: each has the last page of its context
    # for itself.
    longest = max(len(answer.ids) for _, answers in groups for answer in answers)
    pages = sum(num_pages(len(context)) for context, _ in groups)
    state = engine.new_state(
        rows=len(groups) + _ROWS,
        capacity=capacity,
        pages=pages + _ROWS * (1 + num_pages(longest)),
    )
    rows = [state.admit() for _ in groups]
    last = _read_contexts(engine, state, rows, [context for context, _ in groups])
    waiting: list[tuple[int, _Answer, bool]] = []
    for row, logits, (_, answers) in zip(rows, last, groups, strict=True):
        firsts = np.array([answer.ids[0] for answer in answers])
        logprobs, greedy = _scored(np.broadcast_to(logits, (len(firsts), len(logits))), firsts)
        for place, answer in enumerate(answers):
            answer.add(logprobs[place : place + 1], greedy[place : place + 1])
        longer = [answer for answer in answers if len(answer.ids) > 1]
        # The last one goes on where its context is, and needs no copy.
        waiting += [(row, answer, answer is longer[-1]) for answer in longer]
    most = max(1, _LOGITS // engine.config.vocab_size)
    for start in range(0, len(waiting), _ROWS):
        part = waiting[start : start + _ROWS]
        forks = [row if is_last else state.fork(row) for row, _, is_last in part]
        _continue(engine, state, [(f, a) for f, (_, a, _) in zip(forks, part, strict=True)], most)
        for row in forks:
            state.release(row)


def _read_contexts(
    engine: Runner[Any], state: Any, rows: Sequence[int], contexts: Sequence[Ids]
) -> NDArray[np.float32]:
    """Let each row read a context; the logits behind each."""
    if len(contexts) == 1 and len(contexts[0]) > PREFILL_CHUNK:
        return engine.extend(state, rows[0], contexts[0])[None]
    return engine.step(state, rows, contexts)


def _continue(
    engine: Runner[Any], state: Any, answers: Sequence[tuple[int, _Answer]], most: int
) -> None:
    """Let rows read their answers, so many tokens at once, until all but the last token of each are read."""
    left = [(row, answer) for row, answer in answers if answer.read < len(answer.ids)]
    while left:
        rows, tokens = [], []
        room = most
        for row, answer in left:
            if not room:
                break
            ids = answer.ids[answer.read - 1 : -1][:room]
            room -= len(ids)
            rows.append(row)
            tokens.append(ids)
        logits = engine.step(state, rows, tokens, every=True)
        end = 0
        for (_, answer), ids in zip(left, tokens, strict=False):
            start, end = end, end + len(ids)
            targets = np.array(answer.ids[answer.read : answer.read + len(ids)])
            answer.add(*_scored(logits[start:end], targets))
        left = [(row, answer) for row, answer in left if answer.read < len(answer.ids)]


def _scored(
    logits: NDArray[np.float32], targets: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Of each target, behind whose place there are logits (N, V), its log-probability, and whether it is the best."""
    logprobs = np.empty(len(targets))
    for start in range(0, len(targets), _AT_ONCE):
        rows = logits[start : start + _AT_ONCE].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        chosen = rows[np.arange(len(rows)), targets[start : start + _AT_ONCE]]
        logprobs[start : start + _AT_ONCE] = chosen - np.log(np.exp(rows).sum(axis=1))
    return logprobs, logits.argmax(axis=1) == targets
