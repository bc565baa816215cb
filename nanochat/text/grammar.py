"""This file holds forms that texts can be held to: JSON of a schema, regular expressions, and grammars.

llguidance compiles them, and says which tokens may follow; 20 us for each token of a text, of which it needs no thread.

References
----------
.. [1] github.com/guidance-ai/llguidance, docs/syntax.md and docs/json_schema.md.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from nanochat.errors import InputError
from nanochat.text.codec import TextCodec

__all__ = ["Grammar", "Vocabulary", "json_grammar", "lark_grammar", "regex_grammar"]

_MAX_BYTES = 100_000
# Small models write white space for ever where a form lets them.
_COMPACT = {"whitespace_flexible": False}


class Vocabulary:
    """The tokens of a model, as llguidance wants to know them; made once."""

    def __init__(self, codec: TextCodec) -> None:
        self.eos_token_id = min(codec.stop_ids)
        self.bos_token_id = codec.bos
        self.special_token_ids = sorted(codec.special_ids)
        names = {token: name for name, token in codec.specials.items()}
        # A byte that no text has stands before names of special tokens.
        self.tokens = [
            b"\xff" + names.get(token, f"<{token}>").encode()
            if token in codec.special_ids
            else codec.token_bytes(token)
            for token in range(codec.vocab_size)
        ]
        self.is_tokenizer_wrapper = True
        self._codec = codec
        self.ends = sorted(codec.stop_ids)
        self.tokenizer = LLTokenizer(
            self,  # type: ignore[arg-type]  # what it asks for is there
            n_vocab=codec.vocab_size,
            eos_token=self.ends,
        )

    def __call__(self, text: str) -> list[int]:
        """Tokens of exactly these bytes; where a form leaves no choice, llguidance wants the first of them."""
        wanted = text.encode()
        # SentencePiece's put a space before a text, and none behind a line's end.
        for guard in ("", "\n"):
            tokens = self._codec.encode(guard + text)
            sizes = [len(self.tokens[token]) for token in tokens]
            own = itertools.accumulate(reversed(sizes), initial=0)
            count = next((n for n, size in enumerate(own) if size == len(wanted)), None)
            if count is not None:
                tail = tokens[len(tokens) - count :]
                if b"".join(self.tokens[token] for token in tail) == wanted:
                    return tail
        return self.tokenizer.greedy_tokenize(text)


class Grammar:
    """A form: `nanochat.generation.constraint.Constraint`."""

    def __init__(self, vocabulary: Vocabulary, start: LLMatcher) -> None:
        self._vocabulary = vocabulary
        self._start = start

    def matcher(self) -> "_Matcher":
        """See `nanochat.generation.constraint.Constraint`."""
        return _Matcher(self._vocabulary, self._start.deep_copy())


class _Matcher:
    def __init__(self, vocabulary: Vocabulary, matcher: LLMatcher) -> None:
        self._vocabulary = vocabulary
        self._ends = vocabulary.ends
        self._matcher = matcher
        self.error: str | None = None

    def fill(self, allowed: NDArray[np.uint32]) -> None:
        if self.error is None:
            self._matcher.unsafe_compute_mask_ptr(allowed.ctypes.data, allowed.nbytes)
            self._note()
        if self.error is not None or not allowed.any():
            allowed[:] = 0
            for token in self._ends:
                allowed[token >> 5] |= np.uint32(1 << (token & 31))

    def push(self, token: int) -> None:
        if self.error is None and token not in self._ends:
            self._matcher.consume_token(token)
            self._note()

    def count(self, tokens: Sequence[int]) -> int:
        if self.error is not None:
            return 0
        # What ends a text is not told to the matcher.
        whole = [*itertools.takewhile(lambda token: token not in self._ends, tokens)]
        return int(self._matcher.validate_tokens(whole))

    def forced(self) -> list[int]:
        return [] if self.error is not None else self._matcher.compute_ff_tokens()

    def copy(self) -> "_Matcher":
        copied = _Matcher(self._vocabulary, self._matcher.deep_copy())
        copied.error = self.error
        return copied

    def _note(self) -> None:
        if self._matcher.is_error():
            self.error = self._matcher.get_error()


def json_grammar(vocabulary: Vocabulary, schema: Mapping[str, Any] | bool | None = None) -> Grammar:
    """JSON of a schema, without white space; any object without one.

    Raises
    ------
    InputError
        If the schema is invalid, too large, or uses what is not supported.
    """
    wanted: Any = {"type": "object"} if schema is None else schema
    text = json.dumps(wanted)
    return _grammar(
        vocabulary,
        text,
        lambda: LLMatcher.grammar_from_json_schema(text, overrides=_COMPACT),  # type: ignore[arg-type]  # a TypedDict
        "the JSON schema",
    )


def regex_grammar(vocabulary: Vocabulary, expression: str) -> Grammar:
    """Texts that a regular expression matches as a whole.

    Raises
    ------
    InputError
        If it is none that can be compiled.
    """
    return _grammar(
        vocabulary,
        expression,
        lambda: LLMatcher.grammar_from_regex(expression),
        "the regular expression",
    )


def lark_grammar(vocabulary: Vocabulary, grammar: str, *, most: int = _MAX_BYTES) -> Grammar:
    """Texts of a grammar in the manner of Lark, see [1]_, of so many characters at most.

    Raises
    ------
    InputError
        If it is none that can be compiled.
    """
    return _grammar(
        vocabulary, grammar, lambda: LLMatcher.grammar_from_lark(grammar), "the grammar", most=most
    )


def _grammar(
    vocabulary: Vocabulary,
    text: str,
    make: Callable[[], str],
    what: str,
    *,
    most: int = _MAX_BYTES,
) -> Grammar:
    if len(text) > most:
        raise InputError(f"{what} has {len(text)} characters: pass {most} or less")
    try:
        grammar = make()
    except ValueError as error:
        raise InputError(f"{what} cannot be used: {error!s:.300}") from error
    matcher = LLMatcher(vocabulary.tokenizer, grammar, log_level=0)
    if matcher.is_error():
        # Behind it is where in the library, which helps nobody else.
        why = matcher.get_error().partition("\n<backtrace>")[0]
        raise InputError(f"{what} cannot be used: {why:.300}")
    return Grammar(vocabulary, matcher)
