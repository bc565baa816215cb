"""This file holds prompts as callers give them: a text, token ids, or any number of either."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from nanochat.errors import InputError
from nanochat.text.codec import TextCodec

__all__ = ["Prompts", "encode_prompt", "read_prompts"]

# What can be iterated over, and is no list of tokens or texts.
_NONE = (bytes, bytearray, memoryview, Mapping)
# One prompt, or several.
Prompts = str | Sequence[int] | Iterable[str] | Iterable[Sequence[int]]


def read_prompts(
    prompt: object, tokenizer: TextCodec, *, special: bool
) -> tuple[list[list[int]], bool]:
    """The tokens of each prompt, and whether it was a single one.

    Raises
    ------
    InputError
        If it is nothing of the kind, or one is empty.
    """
    if isinstance(prompt, np.ndarray):
        prompt = prompt.tolist()
    if isinstance(prompt, str):
        return [encode_prompt(prompt, tokenizer, special=special)], True
    if isinstance(prompt, _NONE) or not isinstance(prompt, Iterable):
        raise InputError(
            f"{prompt!r:.80} is no prompt: pass a text, a list of token ids, or a list of either"
        )
    every = [*prompt]
    if every and all(_is_token(item) for item in every):
        return [[int(item) for item in every]], True
    return [_one(item, tokenizer, special) for item in every], False


def encode_prompt(text: str, tokenizer: TextCodec, *, special: bool = False) -> list[int]:
    """The tokens of a text, behind those that stand before every text.

    Parameters
    ----------
    special : bool
        Whether names of special tokens in the text stand for these; a start that it writes itself is not doubled.
    """
    tokens = tokenizer.encode(text, specials=special)
    if not tokens:
        raise InputError('the prompt is empty: pass some text; "\\n" lets the model begin freely')
    opening = tokenizer.opening
    return tokens if tuple(tokens[: len(opening)]) == opening else [*opening, *tokens]


def _one(item: object, tokenizer: TextCodec, special: bool) -> list[int]:
    if isinstance(item, str):
        return encode_prompt(item, tokenizer, special=special)
    tokens = [] if isinstance(item, _NONE) or not isinstance(item, Iterable) else [*item]
    if tokens and all(_is_token(token) for token in tokens):
        return [int(token) for token in tokens]
    raise InputError(f"{item!r:.80} is no prompt: pass a text, or a list of token ids")


def _is_token(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
