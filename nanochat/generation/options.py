"""This file holds what may be asked of generation, and what comes of it: options, and pieces of text.

`nanochat.generation.session` does it.
"""

import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np

from nanochat.config import ModelConfig
from nanochat.errors import ContextLengthError, InputError, NanochatError
from nanochat.generation.sampling import Sampling

__all__ = [
    "MOST_SAMPLES",
    "FinishReason",
    "GenerationOptions",
    "Piece",
    "count_of",
    "read_options",
    "seeds_of",
    "tokens_after",
]

FinishReason = Literal["stop", "length", "error"]

_LOGGER = logging.getLogger(__name__)

# The default of `GenerationOptions.max_tokens`.
_MAX_TOKENS = 256
MOST_SAMPLES, MOST_LOGPROBS = 128, 20


class GenerationOptions(TypedDict, total=False):
    """What a caller may choose about generation; whatever is absent has its default.

    Attributes
    ----------
    max_tokens : int
        Most tokens to generate; 256, or what the longest prompt leaves of the context if that is less.
    n : int
        Texts for each prompt, which is read once; 1. Row i of the result is text ``i % n`` of prompt ``i // n``.
    temperature : float
        0.0 always takes the most probable token; 0.0.
    top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty : int or float
        See `nanochat.generation.sampling.Sampling`; off.
    logit_bias : mapping of int to float
        What is added to the logits of these tokens; nothing.
    stop : str or sequence of str
        Strings that end the text and are not part of it; none, as with None.
    logprobs : int or None
        Log-probabilities on each `Piece`: of the chosen token, and of so many of the most probable ones, up to 20;
        None, which is none at all.
    seed : int, sequence of int, or None
        On one backend, the same seed gives the same text; 0. Row i draws with ``seed + i``, or with a seed of its own
        if there is one for each. None draws one, and tells it in the log.
    """

    max_tokens: int
    n: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    stop: str | Sequence[str] | None
    logprobs: int | None
    seed: int | Sequence[int] | None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One chosen token, which continues the text number `row`, and the text that it releases.

    `text` is often empty: characters whose bytes are incomplete and text that may begin a stop string are held back.
    `finish_reason` is on the last piece of a row: "stop" at a special token or a stop string, "length" at `max_tokens`,
    "error" where no token could be chosen, for which `error` says why and `token` is -1.

    `logprob` is the logarithm of the token's probability after softmax of the model's logits, and `top_logprobs` has
    the ids and those of the most probable tokens, if `GenerationOptions.logprobs` asks for them.
    """

    row: int
    token: int
    text: str
    finish_reason: FinishReason | None
    error: NanochatError | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


def read_options(options: GenerationOptions) -> tuple[Sampling, tuple[str, ...]]:
    """The sampling settings, without a seed, and the stop strings that options stand for."""
    unknown = sorted(options.keys() - GenerationOptions.__annotations__.keys())
    if unknown:
        raise TypeError(
            f"there is no option {unknown[0]!r}: choose from {', '.join(GenerationOptions.__annotations__)}"
        )
    count_of(options.get("max_tokens", _MAX_TOKENS), "max_tokens", None)
    logprobs = options.get("logprobs")
    if logprobs is not None and (
        type(logprobs) is bool or logprobs not in range(MOST_LOGPROBS + 1)
    ):
        raise InputError(
            f"logprobs={logprobs!r} is no number of alternatives: pass 0 to {MOST_LOGPROBS}, or None for none at all"
        )
    sampling = Sampling(
        repetition_penalty=options.get("repetition_penalty", 1.0),
        presence_penalty=options.get("presence_penalty", 0.0),
        frequency_penalty=options.get("frequency_penalty", 0.0),
        logit_bias=options.get("logit_bias", {}),
        temperature=options.get("temperature", 0.0),
        top_k=options.get("top_k", 0),
        top_p=options.get("top_p", 1.0),
        min_p=options.get("min_p", 0.0),
    )
    return sampling, _stop_strings(options.get("stop"))


def count_of(value: object, name: str, most: int | None) -> int:
    """A number of texts or, without an upper bound, of tokens; refused with its name if it is none."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < 1 or (most is not None and value > most):  # type: ignore[operator]  # it is a number
        what, upper = ("tokens", "or more") if most is None else ("texts", f"to {most}")
        raise InputError(f"{name}={value!r} is not a number of {what}: pass 1 {upper}")
    return int(value)  # type: ignore[call-overload,no-any-return]  # it is a number


def seeds_of(seed: object, count: int) -> list[int]:
    """The seed of each of so many texts."""
    if seed is None:
        seed = secrets.randbits(62)
        _LOGGER.info("seed=%d", seed)
    if isinstance(seed, int | np.integer):
        return [int(seed) + row for row in range(count)]
    if isinstance(seed, str) or not isinstance(seed, Iterable):
        raise InputError(
            f"seed={seed!r:.80} is no integer: pass one, or a list with one for each text"
        )
    seeds = [*seed]
    if len(seeds) != count:
        raise InputError(
            f"seed holds {len(seeds)} seeds for {count} texts: pass one for each, or one integer"
        )
    return seeds


def _stop_strings(stop: object) -> tuple[str, ...]:
    if stop is None:
        return ()
    if isinstance(stop, str):
        return (stop,)
    if not isinstance(stop, Iterable):
        raise InputError(f"stop={stop!r:.80} is no text: pass a string, or a list of strings")
    stops = tuple(stop)
    for text in stops:
        if not isinstance(text, str):
            raise InputError(f"stop={stop!r:.80} holds {text!r:.40}: pass strings")
    return stops


def tokens_after(length: int, max_tokens: int | None, config: ModelConfig) -> int:
    """The number of tokens to generate after a prompt of this length."""
    room = config.context_length - length
    holds = f"the model's context holds {config.context_length} tokens"
    if room < 1:
        raise ContextLengthError(
            f"a prompt of {length} tokens leaves no room for an answer, because {holds}: "
            f"shorten it to {config.context_length - 1} tokens or less"
        )
    if max_tokens is None:
        return min(room, _MAX_TOKENS)
    if max_tokens > room:
        raise ContextLengthError(
            f"a prompt of {length} tokens and max_tokens={max_tokens} make {length + max_tokens}, but {holds}: "
            f"pass max_tokens={room} or less, or shorten the prompt"
        )
    return int(max_tokens)
