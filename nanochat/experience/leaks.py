"""This file holds what no lesson may say: what the tests of a problem ask and expect, and its reference.

A lesson that names them helps with this problem alone, and hides whether anything was learnt. What is too small to tell
one problem from others, such as the number 0, is no secret.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from nanochat.problems.problem import Problem
from nanochat.rust.lexer import code_tokens

__all__ = ["Secret", "leak", "secrets_of"]

_MIN_DIGITS, _MIN_LETTERS = 3, 3
_MIN_TOKENS, _MIN_BODY = 4, 8
_TYPE = re.compile(r"(?<=\d)_?(?:[iu](?:8|16|32|64|128|size)|f32|f64)\b")
_TEXT_OF = re.compile(r'::std::string::String::from\(("(?:[^"\\]|\\.)*")\)')
_PATH = re.compile(r"::(?:std|core)::(?:\w+::)*(?=\w)")
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w]|\.\d)")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_LIST = re.compile(r"\[[^][()]*,[^][()]*\]|\((?=[^()]*\d)[^][()]*,[^][()]*\)")


@dataclass(frozen=True)
class Secret:
    """A text that stands for a test or a reference, and what it is, in words."""

    text: str
    what: str


def secrets_of(problem: Problem, *, seed: int, expected: Sequence[str]) -> frozenset[Secret]:
    """What lessons that are learnt from a problem must not say.

    Parameters
    ----------
    seed : int
        Of the arguments on which programs are tried.
    expected : sequence of str
        What the calls print, see `nanochat.judge.judge.Judge.expected`.
    """
    return frozenset(_secrets(problem, seed, expected))


def leak(text: str, secrets: Collection[Secret]) -> str | None:
    """What a text says that it must not; nothing if it is free of that."""
    plain = re.sub(r"(?<=\d)_(?=\d)", "", _plain(text))
    squeezed = _squeezed(plain)
    numbers = set(_NUMBER.findall(plain))
    for secret in sorted(secrets, key=lambda one: (one.what, one.text)):
        # A number is one by itself, not a part of a longer one.
        said = secret.text in numbers if _NUMBER.fullmatch(secret.text) else secret.text in squeezed
        if said:
            return f"{secret.what} ({secret.text:.60})"
    return None


def _secrets(problem: Problem, seed: int, expected: Sequence[str]) -> Iterator[Secret]:
    body = problem.reference.rstrip().removesuffix("}")
    if len(code_tokens(body)) >= _MIN_TOKENS and len(_squeezed(body)) >= _MIN_BODY:
        yield Secret(_squeezed(body), "the reference")
    for call in problem.calls(seed):
        plain = _plain(call)
        yield Secret(_squeezed(plain), "a call of a test")
        yield from _values(plain, "an argument of a test")
    for line in expected:
        yield from _values(_plain(line), "a result of a test")


def _values(text: str, what: str) -> Iterator[Secret]:
    for number in _NUMBER.findall(text):
        if sum(character.isdigit() for character in number) >= _MIN_DIGITS:
            yield Secret(number, what)
    for quoted in _QUOTED.findall(text):
        if len(quoted) >= _MIN_LETTERS:
            # In quotes: the word itself may be one that lessons need.
            yield from (Secret(f"{mark}{_squeezed(quoted)}{mark}", what) for mark in "\"'`")
    for values in _LIST.findall(_squeezed(text)):
        yield Secret(values, what)


def _plain(text: str) -> str:
    """Rust as people write it: without types behind numbers, and paths before names."""
    text = _TEXT_OF.sub(r"\1", _TYPE.sub("", text))
    return _PATH.sub("", text).replace("vec![", "[")


def _squeezed(text: str) -> str:
    return "".join(text.split())
