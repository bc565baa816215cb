"""This file holds drafts: guesses of what a text says next, of which the model reads several tokens at once.

A guess stands where the sampler chooses the same, at any temperature. So a draft changes the time that a text takes,
and nothing else; how many tokens are guessed is a matter of time alone, see `nanochat.generation.costs`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["MOST_GUESSED", "NO_GUESS", "Draft", "Guess"]

# Guesses of a text in a step.
MOST_GUESSED = 15
# Share of the last guess in what is expected of the next.
_NEW = 0.2
# How often a guess stands, before any was made, by its source.
_FIRST = {"said": 0.5, "predicted": 0.8, "forced": 0.8, "ahead": 0.6}
# Heads that are seldom right are asked for one of so many tokens.
_SELDOM, _ASKED = 0.25, 16
# No token, of which an id has 31 bits.
_NOTHING = 0xB7E15163
# Any large odd number.
_FACTOR, _MASK = 0x9E3779B97F4A7C15, 2**62 - 1


class Guess(NamedTuple):
    """Tokens that may follow, and of each how probable it is that it stands, and all before it.

    `source` is what they were guessed from; those of one source are about equally often right.
    """

    tokens: tuple[int, ...]
    chances: tuple[float, ...]
    source: tuple[str, int]

    def first(self, count: int) -> "Guess":
        """The first tokens of it."""
        return Guess(self.tokens[:count], self.chances[:count], self.source)


NO_GUESS = Guess((), (), ("said", 0))


class Draft:
    """What is guessed of one text: what followed its last tokens where it, or a prediction of it, had them before.

    Parameters
    ----------
    ids : list of int
        The text, which its owner makes longer.
    predicted : sequence of int, optional
        What it may say, in whole or in parts.

    Examples
    --------
    >>> ids = [5, 6, 7, 8, 9, 5, 6]
    >>> draft = Draft(ids)
    >>> draft.guess(2).tokens
    (7, 8)
    >>> ids.append(1)
    >>> draft.push()
    >>> draft.guess(2).tokens
    ()
    """

    def __init__(self, ids: list[int], predicted: Sequence[int] = ()) -> None:
        self._ids = ids
        self._predicted = [*predicted]
        self._begins = len(ids)
        # Where some tokens were last, by the two or four before, but for those at the end.
        self._places, self._last = _index(ids)
        self._predicted_places, _ = _index(self._predicted)
        # How often guesses of each source stand.
        self._chances: dict[tuple[str, int], float] = {}
        # The guesses at the next token, of each source.
        self._expected: list[Guess] = []

    def push(self) -> None:
        """Note that the text has one more token, and learn whether it would have been guessed."""
        ids, (_, pair, before) = self._ids, self._last
        for key in self._last[:2]:
            self._places[key] = len(ids) - 1
        new = ids[-2] << 32 | ids[-1]
        self._last = _four(before, new), new, pair
        if self._expected:
            self._expected = [found for each in self._expected if (found := self._learned(each))]

    def _learned(self, expected: Guess) -> Guess | None:
        """Learn whether the first token of a guess stands; the rest of it, if so."""
        stood, known = expected.tokens[0] == self._ids[-1], self._chance(expected.source)
        self._chances[expected.source] = known + _NEW * (stood - known)
        rest = expected.tokens[1:]
        return Guess(rest, (), expected.source) if stood and rest else None

    def guess(self, most: int, *, forced: Sequence[int] = (), ahead: Sequence[int] = ()) -> Guess:
        """What may follow, at most so many tokens.

        Parameters
        ----------
        forced : sequence of int
            What a form has next, if it leaves no choice: then nothing else is guessed.
        ahead : sequence of int
            What extra heads of the model say.
        """
        most = min(most, MOST_GUESSED)
        found = [(forced[:most], ("forced", 0))]
        if not forced:
            found = [self._found(most), (ahead[:most], ("ahead", 0))]
        self._expected = [self._guess_of(tokens, source) for tokens, source in found if tokens]
        if len(self._expected) < 2:
            return self._expected[0] if self._expected else NO_GUESS
        return max(self._expected, key=lambda guess: sum(guess.chances))

    @property
    def asks_ahead(self) -> bool:
        """Whether it is worth while to ask extra heads: they are right often enough, or were not asked for long."""
        return self._chance(("ahead", 0)) > _SELDOM or len(self._ids) % _ASKED == 0

    def _guess_of(self, tokens: Sequence[int], source: tuple[str, int]) -> Guess:
        chance = self._chance(source)
        return Guess(
            tuple(tokens), tuple(chance**place for place in range(1, len(tokens) + 1)), source
        )

    def _chance(self, source: tuple[str, int]) -> float:
        return self._chances.get(source, _FIRST[source[0]])

    def _found(self, most: int) -> tuple[Sequence[int], tuple[str, int]]:
        ids, predicted = self._ids, self._predicted
        if predicted and len(ids) == self._begins:
            return predicted[:most], ("predicted", 0)
        for key, alike in zip(self._last, (4, 2), strict=False):
            if predicted and (place := self._predicted_places.get(key)) is not None:
                return predicted[place : place + most], ("predicted", alike)
            if (place := self._places.get(key)) is not None:
                return ids[place : place + most], ("said", alike)
        return (), ("said", 0)


def _index(ids: Sequence[int]) -> tuple[dict[int, int], tuple[int, int, int]]:
    """Where each token but the first ones was last, by a key of the four or of the two tokens before.

    And the keys of the four tokens at the end, and of the last two, and those before them.
    """
    # Before the first tokens are some that there are not.
    whole = np.array([_NOTHING] * 4 + [*ids], np.uint64)
    pairs = whole[:-1] << np.uint64(32) | whole[1:]
    fours = -1 - ((pairs[:-2] * np.uint64(_FACTOR) ^ pairs[2:]) & np.uint64(_MASK)).astype(np.int64)
    places = dict(zip(pairs[2:-1].tolist(), range(len(ids)), strict=True))
    places.update(zip(fours[:-1].tolist(), range(len(ids)), strict=True))
    return places, (int(fours[-1]), int(pairs[-1]), int(pairs[-2]))


def _four(before: int, pair: int) -> int:
    """The key of four tokens, from those of the first two and of the last two."""
    return -1 - ((before * _FACTOR ^ pair) & _MASK)
