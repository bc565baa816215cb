"""This file holds templates: functions that are problems under many names, with many arguments, for many types.

A template's directives name lists, or write them out: ``types`` for the placeholder `T`, ``arguments`` for the names of
its arguments, ``names`` for its own. What stands behind a bar is held out, see `nanochat.problems.splits`. The first
type, arguments and name are not special, and each template is a family.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from nanochat.errors import FormatError, InputError
from nanochat.problems.functions import Function, read_functions, read_lists
from nanochat.problems.own import directive_values, own_text
from nanochat.problems.problem import Problem, Split
from nanochat.problems.splits import is_family_held_out
from nanochat.problems.types import RustType, parse_type
from nanochat.problems.values import read_value
from nanochat.rust.lexer import tokens
from nanochat.rust.signature import Signature, read_signature

__all__ = ["read_templates", "template_problems"]

_FILE = "templates.rs"


@cache
def template_problems() -> tuple[Problem, ...]:
    """All instances of this project's templates that are in a split."""
    return tuple(read_templates(own_text(_FILE), _FILE))


def read_templates(text: str, name: str) -> Iterator[Problem]:
    """Yield the instances of the templates in a file, in the file's order.

    Raises
    ------
    FormatError
        If a directive cannot be understood.
    """
    lists = read_lists(text)
    for function in read_functions(text, name):
        yield from _Template(function, lists).instances()


@dataclass(frozen=True)
class _Choice:
    """Words that may stand for something, those that are held out last."""

    known: tuple[tuple[str, ...], ...]
    other: tuple[tuple[str, ...], ...] = ()


class _Template:
    def __init__(self, function: Function, lists: Mapping[str, str]) -> None:
        self.function = function
        self.signature = read_signature(function.prompt)
        self.types = self._choice(lists, "types", "")
        self.arguments = self._choice(lists, "arguments", "()")
        self.names = self._choice(lists, "names", function.name)
        self.prompt = self._pieces(function.prompt)
        self.body = self._pieces(function.body)
        self.family = function.directives.get("family", function.name)

    def instances(self) -> Iterator[Problem]:
        known = itertools.product(self.types.known, self.arguments.known, self.names.known)
        other_types = itertools.product(
            self.types.other or self.types.known,
            self.arguments.other or self.arguments.known,
            self.names.known,
        )
        other_names = itertools.product(self.types.known, self.arguments.known, self.names.other)
        splits: list[tuple[Split, Iterator[tuple[tuple[str, ...], ...]]]] = [
            ("train", known),
            ("other-types", other_types if self.types.other or self.arguments.other else iter(())),
            ("other-names", other_names),
        ]
        is_held_out = is_family_held_out(self.family)
        for split, choices in splits:
            for (of,), arguments, (name,) in choices:
                yield self.instance("held-out" if is_held_out else split, of, arguments, name)

    def instance(self, split: Split, of: str, arguments: Sequence[str], name: str) -> Problem:
        parameters = self.signature.parameters
        if len(arguments) != len(parameters):
            raise FormatError(
                f"{self.function.place}: {len(parameters)} arguments have {len(arguments)} names: "
                f"name each, as in (a, b)"
            )
        words = {"T": of, self.function.name: name}
        for parameter, argument in zip(parameters, arguments, strict=True):
            words[parameter.name] = "_" * parameter.name.startswith("_") + argument
        prompt = self.function.imports + _filled(self.prompt, words)
        signature = read_signature(prompt)
        inputs, edges, equivalent = directive_values(self.function, self.signature)
        return Problem(
            id=f"templates/{self.function.name}/{name}({', '.join(arguments)}){of and f'/{of}'}",
            family=self.family,
            level=self.function.level(0),
            split=split,
            prompt=prompt,
            entry=name,
            returns=signature.returns,
            reference=_filled(self.body, words),
            inputs=inputs,
            edges=tuple(edge for edge in edges if _holds(signature, edge)),
            equivalent=tuple(_filled(self._pieces(text), words) for text in equivalent),
        )

    def _choice(self, lists: Mapping[str, str], directive: str, default: str) -> _Choice:
        text = self.function.directives.get(directive, default)
        known, _, other = lists.get(text, text).partition("|")
        return _Choice(_words(known) or (("",),), _words(other))

    def _pieces(self, text: str) -> list[tuple[str, bool]]:
        """The text in pieces, and whether each is a word that an instance replaces."""
        parameters = {parameter.name for parameter in self.signature.parameters}
        wanted = {"T", self.function.name, *parameters}
        pieces = []
        end = 0
        before = ""
        for token in tokens(text):
            if token.kind == "name" and token.text in wanted and before not in (".", "::"):
                pieces += [(text[end : token.start], False), (token.text, True)]
                end = token.start + len(token.text)
            before = token.text
        return [*pieces, (text[end:], False)]


def _filled(pieces: Sequence[tuple[str, bool]], words: Mapping[str, str]) -> str:
    return "".join(words[text] if is_word else text for text, is_word in pieces)


def _words(text: str) -> tuple[tuple[str, ...], ...]:
    """The words of a list, or the groups of words in parentheses; a word is a group of one.

    >>> _words("(a, b) x ()")
    (('a', 'b'), ('x',), ())
    """
    return tuple(tuple(re.findall(r"\w+", group)) for group in re.findall(r"\([^)]*\)|\w+", text))


def _holds(signature: Signature, edge: str) -> bool:
    """Whether the argument types of an instance hold an edge, as unsigned ones hold no -1."""
    types = tuple(parse_type(parameter.type) for parameter in signature.parameters)
    try:
        read_value(edge, types[0] if len(types) == 1 else RustType("()", types))
    except InputError:
        return False
    return True
