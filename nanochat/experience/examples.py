"""This file holds the choice of examples for a prompt: the most similar ones, or any.

Similarity is that of two signatures, from 0 to 2: the share of words that the functions' names have in common, of all
words of both, plus the same share of the tokens of their types. Comments and the names of arguments do not count.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from nanochat.experience.library import Example
from nanochat.rust.lexer import code_tokens
from nanochat.rust.signature import read_signature

__all__ = ["Choice", "Traits", "ranked", "similarity", "traits_of"]

Choice = Literal["similar", "random"]


class Traits(NamedTuple):
    """What of a signature is compared: how often each word of the name and each token of the types is there."""

    words: Counter[str]
    types: Counter[str]


def traits_of(prompt: str) -> Traits:
    """What of a prompt is compared with others.

    >>> traits_of("fn sum_of_squares(numbers: &[i32]) -> i32 {")
    Traits(words=Counter({'sum': 1, 'of': 1, 'squares': 1}), types=Counter({'i32': 2, '&': 1, '[': 1, ']': 1}))
    """
    signature = read_signature(prompt)
    types = [*(parameter.type for parameter in signature.parameters), signature.returns]
    return Traits(
        Counter(re.findall(r"[^\W_]+", signature.name.lower())),
        Counter(token.text for text in types for token in code_tokens(text)),
    )


def similarity(first: Traits, second: Traits) -> float:
    """How similar two signatures are, from 0 to 2.

    >>> sum, same = traits_of("fn sum_of(a: i8) -> i8 {"), traits_of("fn sum_up(n: i8) -> i8 {")
    >>> similarity(sum, same) == 1 / 3 + 1
    True
    """
    return _shared(first.words, second.words) + _shared(first.types, second.types)


def ranked(
    examples: Sequence[tuple[Example, Traits]], prompt: str, *, choice: Choice, seed: int
) -> Iterator[Example]:
    """Yield examples for a prompt, the best first, and of each family one at most.

    Of equally similar ones, and with "random" of all, a draw decides that follows from seed and prompt. A function is
    no example of itself.
    """
    wanted = traits_of(prompt)
    own = _code(prompt)

    def place(each: tuple[Example, Traits]) -> tuple[float, bytes]:
        example, traits = each
        near = similarity(wanted, traits) if choice == "similar" else 0.0
        text = repr((seed, prompt, example.prompt))
        return -near, hashlib.sha256(text.encode()).digest()

    families: set[str] = set()
    for example, _ in sorted(examples, key=place):
        if example.family not in families and _code(example.prompt) != own:
            families.add(example.family)
            yield example


def _shared(first: Counter[str], second: Counter[str]) -> float:
    every = (first | second).total()
    return (first & second).total() / every if every else 0.0


def _code(prompt: str) -> list[str]:
    return [token.text for token in code_tokens(prompt)]
