"""This file holds strategies: words that say of which values an argument is drawn.

A strategy follows the argument's name and `in`. Its words, each of which may be left out:

* ``-9..=9``, ``'a'..='e'``: numbers and characters of a range, as far as the type holds them.
* ``half``, ``root``: numbers of which any two have a sum, or a product, that the type holds.
* ``words``: texts of small letters and single spaces.
* ``one of "on" "no. {1..=9}"``: one of these texts, or characters; a range in braces is a number drawn of it.
* ``made of "ab" " "``: texts of such pieces in any order.
* ``of length 0..=4``: of lists, and in pieces of the texts that are made of them.
* ``sorted``, ``distinct``: the numbers of a list, or of a tuple, ascend; none is equal to another.
* ``rectangular``: the lists in a list are equally long, and not empty.
* ``with``: what stands behind it is for the values of a map, or for the second part of a tuple.
"""

import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from nanochat.errors import InputError
from nanochat.problems.types import value_range
from nanochat.problems.values import text_of
from nanochat.rust.lexer import Token, tokens

__all__ = ["Strategy", "parse_strategy"]

_WORDS = ("distinct", "half", "rectangular", "root", "sorted", "words")


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """Of which values an argument is drawn; what is not said is up to the type."""

    numbers: tuple[int, int] | Literal["half", "root"] | None = None
    texts: Literal["any", "words", "one of", "made of"] = "any"
    pieces: tuple[str, ...] = ()
    length: tuple[int, int] = (0, 8)
    is_sorted: bool = False
    is_distinct: bool = False
    is_rectangular: bool = False
    second: "Strategy | None" = None

    def range_of(self, name: str) -> tuple[int, int]:
        """The smallest and the largest number of a type that may be drawn.

        Raises
        ------
        InputError
            If the type holds none of those that the strategy wants.
        """
        low, high = (-100, 100) if name in ("f32", "f64") else value_range(name)
        match self.numbers:
            case "half":
                low, high = -(-low // 2), high // 2
            case "root":
                low, high = max(low, -math.isqrt(high)), math.isqrt(high)
            case (lowest, highest):
                low, high = max(low, lowest), min(high, highest)
        if low > high:
            raise InputError(f"no {name} is in {self.numbers}: use another range")
        return low, high


@lru_cache(maxsize=4096)
def parse_strategy(text: str) -> Strategy:
    """Read a strategy.

    Raises
    ------
    InputError
        If it has other words than those that the module names.
    """
    first, _, second = text.partition(" with ")
    strategy = Strategy(second=parse_strategy(second) if second else None)
    found = [*tokens(first)]
    place = 0
    while place < len(found):
        words = [token.text for token in found[place : place + 2]]
        if words in (["one", "of"], ["made", "of"]):
            pieces = [text_of(token.text) for token in _strings(found[place + 2 :])]
            kind: Literal["one of", "made of"] = "one of" if words[0] == "one" else "made of"
            strategy = replace(strategy, texts=kind, pieces=tuple(pieces))
            place += 2 + len(pieces)
        elif words == ["of", "length"]:
            numbers, place = _range(text, found, place + 2)
            strategy = replace(strategy, length=numbers)
        elif words[0] in _WORDS:
            strategy = _with_word(strategy, words[0])
            place += 1
        else:
            numbers, place = _range(text, found, place)
            strategy = replace(strategy, numbers=numbers)
    return strategy


def _with_word(strategy: Strategy, word: str) -> Strategy:
    match word:
        case "half" | "root":
            return replace(strategy, numbers=word)
        case "words":
            return replace(strategy, texts="words")
    return replace(
        strategy,
        is_sorted=strategy.is_sorted or word == "sorted",
        is_distinct=strategy.is_distinct or word == "distinct",
        is_rectangular=strategy.is_rectangular or word == "rectangular",
    )


def _strings(found: list[Token]) -> list[Token]:
    count = next((i for i, token in enumerate(found) if token.kind != "string"), len(found))
    return found[:count]


def _range(text: str, found: list[Token], place: int) -> tuple[tuple[int, int], int]:
    """The range that starts at a token, and the place behind it."""
    # The lexer has no token for a range's dots and sign.
    rest = "".join(token.text for token in found[place:])
    match = re.match(r"(-?\d+)\.\.=(-?\d+)|('.')\.\.=('.')", rest)
    if match is None:
        word = found[place].text if place < len(found) else text
        raise InputError(
            f"{text!r} says nothing about values from {word!r} on: use a range such as 0..=9, {', '.join(_WORDS)}, "
            f"one of, made of, of length, or with"
        )
    low, high = (ord(end[1]) if end[0] == "'" else int(end) for end in match.groups() if end)
    size = 0
    while size < match.end():
        size += len(found[place].text)
        place += 1
    return (low, high), place
