"""This file holds Rust's types as they stand in signatures, and paths to them that nothing can hide.

A judged text may define an `i32`, a `Vec` or a module `std` of its own. Paths that start with ``::`` do not see them.
"""

import itertools
import re
from dataclasses import dataclass
from functools import lru_cache

from nanochat.errors import InputError
from nanochat.rust.lexer import code_tokens

__all__ = [
    "COLLECTIONS",
    "INTEGERS",
    "MAPS",
    "RustType",
    "absolute",
    "absolute_expression",
    "parse_type",
    "value_range",
]

_WIDTHS = {"8": 8, "16": 16, "32": 32, "64": 64, "128": 128, "size": 64}
INTEGERS = tuple(f"{sign}{width}" for sign in "iu" for width in _WIDTHS)
MAPS = ("HashMap", "BTreeMap")
COLLECTIONS = (*MAPS, "HashSet", "BTreeSet", "VecDeque")
_PATHS = {
    **{
        name: f"::core::primitive::{name}"
        for name in (*INTEGERS, "f32", "f64", "bool", "char", "str")
    },
    **{name: f"::std::collections::{name}" for name in COLLECTIONS},
    "Box": "::std::boxed::Box",
    "Option": "::core::option::Option",
    "Ordering": "::core::cmp::Ordering",
    "Result": "::core::result::Result",
    "String": "::std::string::String",
    "Vec": "::std::vec::Vec",
}
_VALUES = {
    "None": "::core::option::Option::None",
    "Some": "::core::option::Option::Some",
    "Err": "::core::result::Result::Err",
    "Ok": "::core::result::Result::Ok",
}
_MACROS = {name: f"::std::{name}" for name in ("format", "vec")}
_NAMES = {**_PATHS, **_VALUES, "core": "::core", "std": "::std"}


@dataclass(frozen=True)
class RustType:
    """A type: its name without a path, and the types in it.

    References are named ``&`` and ``&mut``, slices ``[]``, arrays ``[N]`` and tuples ``()``, also the empty one.
    """

    name: str
    arguments: tuple["RustType", ...] = ()
    length: str = ""

    def __str__(self) -> str:
        """The type's text, with absolute paths."""
        inner = [str(argument) for argument in self.arguments]
        match self.name:
            case "&":
                return f"&{inner[0]}"
            case "&mut":
                return f"&mut {inner[0]}"
            case "[]":
                return f"[{inner[0]}]"
            case "[N]":
                return f"[{inner[0]}; {self.length}]"
            case "()":
                return f"({inner[0]},)" if len(inner) == 1 else f"({', '.join(inner)})"
        return _PATHS[self.name] + (f"<{', '.join(inner)}>" if inner else "")


def absolute(text: str) -> str:
    """A type's text with absolute paths, which mean the same whatever a module defines.

    >>> absolute("Vec<(i64, &'static str)>")
    '::std::vec::Vec<(::core::primitive::i64, &::core::primitive::str)>'
    """
    return str(parse_type(text))


def absolute_expression(text: str) -> str:
    """An expression with absolute paths in place of the names that every module knows.

    >>> absolute_expression("vec![Some(1_i32), None]")
    '::std::vec![::core::option::Option::Some(1_i32), ::core::option::Option::None]'
    """
    pieces = []
    end = 0
    found = code_tokens(text)
    for before, token, after in zip(
        ["", *(token.text for token in found)],
        found,
        [*(token.text for token in found[1:]), ""],
        strict=False,
    ):
        known = _MACROS if after == "!" else _NAMES
        # Of a path and of a method the name says nothing by itself.
        if token.kind == "name" and before not in (".", "::"):
            pieces += [text[end : token.start], known.get(token.text, token.text)]
            end = token.start + len(token.text)
    return "".join(pieces) + text[end:]


def value_range(name: str) -> tuple[int, int]:
    """The smallest and the largest number of an integer type; those of pointers' size have 64 bits.

    >>> value_range("i8")
    (-128, 127)
    """
    bits = _WIDTHS[name[1:]]
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if name[0] == "i" else (0, 2**bits - 1)


@lru_cache(maxsize=4096)
def parse_type(text: str) -> RustType:
    """Read a type.

    Raises
    ------
    InputError
        If it is none of those that values can be written of and printed: closures, traits, own types.
    """
    found = [token.text for token in code_tokens(text)]
    reader = _Reader(text, found)
    whole = reader.type()
    if reader.place != len(found):
        raise reader.error()
    return whole


class _Reader:
    def __init__(self, text: str, found: list[str]) -> None:
        self.text = text
        self.found = found
        self.place = 0

    def error(self) -> InputError:
        return InputError(
            f"no values are known of the Rust type {self.text!r}: use numbers, bool, char, texts, lists, tuples, "
            f"Option, Result and collections"
        )

    def type(self) -> RustType:
        if self.takes("&"):
            if self.peek().startswith("'"):
                self.place += 1
            name = "&mut" if self.takes("mut") else "&"
            return RustType(name, (self.type(),))
        if self.takes("("):
            return RustType("()", self.list_until(")"))
        if self.takes("["):
            inner = self.type()
            if self.takes("]"):
                return RustType("[]", (inner,))
            self.expect(";")
            length = self.peek()
            self.place += 1
            self.expect("]")
            return RustType("[N]", (inner,), length)
        return self.path()

    def path(self) -> RustType:
        self.takes("::")
        name = self.name()
        while self.peek() == "::" and self.found[self.place + 1 : self.place + 2] != ["<"]:
            self.place += 1
            name = self.name()
        self.takes("::")
        if name not in _PATHS:
            raise self.error()
        return RustType(name, self.list_until(">") if self.takes("<") else ())

    def list_until(self, end: str) -> tuple[RustType, ...]:
        inner = []
        while not self.takes(end):
            inner.append(self.type())
            if self.peek() != end:
                self.expect(",")
        return tuple(inner)

    def name(self) -> str:
        word = self.peek()
        if not re.fullmatch(r"\w+", word):
            raise self.error()
        self.place += 1
        return word

    def peek(self) -> str:
        return next(itertools.islice(self.found, self.place, None), "")

    def takes(self, word: str) -> bool:
        if self.peek() != word:
            return False
        self.place += 1
        return True

    def expect(self, word: str) -> None:
        if not self.takes(word):
            raise self.error()
