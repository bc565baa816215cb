"""This file holds what steps take, as they are measured, and how many guesses pay by that.

That is for the machine to say: four tokens take 1.4 times as long as one where products are fast beside the reading of
weights, and 3 times where they are not.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

from nanochat.rows import MOST_TOGETHER

__all__ = ["Chooser"]

# Tokens that products take at a time; what one takes beside others, and what the first of the next few takes more, over
# what a step of one takes.
_ROWS, _BESIDE, _ANEW = 4, 0.2, 0.5
# Steps that the first one of a kind takes as long as, if nothing is known.
_ONCE = 20
# How many times as fast a step with guesses must be as one without.
_WORTH = 1.03
# A guess as improbable is not worth thinking of.
_HOPELESS = 0.05
# The first steps of a kind, which take longer: one is noted, and the next is made a program.
_BEGIN = 2
# Such a step takes so many times as long as others, if what the first one costs is not to be mistaken.
_LONG = 5
# For how many steps it is remembered what another kind of step takes.
_REMEMBERED = 128
# How many times as long the next step may take as the last.
_GROWTH = 1.02


class Costs:
    """What steps of a runner take, by their tokens, as far as it was measured.

    Those of a kind take equally long: products take `_ROWS` tokens at a time.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._last: dict[int, int] = {}
        self._steps = 0
        # The least that the first step of a kind took more than the others, for it is noted then.
        self.once: float | None = None

    def note(self, kind: int, seconds: float, *, is_first: bool) -> None:
        """Count a step, perhaps one of the first of its kind in a session."""
        if is_first:
            known = self._seconds.get(kind)
            if known is not None and seconds > _LONG * known:
                self.once = min(max(seconds - known, 0.0), self.once or seconds)
            return
        self._steps += 1
        self._last[kind] = self._steps
        # What took longer than it must was disturbed; and what it must grows with the texts.
        known = self._seconds.get(kind)
        self._seconds[kind] = seconds if known is None else min(seconds, _GROWTH * known)
        if self._steps % _REMEMBERED == 0:
            self._forget()

    def _forget(self) -> None:
        """Forget steps of a kind that has not been tried for long: they may have been disturbed."""
        for kind, last in [*self._last.items()]:
            if last < self._steps - _REMEMBERED:
                self._last.pop(kind, None)
                self._seconds.pop(kind, None)

    def of(self, kind: int) -> float | None:
        """About the seconds of a step, or None where nothing at all is known of fewer tokens."""
        # Several threads may use a runner, each with a session of its own.
        seconds = {**self._seconds}
        known = max((number for number in seconds if number <= kind), default=0)
        if known in (0, kind):
            return seconds.get(kind)
        # A few tokens beside others take little, and those for which products begin anew take most.
        more = _BESIDE * (kind - known) + _ANEW * (-(-kind // _ROWS) - -(-known // _ROWS))
        return seconds[known] * (1 + more / max(1, known / _ROWS))


# Sessions of one runner share what they have learned.
_COSTS: WeakKeyDictionary[object, Costs] = WeakKeyDictionary()


class Chooser:
    """How many guesses pay, in the steps of one session.

    Examples
    --------
    >>> class Runner: ...
    >>> chooser = Chooser(Runner())
    >>> for tokens, seconds in [(1, 0.010), (2, 0.013), (4, 0.020)] * 3:
    ...     chooser.note(tokens, seconds)
    >>> likely, unlikely = (0.9, 0.81, 0.73), (0.2, 0.04, 0.0)
    >>> chooser.choose([1], [likely]), chooser.choose([1], [unlikely])
    ([3], [0])
    """

    def __init__(self, runner: object) -> None:
        self._costs = _COSTS.setdefault(runner, Costs())
        # How many steps of a kind there were.
        self._kinds: Counter[int] = Counter()
        # Seconds that would have been saved by kinds that there were not.
        self._missed: dict[int, float] = defaultdict(float)

    def note(self, tokens: int, seconds: float) -> None:
        """Learn from a step of so many tokens."""
        kind = _kind(tokens)
        self._kinds[kind] += 1
        self._costs.note(kind, seconds, is_first=self._kinds[kind] <= _BEGIN)

    def choose(
        self, unread: Sequence[int], chances: Sequence[Sequence[float]], *, replayed: bool = False
    ) -> list[int]:
        """How many of its guesses each text should be given.

        Parameters
        ----------
        unread : sequence of int
            Tokens that each text must read.
        chances : sequence of sequences of float
            Of the guesses of each text, see `Guess`.
        replayed : bool
            Whether a text reads the guesses that stand again, if one does not.
        """
        base, texts = sum(unread), len(unread)
        alone = self._costs.of(_kind(base))
        if alone is None or _kind(base) not in self._kinds:
            return [0] * texts
        # Of kinds that there were, and of all.
        best = usual = _Choice([0] * texts, float(texts), alone / _WORTH, _kind(base))
        # Of one text they become less probable: the best ones are its first.
        ranked = sorted(
            ((chance, text) for text, row in enumerate(chances) for chance in row), reverse=True
        )
        counts, expected = [0] * texts, float(texts)
        for number, (chance, text) in enumerate(ranked[: max(0, MOST_TOGETHER - base)], start=1):
            if chance < _HOPELESS:
                break
            counts[text] += 1
            expected += chance
            kind = _kind(base + number)
            seconds = self._costs.of(kind)
            if seconds is None:
                break
            if replayed:
                seconds += (seconds - alone) / number * _replayed(counts, chances)
            if expected / seconds > best.rate:
                best = _Choice([*counts], expected, seconds, kind)
            if expected / seconds > usual.rate and kind in self._kinds:
                usual = _Choice([*counts], expected, seconds, kind)
        if best.kind not in self._kinds:
            # The first step of a kind is worth while once it would have paid.
            self._missed[best.kind] += best.expected / usual.rate - best.seconds
            if self._missed[best.kind] < (self._costs.once or _ONCE * alone):
                return usual.counts
        return best.counts


class _Choice(NamedTuple):
    """Guesses of each text, the tokens that are expected of a step with them, what that takes, and its kind."""

    counts: list[int]
    expected: float
    seconds: float
    kind: int

    @property
    def rate(self) -> float:
        return self.expected / self.seconds


def _kind(tokens: int) -> int:
    return tokens if tokens <= _ROWS else -(-tokens // _ROWS) * _ROWS


def _replayed(counts: Sequence[int], chances: Sequence[Sequence[float]]) -> float:
    """How many tokens are probably read twice."""
    return sum(
        sum(row[:count]) - count * row[count - 1]
        for count, row in zip(counts, chances, strict=True)
        if count
    )
