"""This file holds the reading of MultiPL-E's problems in Rust, translated from Python's HumanEval and MBPP.

A row's tests begin with the brace that closes the function, since its authors cut completions before it; here
completions keep theirs. White space behind a prompt is left out, so that prompts of all sets end alike.

References
----------
.. [1] F. Cassano et al., "MultiPL-E: A Scalable and Extensible Approach to Benchmarking Neural Code Generation", 2022.
       arXiv:2208.08227; rows: huggingface.co/datasets/nuprl/MultiPL-E
"""

from nanochat.errors import FormatError, InputError
from nanochat.problems.assertions import split_assertions
from nanochat.problems.problem import Problem
from nanochat.problems.rows import Row
from nanochat.rust.lexer import code_tokens
from nanochat.rust.signature import read_signature

__all__ = ["FIELDS", "problem_of"]

FIELDS = ("name", "language", "prompt", "tests")


def problem_of(row: Row) -> Problem | None:
    """The problem of a row; nothing if the row has no tests.

    Raises
    ------
    FormatError
        If a field is missing, the language is not Rust, or the prompt ends in no function.
    """
    if (language := row.text("language")) != "rs":
        raise FormatError(f"{row.place}: the language is {language!r}: pass rows of rs")
    prompt = row.text("prompt").strip()
    try:
        signature = read_signature(prompt)
    except InputError as error:
        raise FormatError(f"{row.place}: {error}") from error
    tests = row.text("tests").lstrip().removeprefix("}").strip()
    if "assert" not in tests:
        return None
    statements, function = _statements(tests)
    asserted = split_assertions(
        statements, function, entry=signature.name, returns=signature.returns
    )
    return Problem(
        id=row.text("name"),
        family=signature.name,
        level=-1,
        split="held-out",
        prompt=prompt,
        entry=signature.name,
        returns=signature.returns,
        asserted=asserted or (),
        tests="" if asserted else tests,
    )


def _statements(tests: str) -> tuple[str, str]:
    """What the main function does behind its first statement, which gives the function another name, and that name."""
    found = code_tokens(tests)
    words = [token.text for token in found]
    if (
        words[:6] != ["fn", "main", "(", ")", "{", "let"]
        or words[7:8] != ["="]
        or words[9:10] != [";"]
    ):
        return tests, ""
    return tests[found[9].start + 1 : found[-1].start], words[6]
