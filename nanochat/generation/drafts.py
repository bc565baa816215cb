"""This file holds drafts: guesses of what a text says next, of which the model reads several tokens at once.

A guess stands where the sampler chooses the same, at any temperature. So a draft changes the time that a text takes,
and nothing else; how many tokens are guessed is a matter of time alone, see `nanochat.generation.costs`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

__all__ = ["MOST_GUESSED", "NO_GUESS", "Draft", "Guess", "Index"]

# Guesses of a text in a step.
MOST_GUESSED = 15
# Share of the last guess in what is expected of the next.
_NEW = 0.2
# How often a guess stands, before any was made, by its source.
_FIRST = {"said": 0.5, "predicted": 0.8, "forced": 0.8, "ahead": 0.6}
# Heads that are seldom right are asked for one of so many tokens.
_SELDOM, _ASKED = 0.25, 16
# Tokens of a text that differ from its prediction one after the other, until it is looked for elsewhere.
_MOST_MISSED = 1
# No token, of which an id has 31 bits.
_NOTHING = 0xB7E15163
# The bits of one token, and any large odd number.
_ONE = 2**32 - 1
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


@dataclass(frozen=True, kw_only=True)
class Index:
    """Where each token of some was last, by a key of the four and one of the two tokens before.

    `ends` are these keys of the tokens at the end, and that of the two before the last.
    """

    size: int
    places: Mapping[int, int]
    ends: tuple[int, int, int]

    @classmethod
    def of(cls, ids: Sequence[int]) -> "Index":
        """That of some tokens."""
        # Before the first tokens are some that there are not.
        whole = np.array([_NOTHING] * 4 + [*ids], np.uint64)
        pairs = whole[:-1] << np.uint64(32) | whole[1:]
        hashed = (pairs[:-2] * np.uint64(_FACTOR) ^ pairs[2:]) & np.uint64(_MASK)
        fours = -1 - hashed.astype(np.int64)
        places = dict(zip(pairs[2:-1].tolist(), range(len(ids)), strict=True))
        places.update(zip(fours[:-1].tolist(), range(len(ids)), strict=True))
        ends = int(fours[-1]), int(pairs[-1]), int(pairs[-2])
        return cls(size=len(ids), places=places, ends=ends)


class Draft:
    """What is guessed of one text: what followed its last tokens where it, or a prediction of it, had them before.

    Parameters
    ----------
    ids : list of int
        The text, which its owner makes longer.
    prompt : Index
        Of what it begins with, which others may begin with, too.
    predicted : sequence of int, optional
        What may follow that, in whole or in parts.

    Examples
    --------
    >>> ids = [5, 6, 7, 8, 9, 5, 6]
    >>> draft = Draft(ids, Index.of(ids))
    >>> draft.guess(2).tokens
    (7, 8)
    >>> ids.append(1)
    >>> draft.push()
    >>> draft.guess(2).tokens
    ()
    """

    def __init__(self, ids: list[int], prompt: Index, predicted: Sequence[int] = ()) -> None:
        self._ids = ids
        self._prompt = prompt
        # Of the tokens behind the prompt, which come last.
        self._places: dict[int, int] = {}
        self._ends, self._size = prompt.ends, prompt.size
        self._predicted = [*predicted]
        self._predicted_places = Index.of(self._predicted).places
        # What comes next if the text follows the prediction, and how many tokens there were that did not, until now.
        self._next: int | None = 0
        self._missed = 0
        # How often guesses of each source stand.
        self._chances: dict[tuple[str, int], float] = {}
        # The guesses at the next token, of each source.
        self._expected: list[Guess] = []
        self.push()

    def push(self) -> None:
        """Note what tokens the text has more, and learn whether they would have been guessed."""
        while self._size < len(self._ids):
            token = self._ids[self._size]
            _, pair, before = self._ends
            for key in self._ends[:2]:
                self._places[key] = self._size
            new = (pair & _ONE) << 32 | token
            self._ends = -1 - ((before * _FACTOR ^ new) & _MASK), new, pair
            self._size += 1
            if self._next is not None:
                # As a rule a token that differs stands in the place of another.
                is_next = self._predicted[self._next : self._next + 1] == [token]
                self._missed = 0 if is_next else self._missed + 1
                self._next = self._next + 1 if self._missed <= _MOST_MISSED else None
            if self._expected:
                self._expected = [
                    found for each in self._expected if (found := self._learned(each, token))
                ]

    def _learned(self, expected: Guess, token: int) -> Guess | None:
        """Learn whether the first token of a guess stands; the rest of it, if so."""
        stood, known = expected.tokens[0] == token, self._chance(expected.source)
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
        for key, alike in zip(self._ends, (4, 2), strict=False):
            place = self._predicted_places.get(key) if predicted else None
            if place is not None and (self._next is None or self._missed):
                self._next, self._missed = place, 0
            if self._next is not None and self._next < len(predicted):
                return predicted[self._next : self._next + most], ("predicted", self._missed)
            place = self._places.get(key, self._prompt.places.get(key))
            if place is not None:
                return ids[place : place + most], ("said", alike)
        return (), ("said", 0)
