"""This file holds the taking apart of assertions: of ``assert_eq!(f(1), 2);`` the call and what it must give.

Then a program makes the call and prints what it gets, another one prints what is expected, and whoever compares the two
is outside of both. Assertions that run inside a program pass as soon as that program leaves early.
"""

from collections.abc import Iterator, Sequence

from nanochat.errors import InputError
from nanochat.problems.types import absolute, absolute_expression, parse_type
from nanochat.rust.lexer import BRACKETS, Token, code_tokens

__all__ = ["split_assertions"]

# What makes a `String` of a text in quotes.
_OWNED = {"String", "into", "to_owned", "to_string"}


def split_assertions(
    text: str, function: str, *, entry: str, returns: str
) -> tuple[tuple[str, str], ...] | None:
    """The calls that statements make, each with an expression of what is expected; nothing if that is not all they do.

    Parameters
    ----------
    text : str
        Statements: ``assert_eq!`` of a call and a value, or of both in the other order, and ``assert!`` of a call, of
        its opposite, or of its equality with a value. Messages are passed over.
    function : str
        The name by which they call the function.
    entry : str
        The name by which the calls are to do so.
    returns : str
        The function's result type, which is that of the values.

    Examples
    --------
    >>> split_assertions("assert_eq!(f(vec![1]), 2); assert!(f(vec![]) == 0);", "f", entry="g", returns="u8")[1]
    ('g(::std::vec![])', '{ let value: ::core::primitive::u8 = 0; value }')
    >>> split_assertions("let x = 1; assert_eq!(f(x), 2);", "f", entry="f", returns="u8")
    """
    if not _is_printed_alike(returns):
        return None
    found = code_tokens(text)
    pairs = []
    while found:
        words = [token.text for token in found[:3]]
        end = _closing(found, 2) if words[1:] == ["!", "("] else 0
        sides = _sides(words[0], text, found[3:end])
        if end == len(found) or len(sides) != 2:
            return None
        call, value = sides if _is_call(sides[0], function) else sides[::-1]
        if not _is_call(call, function) or any(
            token.text == function for token in code_tokens(value)
        ):
            return None
        pairs.append(
            (entry + absolute_expression(call.removeprefix(function)), _typed(value, returns))
        )
        found = found[end + 1 :]
        if found and found[0].text == ";":
            found = found[1:]
    return tuple(pairs)


def _is_printed_alike(returns: str) -> bool:
    """Whether equal values of a type are always printed alike, by a program that knows no other types than Rust's."""
    try:
        absolute(returns)
    except InputError:
        return False
    return not any(token.text in ("HashMap", "HashSet") for token in code_tokens(returns))


def _sides(macro: str, text: str, inside: Sequence[Token]) -> list[str]:
    """The two things that an assertion wants to be equal; another number of things if it wants anything else."""
    parts = [*_split(text, inside, ",")]
    if macro == "assert_eq":
        return parts[:2]
    if macro != "assert" or not parts:
        return []
    sides = [*_split(parts[0], code_tokens(parts[0]), "==")]
    if len(sides) == 1:
        is_denied = sides[0].startswith("!")
        return [sides[0].removeprefix("!").strip(), "false" if is_denied else "true"]
    return sides


def _split(text: str, found: Sequence[Token], separator: str) -> Iterator[str]:
    """Yield what stands between separators that are in no brackets; those of a path's arguments count."""
    start = place = 0
    closers: list[str] = []
    while place < len(found):
        word = found[place].text
        if word in BRACKETS:
            closers.append(BRACKETS[word])
        elif word == "<" and (">" in closers or (place and found[place - 1].text == "::")):
            closers.append(">")
        elif closers and word == closers[-1]:
            closers.pop()
        elif not closers and text.startswith(separator, found[place].start):
            yield _text(text, found[start:place])
            # Of operators the lexer gives one character at a time.
            place += len(separator) - 1
            start = place + 1
        place += 1
    if start < len(found):
        yield _text(text, found[start:])


def _closing(found: Sequence[Token], place: int) -> int:
    """Where the bracket that is opened at a place is closed."""
    depth = 0
    for index in range(place, len(found)):
        if found[index].text in BRACKETS:
            depth += 1
        elif found[index].text in BRACKETS.values():
            depth -= 1
        if depth == 0:
            return index
    return len(found)


def _is_call(text: str, function: str) -> bool:
    """Whether this is a call of the function, and no more."""
    found = code_tokens(text)
    words = [token.text for token in found[:2]]
    return words == [function, "("] and _closing(found, 1) == len(found) - 1


def _text(text: str, found: Sequence[Token]) -> str:
    if not found:
        return ""
    first, last = found[0], found[-1]
    return text[first.start : last.start + len(last.text)]


def _typed(value: str, returns: str) -> str:
    """An expression of a value, with its type where it has the function's: an empty list says nothing of its own.

    What may be equal to a `Vec` is an array, too, and what may be equal to a `String` is a text in quotes; these are
    printed alike.
    """
    found = code_tokens(value)
    expression = absolute_expression(value)
    is_list = parse_type(returns).name == "Vec"
    if is_list and found[0].text == "&":
        found, expression = found[1:], expression.removeprefix("&").strip()
    if is_list and found[0].text == "[":
        expression = f"::std::vec!{expression}"
    words = {token.text for token in found}
    if any(token.kind == "string" for token in found) and not words & _OWNED:
        return expression
    return f"{{ let value: {absolute(returns)} = {expression}; value }}"
