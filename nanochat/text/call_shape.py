"""This file holds how calls of tools stand in a text: what is written around names and arguments.

`nanochat.text.call_probe` finds it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from os.path import commonprefix

from nanochat.text.held import overlap

__all__ = ["BLANK", "ID", "NAME", "SPECIAL", "CallShape", "ParameterShape", "spelled"]

# Characters that no text has: one stands before the name of a special token, the other for each of a call's number.
SPECIAL, ID = "\udcff", "\udcfe"
# White space, of which any may stand between the beginning of an answer and a call.
BLANK = " \t\r\n"
# Characters of the name of a function.
NAME = re.compile(r"[A-Za-z0-9_-]")


@dataclass(frozen=True, kw_only=True)
class ParameterShape:
    """What stands before the first name of a parameter, between a name and its value, and before the next name.

    `empty` stands behind the name of a function that is called with no arguments, in the place of all of them and of
    `CallShape.close`.
    """

    first: str
    value: str
    next: str
    empty: str


@dataclass(frozen=True, kw_only=True)
class CallShape:
    """What stands around the names and arguments of calls.

    The whole is ``opening name middle arguments close (between name middle arguments close)* end``.

    Parameters
    ----------
    mark : str
        The beginning of `opening`, by which calls are known anywhere in an answer; empty if they are known by all of
        `opening`, and only where the answer begins, but for `BLANK`.
    between : str or None
        None if a turn has one call at most.
    separators : tuple of str
        Between items and behind keys of arguments in JSON.
    parameters : ParameterShape or None
        Of arguments that are no JSON; then `middle` is empty.
    short_ids : bool
        Whether calls must have numbers of nine letters or digits.
    """

    mark: str
    opening: str
    middle: str
    close: str
    between: str | None
    end: str
    separators: tuple[str, str] = (", ", ": ")
    parameters: ParameterShape | None = None
    short_ids: bool = False

    @property
    def value_end(self) -> str:
        """What ends every argument that is no JSON, and cannot overlap itself."""
        if self.parameters is None:
            return ""
        # By characters, as is meant.
        end = commonprefix([self.parameters.next, self.close])  # noqa: RUF071
        while overlap(end, end):
            end = end[:-1]
        return end

    @property
    def texts(self) -> str:
        """All that it has, in one text, in which names of special tokens can be looked for."""
        own = self.parameters
        of_parameters = (own.first, own.value, own.next, own.empty) if own is not None else ()
        every = (self.opening, self.middle, self.close, self.between or "", self.end)
        return "\n".join((*every, *of_parameters))


def spelled(text: str, specials: Iterable[str]) -> str:
    """The text with `SPECIAL` before each name of a special token.

    >>> spelled("<a>b", ["<a>"]) == SPECIAL + "<a>b"
    True
    """
    every = "|".join(map(re.escape, sorted(specials, key=len, reverse=True)))
    return re.sub(every, lambda name: SPECIAL + name[0], text) if every else text
