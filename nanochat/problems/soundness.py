"""This file holds what makes a problem sound: bodies that must pass, and bodies that must not.

A problem that a body of one literal passes rewards those who never read it; one that a changed reference passes does
not look closely enough. Which bodies do pass is found out by whoever can run them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nanochat.problems.mutants import is_equivalent, mutants
from nanochat.problems.problem import Problem
from nanochat.problems.types import INTEGERS, RustType, parse_type
from nanochat.rust import trivial
from nanochat.rust.signature import read_signature

__all__ = ["Candidate", "candidates", "is_trivial", "num_outcomes", "trivial_bodies"]

_LITERALS = {
    "integer": ("0", "1"),
    "f64": ("0.0", "1.0"),
    "bool": ("true", "false"),
    "str": ('""',),
    "String": ("String::new()",),
    "Option": ("None",),
    "Vec": ("vec![]",),
}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A body with its closing brace, what it is, and whether it must pass."""

    body: str
    kind: Literal["reference", "equivalent", "mutant", "trivial", "endless"]
    passes: bool


def candidates(problem: Problem) -> Iterator[Candidate]:
    """Yield bodies of a problem whose reference is known, with the outcome that each must have.

    The reference passes, and so do the mutants that are listed as equivalent: the list must not be longer than it needs
    to be. All other mutants and the trivial bodies fail, unless the reference is trivial itself; then nothing is said
    of the trivial ones. Bodies of the kind ``endless`` never return, and take as long as they are given.
    """
    yield Candidate(body=problem.reference, kind="reference", passes=True)
    bodies = [*trivial_bodies(problem)]
    if not is_trivial(problem):
        for body in bodies:
            yield Candidate(body=f" {body} }}", kind="trivial", passes=False)
    yield Candidate(body=" todo!() }", kind="trivial", passes=False)
    yield Candidate(body=" loop {} }", kind="endless", passes=False)
    for mutant in mutants(problem.reference):
        if is_equivalent(mutant, problem.equivalent):
            yield Candidate(body=mutant.body, kind="equivalent", passes=True)
        else:
            yield Candidate(body=mutant.body, kind="mutant", passes=False)


def num_outcomes(problem: Problem) -> int:
    """How many different results a problem's calls must have at least: both truth values, three of other types."""
    if not read_signature(problem.prompt).parameters:
        return 1
    return 2 if problem.returns == "bool" else 3


def trivial_bodies(problem: Problem) -> Iterator[str]:
    """Yield what can be returned without a thought: a literal of the type, its default, an argument."""
    signature = read_signature(problem.prompt)
    yield "Default::default()"
    yield from _LITERALS.get(_kind(parse_type(signature.returns)), ())
    for parameter in signature.parameters:
        if parameter.type == signature.returns:
            yield parameter.name
        elif (parameter.type, signature.returns) == ("&str", "String"):
            yield f"{parameter.name}.to_string()"
        elif f"Vec<{parameter.type[2:-1]}>" == signature.returns and parameter.type[:2] == "&[":
            yield f"{parameter.name}.to_vec()"


def is_trivial(problem: Problem) -> bool:
    """Whether the reference is trivial in the sense of `nanochat.rust.trivial`, so that such bodies may be right."""
    return trivial.is_trivial(problem.prompt, problem.reference.removesuffix("}"))


def _kind(of: RustType) -> str:
    if of.name in INTEGERS:
        return "integer"
    return _kind(of.arguments[0]) if of.name == "&" else of.name
