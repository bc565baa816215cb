"""This file holds a problem: a Rust function to complete, and the calls that show whether it is right."""

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from nanochat.problems.inputs import draw_arguments
from nanochat.problems.strategy import parse_strategy
from nanochat.problems.stream import Stream
from nanochat.problems.types import RustType, parse_type
from nanochat.problems.values import Value, read_value, written
from nanochat.rust.signature import read_signature

__all__ = ["Problem", "Split"]

Split = Literal["train", "held-out", "other-types", "other-names"]

_NUM_CALLS = 16
_NUM_DRAWN = 6
# Functions of few arguments have fewer calls than are wanted.
_NUM_TRIES = 20


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A function to complete, what it is asked, and what is known of it, as texts, numbers and tuples of them.

    Parameters
    ----------
    id : str
        Its name, which no other problem of its set has.
    family : str
        What problems of one meaning have in common. No family is both trained on and held out.
    level : int
        How hard it is, 0 to 4; -1 if nobody said.
    split : {"train", "held-out", "other-types", "other-names"}
        What it may serve for, see `nanochat.problems.splits`.
    prompt : str
        Imports, the comment and the signature, up to the brace that opens the body, and no further.
    entry : str
        The function's name.
    returns : str
        The type of its result, as the signature says it.
    reference : str
        A right body, with its closing brace; empty if none is known.
    edition : str
        Rust's, by which it is compiled.
    inputs : tuple of str
        A strategy for each argument, see `nanochat.problems.strategy`.
    edges : tuple of str
        Arguments that are always tried: a value, or of several arguments the values in parentheses.
    equivalent : tuple of str
        Pieces of changed references that are right, too, see `nanochat.problems.mutants`.
    asserted : tuple of pairs of str
        Calls with expressions of what is expected, where those are given.
    tests : str
        Tests that do not come apart: source that follows a completion, and fails when it runs.
    """

    id: str
    family: str
    level: int
    split: Split
    prompt: str
    entry: str
    returns: str
    reference: str = ""
    edition: str = "2021"
    inputs: tuple[str, ...] = ()
    edges: tuple[str, ...] = ()
    equivalent: tuple[str, ...] = ()
    asserted: tuple[tuple[str, str], ...] = ()
    tests: str = ""

    def calls(self, seed: int) -> tuple[str, ...]:
        """Calls of the function, as Rust whose meaning nothing in a module can change; none if there are tests.

        Parameters
        ----------
        seed : int
            Which arguments are drawn. Calls that were given with the problem are always the same.
        """
        if self.asserted or self.tests:
            return tuple(call for call, _ in self.asserted)
        types = self._types
        strategies = [parse_strategy(text) for text in self.inputs or [""] * len(types)]
        drawn = draw_arguments(types, strategies, Stream(self.id, seed))
        edges = [_edge(text, types) for text in self.edges]
        wanted = max(_NUM_CALLS, len(edges) + _NUM_DRAWN) if types else 1
        calls: dict[str, None] = {}
        for arguments in itertools.chain(edges, itertools.islice(drawn, wanted * _NUM_TRIES)):
            texts = [written(value, of) for value, of in zip(arguments, types, strict=True)]
            calls[f"{self.entry}({', '.join(texts)})"] = None
            if len(calls) == wanted:
                break
        return tuple(calls)

    def expected(self, seed: int) -> tuple[str, ...] | None:
        """Expressions whose values are right for the calls; nothing if the reference says what is right."""
        # Calls that were given are the same for every seed.
        del seed
        return tuple(value for _, value in self.asserted) if self.asserted else None

    @cached_property
    def _types(self) -> tuple[RustType, ...]:
        parameters = read_signature(self.prompt).parameters
        return tuple(parse_type(parameter.type) for parameter in parameters)


def _edge(text: str, types: tuple[RustType, ...]) -> tuple[Value, ...]:
    if len(types) == 1:
        return (read_value(text, types[0]),)
    values = read_value(text, RustType("()", types))
    assert isinstance(values, tuple)
    return values
