"""This file holds the drawing of arguments: seeded, so that a problem and a seed always make the same calls."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from nanochat.problems.strategy import Strategy
from nanochat.problems.stream import Stream
from nanochat.problems.types import INTEGERS, MAPS, RustType
from nanochat.problems.values import Value

__all__ = ["draw_arguments"]

_FEW = 40
_SMALL = 10
_WORDS = ("ant", "bee", "crow", "deer", "eel", "fox", "hen", "kiwi", "level", "moth", "noon")
_PLAIN = "abcxyzABZ059 _-.,!?"
_BEYOND_ASCII = "éßÉ字ñ"


def draw_arguments(
    types: Sequence[RustType], strategies: Sequence[Strategy], stream: Stream
) -> Iterator[tuple[Value, ...]]:
    """Yield arguments without end, the simplest first: zeros and empty lists, then the ends of all ranges.

    Parameters
    ----------
    types, strategies : sequences
        Of each argument.
    stream : Stream
        What chooses. Arguments may repeat.
    """
    deck = _Deck(stream)
    for simple in itertools.chain(("zero", "low", "high"), itertools.repeat("")):
        call = _Call(deck)
        yield tuple(
            _simple(of, strategy, simple, call) if simple else call.value(of, strategy)
            for of, strategy in zip(types, strategies, strict=True)
        )


class _Deck:
    """Cards that are all dealt before one comes again: of sixteen texts some have spaces at their ends, for certain."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._cards: dict[str, list[int]] = {}

    def deal(self, kind: str, count: int) -> int:
        """One of `count` cards of a kind."""
        cards = self._cards.setdefault(kind, [])
        if not cards:
            cards += range(count)
        return cards.pop(self.stream.below(len(cards)))


def _simple(of: RustType, strategy: Strategy, wanted: str, call: "_Call") -> Value:
    """A number that is zero, or an end of its range, as is wanted; with zero go options and lists that are empty."""
    if of.name in ("&", "&mut"):
        return _simple(of.arguments[0], strategy, wanted, call)
    if of.name in INTEGERS:
        low, high = strategy.range_of(of.name)
        return {"zero": min(max(0, low), high), "low": low, "high": high}[wanted]
    if wanted == "zero" and (of.name == "Option" or strategy.length[0] == 0):
        if of.name in ("Option", "[]", "Vec", *MAPS):
            return ()
        if of.name in ("str", "String") and strategy.texts != "one of":
            return ""
    return call.value(of, strategy)


