r"""This file holds where a completion ends: behind the brace that closes the function that its prompt opened.

A stop string such as ``"\n}"`` misses functions that close within a line, and stops within strings and comments.
"""

import re
from collections.abc import Iterator

from nanochat.errors import InputError
from nanochat.rust.lexer import (
    BEYOND_ASCII,
    CHAR_BODY,
    NAME_START,
    STRING_BODY,
    WORD,
    start_of_code,
)

__all__ = ["FunctionEnd", "end_of_function"]

# For what a text is within, at any place, how that goes on. The group that matches last names what the text is within
# behind it, or is a case of `_Braces.feed`. What the next piece may turn into one thing or another is held back.
_WITHIN = {
    name: re.compile(expression, re.VERBOSE | re.DOTALL)
    for name, expression in {
        "code": rf"""
            (?: [^0-9A-Za-z_"'/{{}}{BEYOND_ASCII}] | /(?![/*]|\Z)
              | (?! b?+' | [bc]?+r?+" | [bc]?+r\# | (?: [bc]?+r | [bc] )\Z ) {WORD}++ )*+
            (?: (?P<brace> [{{}}] )
              | (?P<held> (?: / | [bc]?+r | [bc] | r\# | 'r\# | b?+'[^\\]?+ )\Z )
              | (?P<string> [bc]?+" )
              | (?P<hashes> [bc]?+r(?=") | [bc]r(?=\#) | r(?=\#(?!{NAME_START})) )
              | (?P<line> // )
              | (?P<block> /\* )
              | (?P<word> (?<={WORD})\Z | b?+'[^\\]' | '?+r\#(?={NAME_START}) )
              | (?P<lifetime> '(?={WORD}) )
              | (?P<char> b?+' )
              | \Z )""",
        "word": rf"{WORD}*+ (?: \Z | (?P<code>) )",
        "lifetime": rf"{WORD}*+ (?: \Z | (?P<code> '?+ ) )",
        "char": rf"{CHAR_BODY} (?: (?P<held> [\\\n]\Z ) | \Z | (?P<word> ' ) | (?P<code>) )",
        "string": rf'{STRING_BODY} (?: (?P<held> \\\Z ) | \Z | (?P<word> " ) )',
        "hashes": r'(?P<needed> \# ) | (?P<raw> " ) | (?P<code> . )',
        "raw": r'[^"]*+ (?: (?P<quote> " ) | \Z )',
        "end": r"(?P<found> \# ) | (?P<raw>)",
        "line": r"[^\n]*+ (?: \Z | (?P<code>) )",
        "block": r"""
            (?: [^*/] | \*(?!/|\Z) | /(?!\*|\Z) )*+
            (?: (?P<held> [*/]\Z ) | \Z | (?P<opened> /\* ) | (?P<closed> \*/ ) )""",
    }.items()
}


def end_of_function(prompt: str, completion: str) -> int | None:
    r"""Where the function that a prompt opens is closed, if it is: the place behind that brace, in characters.

    Parameters
    ----------
    prompt : str
        Rust source that ends in a function's body: its last brace without a partner is the body's. It may end within
        a token.
    completion : str
        What follows, as far as it was written.

    Raises
    ------
    InputError
        If the prompt leaves no brace open.

    Examples
    --------
    >>> end_of_function("fn f() -> char {", " '}' }\n\nfn g() {}")
    6
    """
    return FunctionEnd(prompt).feed(completion)


class FunctionEnd:
    """A watch for the end of a function, while its text is written piece by piece.

    The time is linear in the text, however small the pieces.

    Parameters
    ----------
    prompt : str
        See `end_of_function`.

    Attributes
    ----------
    end : int or None
        What `end_of_function` returns for the pieces so far.

    Examples
    --------
    >>> watch = FunctionEnd("fn f() -> i32 {")
    >>> [watch.feed(piece) for piece in (" if x ", "{ 1 } el", "se { 2 } }", " }")]
    [None, None, 24, 24]
    """

    def __init__(self, prompt: str) -> None:
        start = start_of_code(prompt)
        self._braces = _Braces(-len(prompt) + start)
        depth = 0
        for brace, _ in self._braces.feed(prompt[start:]):
            depth = max(depth + brace, 0)
        if not depth:
            raise InputError(f"{prompt[-80:]!r} has no open brace: pass source that ends in a body")
        self._depth = 1
        self.end: int | None = None

    def feed(self, piece: str) -> int | None:
        """Take the next piece of the text, which may be cut anywhere, and return the end, if it was there or before."""
        if self.end is not None:
            return self.end
        for brace, place in self._braces.feed(piece):
            self._depth += brace
            if not self._depth:
                self.end = place + 1
                break
        return self.end


class _Braces:
    """The braces of a text that comes in pieces, but for those in strings, characters and comments."""

    def __init__(self, place: int) -> None:
        self._place = place
        self._held = ""
        self._within = "code"
        self._num_blocks = 0
        self._num_hashes = 0
        self._num_missing = 0

    def feed(self, piece: str) -> Iterator[tuple[int, int]]:
        """Yield 1 for a brace that opens and -1 for one that closes, with its place."""
        text = self._held + piece
        start = self._place - len(self._held)
        self._place += len(piece)
        self._held = ""
        at = 0
        while at < len(text):
            found = _WITHIN[self._within].match(text, at)
            assert found, self._within
            at = found.end()
            match found.lastgroup:
                case None:
                    pass
                case "brace":
                    yield (1 if text[at - 1] == "{" else -1), start + at - 1
                case "held":
                    self._held = found["held"]
                case "needed":
                    self._num_hashes += 1
                case "quote" | "found" as group:
                    # Behind the quote there must be as many as before the other one.
                    self._num_missing = (
                        self._num_hashes if group == "quote" else self._num_missing - 1
                    )
                    self._within = "end" if self._num_missing else "word"
                case "opened":
                    self._num_blocks += 1
                case "closed":
                    self._num_blocks -= 1
                    self._within = "block" if self._num_blocks else "code"
                case group:
                    self._within = group
                    if group == "hashes":
                        self._num_hashes = 0
                    elif group == "block":
                        self._num_blocks = 1
