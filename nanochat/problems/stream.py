"""This file holds a stream of random choices that is the same on every machine and in every version of Python."""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["Stream"]

_Item = TypeVar("_Item")


class Stream:
    """Random choices that depend on the words of the stream's name only.

    Of Python's generator only the bits are used: how it makes numbers of them may change between versions.
    """

    def __init__(self, *name: str | int) -> None:
        words = "\0".join(str(word) for word in name)
        self._bits = random.Random(int.from_bytes(hashlib.sha256(words.encode()).digest()))

    def below(self, count: int) -> int:
        """A whole number from 0 to ``count - 1``, each as likely as another.

        >>> stream = Stream("a name", 0)
        >>> [stream.below(10) for _ in range(8)]
        [7, 4, 0, 1, 6, 1, 9, 6]
        """
        bits = (count - 1).bit_length()
        while (number := self._bits.getrandbits(bits) if bits else 0) >= count:
            pass
        return number

    def between(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + self.below(high - low + 1)

    def one_of(self, items: Sequence[_Item]) -> _Item:
        """One of some items, each as likely as another."""
        return items[self.below(len(items))]
