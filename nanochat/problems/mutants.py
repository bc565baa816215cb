"""This file holds mutants: a right body with one small change, which a problem's inputs must show to be wrong.

Bodies are changed token by token. They are expected in rustfmt's layout, in which an operator of two operands has
spaces around it, and a generic argument's bracket has none. Not every mutant compiles; one that does not is wrong.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nanochat.rust.lexer import Token, code_tokens

__all__ = ["Mutant", "is_equivalent", "mutants"]

_OPERATORS = {
    "+": ("-",),
    "-": ("+",),
    "*": ("+", "/"),
    "/": ("*",),
    "%": ("/",),
    "&&": ("||",),
    "||": ("&&",),
    "==": ("!=",),
    "!=": ("==",),
    "<": ("<=", ">"),
    "<=": ("<", ">="),
    ">": (">=", "<"),
    ">=": (">", "<="),
    "<<": (">>",),
    ">>": ("<<",),
    "&": ("|",),
    "|": ("&",),
    "^": ("&",),
    "+=": ("-=",),
    "-=": ("+=",),
    "*=": ("+=",),
    "/=": ("*=",),
    "%=": ("/=",),
}
_RANGES = {"..": "..=", "..=": ".."}
_OPPOSITES = (
    ("all", "any"),
    ("ends_with", "starts_with"),
    ("first", "last"),
    ("is_none", "is_some"),
    ("max", "min"),
    ("max_by_key", "min_by_key"),
    ("position", "rposition"),
    ("skip_while", "take_while"),
    ("to_ascii_lowercase", "to_ascii_uppercase"),
    ("to_lowercase", "to_uppercase"),
    ("true", "false"),
)
_NAMES = {one: other for pair in _OPPOSITES for one, other in (pair, pair[::-1])}
_DROPPED_CALLS = ("abs", "rev", "trim")
_DROPPED_STATEMENTS = ("dedup", "reverse", "sort", "sort_unstable")


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A changed body, and where in it what stands instead of what."""

    body: str
    place: int
    before: str
    after: str


def mutants(body: str) -> Iterator[Mutant]:
    """Yield all mutants of a body.

    >>> [mutant.body for mutant in mutants(" a < 1 }")]
    [' a <= 1 }', ' a > 1 }', ' a < 2 }', ' a < 0 }']
    """
    seen = {body}
    words = _words(body)
    for index, word in enumerate(words):
        for count, after in _changes(body, words, index):
            last = words[index + count - 1]
            end = last.start + len(last.text)
            changed = body[: word.start] + after + body[end:]
            if changed not in seen:
                seen.add(changed)
                yield Mutant(
                    body=changed, place=word.start, before=body[word.start : end], after=after
                )


def is_equivalent(mutant: Mutant, pieces: Sequence[str]) -> bool:
    """Whether a mutant is said to be right: one of the pieces of code stands in it, and the change in that.

    >>> [is_equivalent(mutant, ["a > 1"]) for mutant in mutants(" a < 1 }")]
    [False, True, False, False]
    """
    words = _words(mutant.body)
    start, end = mutant.place, mutant.place + len(mutant.after)
    for piece in pieces:
        wanted = [word.text for word in _words(piece)]
        for index in range(len(words) - len(wanted) + 1):
            found = words[index : index + len(wanted)]
            if [word.text for word in found] == wanted:
                last = found[-1]
                if found[0].start <= start and end <= last.start + len(last.text):
                    return True
    return False


def _words(text: str) -> list[Token]:
    """The tokens of a text but for comments, those of an operator as one."""
    words: list[Token] = []
    for token in code_tokens(text):
        last = words[-1] if words else token
        together = last.text + token.text
        is_joined = last.start + len(last.text) == token.start and token.kind == "punctuation"
        if is_joined and (together in _OPERATORS or together in ("..", "..=", "=>")):
            words[-1] = Token("punctuation", together, last.start)
        else:
            words.append(token)
    return words


def _changes(body: str, words: Sequence[Token], index: int) -> Iterator[tuple[int, str]]:
    """How many words, from one on, become what."""
    word = words[index]
    text = word.text
    following = [other.text for other in words[index + 1 : index + 6]]
    end = word.start + len(text)
    spaced = body[word.start - 1 : word.start].isspace() and body[end : end + 1].isspace()
    if text in _OPERATORS and spaced:
        yield from ((1, other) for other in _OPERATORS[text])
    elif text in _RANGES:
        yield 1, _RANGES[text]
    elif text == "-" or (text == "!" and words[index - 1].kind != "name"):
        yield 1, ""
    elif text == "." and following[1:3] == ["(", ")"] and following[0] in _DROPPED_CALLS:
        yield 4, ""
    elif text.isidentifier() and following[0:1] == ["."] and following[2:] == ["(", ")", ";"]:
        if following[1] in _DROPPED_STATEMENTS:
            yield 6, ""
    elif text in _NAMES:
        yield 1, _NAMES[text]
    elif word.kind == "number" and (match := re.fullmatch(r"(0x[0-9a-f]+|\d+)((?:\.\d+)?)", text)):
        number = int(match[1], 0)
        yield 1, f"{number + 1}{match[2]}"
        if number:
            yield 1, f"{number - 1}{match[2]}"
