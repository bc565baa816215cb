"""This file holds the problems of this project, which are files of Rust, and the reading of others like them."""

import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

from nanochat.errors import FormatError, InputError
from nanochat.problems.functions import Function, read_functions
from nanochat.problems.problem import Problem
from nanochat.problems.splits import is_family_held_out
from nanochat.problems.strategy import parse_strategy
from nanochat.rust.signature import Signature, read_signature

__all__ = ["OWN_FILES", "directive_values", "own_problems", "own_text", "read_problems"]

# By level.
OWN_FILES = tuple(f"level{level}.rs" for level in range(5))


@cache
def own_problems() -> tuple[Problem, ...]:
    """All problems of this project that are no templates, from easy to hard."""
    return tuple(
        problem
        for level, name in enumerate(OWN_FILES)
        for problem in read_problems(own_text(name), name, level=level)
    )


def own_text(name: str) -> str:
    """The text of one of the project's files of problems, such as ``level0.rs``."""
    return files("nanochat.problems").joinpath("own", name).read_text(encoding="utf-8")


def read_problems(text: str, name: str, *, level: int = -1) -> Iterator[Problem]:
    """Yield the problems of a file of Rust, each of whose functions is one.

    Parameters
    ----------
    text : str
        The file, see `nanochat.problems.functions`.
    name : str
        Its name, which the problems' names begin with.
    level : int
        Of those functions that do not say theirs.

    Raises
    ------
    FormatError
        If a directive cannot be understood, or an argument's type has no known values.
    """
    for function in read_functions(text, name):
        signature = read_signature(function.prompt)
        family = function.directives.get("family", function.name)
        inputs, edges, equivalent = directive_values(function, signature)
        problem = Problem(
            id=f"{name.removesuffix('.rs')}/{function.name}",
            family=family,
            level=function.level(level),
            split="held-out" if is_family_held_out(family) else "train",
            prompt=function.imports + "\n" * bool(function.imports) + function.prompt,
            entry=function.name,
            returns=signature.returns,
            reference=function.body,
            inputs=inputs,
            edges=edges,
            equivalent=equivalent,
        )
        try:
            problem.calls(0)
        except InputError as error:
            raise FormatError(f"{function.place}: {error}") from error
        yield problem


def directive_values(
    function: Function, signature: Signature
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The strategies of a function's arguments, its edges, and what of its mutants is right."""
    strategies = dict.fromkeys((parameter.name for parameter in signature.parameters), "")
    # A comma in a text is not before a name.
    for part in re.split(r"[,;] (?=\w+ (?:in|of length) )", function.directives.get("inputs", "")):
        if not part:
            continue
        name, _, strategy = part.partition(" ")
        if name not in strategies:
            raise FormatError(
                f"{function.place}: no argument is named {name!r}: name one of {', '.join(strategies)}"
            )
        strategies[name] = strategy.removeprefix("in ")
    try:
        for strategy in strategies.values():
            parse_strategy(strategy)
    except InputError as error:
        raise FormatError(f"{function.place}: {error}") from error
    edges = _parts(function.directives.get("edges", ""))
    return tuple(strategies.values()), edges, _parts(function.directives.get("equivalent", ""))


def _parts(text: str) -> tuple[str, ...]:
    """What stands between the semicolons that are in no text."""
    found = re.findall(r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])'|[^;])+""", text)
    return tuple(part.strip() for part in found)
