"""This file holds which bodies of Rust functions are trivial: they give back a constant, or one parameter as it came.

Such bodies compile, run, and pass problems that happen to want them. What share of a model's answers they are says how
much its other rates are worth.
"""

from collections.abc import Sequence

from nanochat.rust.lexer import BRACKETS, Token, code_tokens
from nanochat.rust.signature import read_signature

__all__ = ["is_trivial"]

_CONSTANTS = {"None", "false", "true"}
# Of a path without arguments.
_EMPTY = {"default", "new"}
# Methods without arguments.
_SAME = {"clone", "into", "to_owned", "to_string", "to_vec"}


def is_trivial(prompt: str, body: str) -> bool:
    """Whether a function's body is no more than one value that needs no thought.

    These are a literal (also a negative number, ``true``, ``false`` and ``()``); nothing at all, ``None``, ``[]``,
    ``vec![]``, and ``new()`` and ``default()`` of any type or of `Default`; and one parameter. It may be returned, in
    parentheses or blocks, borrowed or dereferenced, and changed only in its type: by ``as``, `String::from`, and the
    methods `clone`, `into`, `to_owned`, `to_string` and `to_vec`.

    Parameters
    ----------
    prompt : str
        What `nanochat.rust.signature.read_signature` reads.
    body : str
        What stands between the braces of the function.

    Raises
    ------
    InputError
        If the prompt does not end in a function's signature.

    Examples
    --------
    >>> prompt = "fn join(words: &[String], between: &str) -> String {"
    >>> is_trivial(prompt, " return between.to_string(); // for now"), is_trivial(prompt, " words.join(between) ")
    (True, False)
    """
    names = {parameter.name for parameter in read_signature(prompt).parameters}
    code = code_tokens(body)
    value = _bare(code)
    if len(value) == 1:
        token = value[0]
        return token.kind in ("char", "number", "string") or token.text in _CONSTANTS | names
    return not value or _is_negative(value) or _is_empty_list(value) or _is_new(value)


def _bare(code: Sequence[Token]) -> Sequence[Token]:
    """The value without what passes it on as it is; nothing if it is the empty tuple."""
    partners = _partners(code)
    texts = [token.text for token in code]
    start, end = 0, len(code)
    while start < end:
        last = end - 1
        if texts[start] == "return":
            start += 1
            end -= texts[last] == ";"
        elif texts[start] in ("(", "{") and partners.get(start) == last:
            start, end = start + 1, last
        elif (
            texts[start : start + 4] == ["String", "::", "from", "("]
            and partners.get(start + 3) == last
        ):
            start, end = start + 4, last
        elif texts[start] in ("&", "*", "mut"):
            start += 1
        elif (
            end - start > 4
            and texts[end - 4] == "."
            and texts[end - 3] in _SAME
            and texts[end - 2 : end] == ["(", ")"]
        ):
            end -= 4
        elif end - start > 2 and texts[end - 2] == "as" and code[last].kind == "name":
            end -= 2
        else:
            break
    return code[start:end]


def _partners(code: Sequence[Token]) -> dict[int, int]:
    """Where the bracket that opens at a place is closed, of those that are."""
    partners = {}
    opened: list[int] = []
    for index, token in enumerate(code):
        if token.text in BRACKETS:
            opened.append(index)
        elif token.text in BRACKETS.values() and opened:
            start = opened.pop()
            if BRACKETS[code[start].text] == token.text:
                partners[start] = index
    return partners


def _is_negative(value: Sequence[Token]) -> bool:
    return len(value) == 2 and value[0].text == "-" and value[1].kind == "number"


def _is_empty_list(value: Sequence[Token]) -> bool:
    texts = [token.text for token in value]
    if texts[:2] == ["vec", "!"]:
        texts = texts[2:]
        return len(texts) == 2 and BRACKETS.get(texts[0]) == texts[1]
    return texts == ["[", "]"]


def _is_new(value: Sequence[Token]) -> bool:
    """Whether a value is made by a path without arguments that ends in a word for that."""
    texts = [token.text for token in value]
    if len(texts) < 5 or texts[-4] != "::" or texts[-3] not in _EMPTY or texts[-2:] != ["(", ")"]:
        return False
    depth = 0
    for token in value[:-4]:
        depth += (token.text == "<") - (token.text == ">")
        if (
            depth < 0
            or (depth == 0 and token.kind != "name" and token.text not in ("::", ">"))
            or token.text in (".", ";", "{")
        ):
            return False
    return not depth