class _Call:
    """The drawing of one call's arguments, some of which repeat others or parts of them."""

    def __init__(self, deck: _Deck) -> None:
        self.deck = deck
        self.stream = deck.stream
        self.drawn: dict[str, list[Value]] = {}

    def value(self, of: RustType, strategy: Strategy) -> Value:
        match of.name:
            case "&" | "&mut":
                return self.value(of.arguments[0], strategy)
            case "bool":
                return self.stream.below(2) == 1
            case "Option":
                return () if self.stream.below(3) == 0 else (self.value(of.arguments[0], strategy),)
            case "()":
                return self.tuple_of(of.arguments, strategy)
            case name if name in INTEGERS or name in ("f32", "f64", "char", "str", "String"):
                return self.scalar(name, strategy)
        return self.items(of, strategy)

    def scalar(self, name: str, strategy: Strategy) -> Value:
        kind = "text" if name in ("str", "String") else name
        known = self.drawn.setdefault(kind, [])
        # Equal arguments, a word that is in a text: what hardly happens by chance is what functions are about.
        value = self.stream.one_of(known) if known and self.stream.below(4) == 0 else None
        if value is None or not self.may_be(value, name, strategy):
            value = self.fresh(name, strategy)
        known.append(value)
        if isinstance(value, str) and kind == "text" and value:
            start = self.stream.below(len(value)) if self.stream.below(2) else 0
            known.append(value[start : start + 1 + self.stream.below(3)])
            self.drawn.setdefault("char", []).append(self.stream.one_of(value))
        return value

    def may_be(self, value: Value, name: str, strategy: Strategy) -> bool:
        if isinstance(value, str):
            return strategy.texts == "any" and strategy.numbers is None
        assert not isinstance(value, tuple)
        low, high = strategy.range_of(name)
        return low <= value <= high

    def fresh(self, name: str, strategy: Strategy) -> Value:
        if name in INTEGERS:
            return self.number(*strategy.range_of(name))
        if name in ("f32", "f64"):
            # Sums, products and halves of quarters are exact in any order, and have one way to be printed.
            low, high = strategy.range_of(name)
            parts = 4 if self.stream.below(2) else 1
            return self.number(low * parts, high * parts) / parts
        if name == "char":
            return self.character(strategy)
        return self.text(strategy)

    def number(self, low: int, high: int) -> int:
        if high - low <= _FEW:
            return self.stream.between(low, high)
        kind = self.deck.deal("number", 8)
        if kind < 2:
            ends = (low, low + 1, -1, 0, 1, high - 1, high)
            return self.stream.one_of([end for end in ends if low <= end <= high])
        if kind < 5 and low <= _SMALL and high >= -_SMALL:
            return self.stream.between(max(low, -_SMALL), min(high, _SMALL))
        size = 1 << self.stream.between(4, (high - low).bit_length())
        if low < size and high > -size:
            low, high = max(low, -size), min(high, size)
        return self.stream.between(low, high)

    def character(self, strategy: Strategy) -> str:
        if strategy.texts == "one of":
            return self.filled(self.stream.one_of(strategy.pieces))
        if isinstance(strategy.numbers, tuple):
            return chr(self.stream.between(*strategy.numbers))
        return self.stream.one_of(_BEYOND_ASCII if self.deck.deal("character", 6) == 0 else _PLAIN)

    def text(self, strategy: Strategy) -> str:
        match strategy.texts:
            case "one of":
                return self.filled(self.stream.one_of(strategy.pieces))
            case "made of":
                count = self.stream.between(*strategy.length)
                return "".join(
                    self.filled(self.stream.one_of(strategy.pieces)) for _ in range(count)
                )
            case "words":
                return " ".join(self.stream.one_of(_WORDS) for _ in range(self.stream.below(4)))
        kind = self.deck.deal("text", 6)
        if kind == 0:
            return self.text(replace(strategy, texts="words"))
        if kind == 1:
            spaces = 1 + self.stream.below(3)
            return f"{' ' * (spaces & 1)}{self.stream.one_of(_WORDS)}{' ' * (spaces & 2)}"
        if kind == 2:
            return f"{self.stream.one_of(_WORDS).title()} {self.stream.one_of(_WORDS).upper()}"
        letters = "".join(self.stream.one_of(_PLAIN) for _ in range(self.stream.below(10)))
        return letters + self.stream.one_of(_BEYOND_ASCII) if kind == 3 else letters

    def filled(self, piece: str) -> str:
        """A piece with a number in place of each range in braces."""

        def number(found: re.Match[str]) -> str:
            return str(self.stream.between(int(found[1]), int(found[2])))

        return re.sub(r"\{(-?\d+)\.\.=(-?\d+)\}", number, piece)

    def tuple_of(self, types: Sequence[RustType], strategy: Strategy) -> Value:
        parts = [strategy, *itertools.repeat(strategy.second or strategy, len(types))]
        for _ in range(100):
            values = [self.value(of, part) for of, part in zip(types, parts, strict=False)]
            if not strategy.is_distinct or len({*values}) == len(values):
                break
        # Numbers only, of one type, can be in order.
        return tuple(sorted(values) if strategy.is_sorted else values)

    def items(self, of: RustType, strategy: Strategy) -> Value:
        count = int(of.length) if of.name == "[N]" else self.stream.between(*strategy.length)
        if of.name in MAPS:
            second = strategy.second or strategy
            pairs = {
                self.value(of.arguments[0], strategy): self.value(of.arguments[1], second)
                for _ in range(count)
            }
            return tuple(pairs.items())
        inner = strategy
        if strategy.is_rectangular and of.arguments[0].name in ("[]", "Vec", "&"):
            width = self.stream.between(1, max(strategy.length[1], 1))
            inner = replace(strategy, length=(width, width), is_rectangular=False)
        values = [self.value(of.arguments[0], inner) for _ in range(count)]
        is_flat = of.arguments[0].name in (*INTEGERS, "f64")
        if strategy.is_distinct and is_flat:
            values = [*dict.fromkeys(values)]
        if strategy.is_sorted and is_flat:
            values.sort()
        return tuple(values)
