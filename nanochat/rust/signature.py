"""This file holds the reading of a Rust function's signature: its name, its parameters, and what it returns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nanochat.errors import InputError
from nanochat.rust.lexer import BRACKETS, Token, code_tokens

__all__ = ["Parameter", "Signature", "read_signature"]

_CLOSERS = {**BRACKETS, "<": ">"}


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter: its name, or the pattern that takes it apart, without ``mut``, and its type as it is written."""

    name: str
    type: str


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What stands before a function's body.

    `generics` is what stands between the angle brackets behind the name, empty if there are none; `returns` is ``()``
    where nothing is said.
    """

    name: str
    generics: str
    parameters: tuple[Parameter, ...]
    returns: str


def read_signature(prompt: str) -> Signature:
    """Read the signature of the function that a prompt leaves open.

    Parameters
    ----------
    prompt : str
        Rust source that ends in the brace that opens the function's body. Comments and white space may follow.

    Raises
    ------
    InputError
        If no function begins at the prompt's end.

    Examples
    --------
    >>> signature = read_signature("fn longest<'a>(mut words: &[&'a str], least: usize) -> Option<&'a str> {")
    >>> signature.name, signature.returns
    ('longest', "Option<&'a str>")
    >>> [(parameter.name, parameter.type) for parameter in signature.parameters]
    [('words', "&[&'a str]"), ('least', 'usize')]
    """
    code = code_tokens(prompt)
    start = _last_function(code)
    if start is None:
        raise InputError(
            f"{prompt[-80:]!r} has no function: pass source that ends in a signature and {{"
        )
    generics, rest = _take_group(code[start + 1 :], "<")
    parameters, rest = _take_group(rest, "(")
    open_at = _find(rest, "{")
    if parameters is None or open_at != len(rest) - 1 or rest[0].text not in ("->", "where", "{"):
        raise InputError(
            f"{prompt[-80:]!r} does not end in a signature and {{: cut it behind the brace of the last function"
        )
    end = min(_find(rest, "where"), open_at)
    return Signature(
        name=code[start].text,
        generics=_text(generics or ()),
        parameters=tuple(_parameter(part) for part in _split(parameters)),
        returns=_text(rest[1:end]) or "()",
    )


def _last_function(code: Sequence[Token]) -> int | None:
    """Where the name of the function that starts last stands; ``fn(i32)`` is a type and has none."""
    for index in range(len(code) - 1, 0, -1):
        if code[index - 1].text == "fn" and code[index].kind == "name":
            return index
    return None


def _parameter(part: Sequence[Token]) -> Parameter:
    colon = _find(part, ":")
    pattern = part[1:colon] if part[0].text == "mut" else part[:colon]
    if colon < len(part):
        return Parameter(name=_text(pattern), type=_text(part[colon + 1 :]))
    # A method's receiver, such as `&mut self`.
    return Parameter(name=pattern[-1].text, type=_text(pattern).replace("self", "Self"))


def _take_group(
    code: Sequence[Token], opener: str
) -> tuple[Sequence[Token] | None, Sequence[Token]]:
    """What is in the brackets that the code starts with, none if it starts otherwise, and what follows them."""
    if not code or code[0].text != opener:
        return None, code
    end = 1 + _find(code[1:], _CLOSERS[opener])
    return code[1:end], code[end + 1 :]


def _split(code: Sequence[Token]) -> Iterator[Sequence[Token]]:
    """Yield what is between the commas that are in no brackets; nothing need follow the last."""
    while code:
        comma = _find(code, ",")
        yield code[:comma]
        code = code[comma + 1 :]


def _find(code: Sequence[Token], text: str) -> int:
    """Where a text stands that is in no brackets; behind the code if nowhere."""
    closers: list[str] = []
    for index, token in enumerate(code):
        if not closers and token.text == text:
            return index
        if token.text in _CLOSERS:
            closers.append(_CLOSERS[token.text])
        # What looks like an angle bracket may be an operator: it closes nothing else, and others close it.
        elif token.text == ">" and closers[-1:] != [">"]:
            continue
        elif token.text in _CLOSERS.values() and token.text in closers:
            while closers.pop() != token.text:
                pass
    return len(code)


def _text(code: Sequence[Token]) -> str:
    """The code as it is written, but for comments, and with one space where there are some."""
    written, end = "", 0
    for token in code:
        written += " " * (token.start > end and written != "") + token.text
        end = token.start + len(token.text)
    return written
