"""This file holds the values of arguments: read from text, and written as Rust whose meaning nothing can change.

A value is a Python one: int, float, bool, str (of characters and texts), and tuples for lists, Rust's tuples, the pairs
of maps, and options: an empty one, or one that holds the value.
"""

import ast
import re
from typing import TypeAlias

from nanochat.errors import InputError
from nanochat.problems.types import INTEGERS, MAPS, RustType, value_range
from nanochat.rust.lexer import code_tokens

__all__ = ["Value", "read_value", "text_of", "written"]

Value: TypeAlias = "bool | int | float | str | tuple[Value, ...]"

_SIGNS = {"&": "&", "&mut": "&mut "}


def written(value: Value, of: RustType) -> str:
    """Rust for a value of a type, in which each number says its type and each path is absolute.

    >>> pairs = RustType("Vec", (RustType("()", (RustType("u8"), RustType("String"))),))
    >>> written(((1, "a"),), pairs)
    '::std::vec![(1_u8, ::std::string::String::from("a"))]'
    """
    if isinstance(value, tuple):
        return _written_parts(value, of)
    if of.name in ("&", "&mut"):
        inner = of.arguments[0]
        # A text in quotes is a reference already.
        return (
            written(value, inner)
            if inner.name == "str"
            else _SIGNS[of.name] + written(value, inner)
        )
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value}_{of.name}"
    quoted = "".join(
        c if " " <= c <= "~" and c not in "'\"\\" else f"\\u{{{ord(c):x}}}" for c in value
    )
    if of.name == "char":
        return f"'{quoted}'"
    return f'::std::string::String::from("{quoted}")' if of.name == "String" else f'"{quoted}"'


def _written_parts(parts: tuple[Value, ...], of: RustType) -> str:
    if of.name in ("&", "&mut"):
        return _SIGNS[of.name] + _written_parts(parts, of.arguments[0])
    if of.name == "Option":
        inside = f"Some({written(parts[0], of.arguments[0])})" if parts else "None"
        return f"::core::option::Option::{inside}"
    types = of.arguments if of.name == "()" else (_item_type(of),) * len(parts)
    texts = [written(part, inner) for part, inner in zip(parts, types, strict=True)]
    if of.name == "()":
        return f"({', '.join(texts)}{',' * (len(texts) == 1)})"
    items = f"[{', '.join(texts)}]"
    if of.name in ("[]", "[N]"):
        return items
    path = str(of).partition("<")[0]
    return f"::std::vec!{items}" if of.name == "Vec" else f"{path}::from({items})"


def _item_type(of: RustType) -> RustType:
    return RustType("()", of.arguments) if of.name in MAPS else of.arguments[0]


def read_value(text: str, of: RustType) -> Value:
    """Read a value of a type: as Rust writes it, but lists of each kind, and the pairs of maps, stand in brackets.

    Raises
    ------
    InputError
        If the text is none of that type.

    Examples
    --------
    >>> read_value("[Some('a'), None]", RustType("Vec", (RustType("Option", (RustType("char"),)),)))
    (('a',), ())
    """
    reader = _Reader(text)
    value = reader.value(of)
    reader.expect("", of)
    return value


def text_of(literal: str) -> str:
    r"""What a literal of a text or of a character stands for.

    >>> text_of(r"'\u{e9}'"), text_of(r'"\"a\""')
    ('é', '"a"')
    """
    # Python's escapes are the same but for these.
    return str(ast.literal_eval(re.sub(r"\\u\{(\w+)\}", lambda code: f"\\U{code[1]:0>8}", literal)))


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.rest = [token.text for token in code_tokens(text)]

    def error(self, of: RustType) -> InputError:
        return InputError(
            f"{self.text!r} holds no {str(of).replace('::core::primitive::', '')} where one is expected"
        )

    def value(self, of: RustType) -> Value:
        match of.name:
            case "&" | "&mut":
                return self.value(of.arguments[0])
            case "Option":
                if self.next() == "None":
                    return ()
                self.expect("(", of)
                inner = self.value(of.arguments[0])
                self.expect(")", of)
                return (inner,)
            case "()":
                self.expect("(", of)
                return tuple(self.separated(of, [*of.arguments], ")"))
            case "bool":
                word = self.next()
                if word not in ("true", "false"):
                    raise self.error(of)
                return word == "true"
            case "char" | "str" | "String":
                return self.quoted(of)
            case "f64" | "f32":
                return float(self.number(of))
            case name if name in INTEGERS:
                number = int(self.number(of))
                low, high = value_range(name)
                if not low <= number <= high:
                    raise self.error(of)
                return number
        self.expect("[", of)
        return tuple(
            self.separated(of, [_item_type(of)] * self.rest.count(",") + [_item_type(of)], "]")
        )

    def separated(self, of: RustType, types: list[RustType], end: str) -> list[Value]:
        values: list[Value] = []
        while self.rest[:1] != [end] and types:
            values.append(self.value(types.pop(0)))
            if self.rest[:1] != [end]:
                self.expect(",", of)
        self.expect(end, of)
        return values

    def number(self, of: RustType) -> str:
        sign = "-" if self.rest[:1] == ["-"] else ""
        if sign:
            self.next()
        digits = self.next()
        if not re.fullmatch(r"\d+(\.\d+)?", digits):
            raise self.error(of)
        return sign + digits

    def quoted(self, of: RustType) -> str:
        literal = self.next()
        quote = "'" if of.name == "char" else '"'
        if len(literal) < 2 or not literal.startswith(quote):
            raise self.error(of)
        return text_of(literal)

    def next(self) -> str:
        return self.rest.pop(0) if self.rest else ""

    def expect(self, word: str, of: RustType) -> None:
        if self.next() != word:
            raise self.error(of)
