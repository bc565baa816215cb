"""This file holds what may be asked of generation, and what comes of it: options, and pieces of text.

`nanochat.generation.session` does it.
"""

import logging
import operator
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, TypedDict, cast

import numpy as np

from nanochat.config import ModelConfig
from nanochat.errors import ContextLengthError, InputError, NanochatError, did_you_mean
from nanochat.generation.cache import PromptCache
from nanochat.generation.constraint import Constraint
from nanochat.generation.sampling import SEEDS, Sampling
from nanochat.text.calls import CallPart, Calls
from nanochat.text.thinking import Thoughts

__all__ = [
    "ChatOptions",
    "FinishReason",
    "GenerationOptions",
    "Piece",
    "TemplateOptions",
    "TokenLogprob",
    "Wanted",
    "read_options",
    "seeds_of",
    "split_options",
    "tokens_after",
]

FinishReason = Literal["stop", "length", "tool_calls", "error"]

_LOGGER = logging.getLogger(__name__)

# The default of `GenerationOptions.max_tokens`.
_MAX_TOKENS = 256
_MOST_SAMPLES, _MOST_LOGPROBS = 128, 20
_OF_SAMPLING = [field.name for field in fields(Sampling) if field.name != "seed"]


class GenerationOptions(TypedDict, total=False):
    """What a caller may choose about generation; whatever is absent or, save for `seed`, None has its default.

    Attributes
    ----------
    max_tokens, max_new_tokens : int
        Most tokens to generate, by either name; 256, or what the longest prompt leaves of the context if that is less.
        0 with `prompt_logprobs` only.
    min_tokens : int
        As many tokens come before one that ends a text may be chosen; 0.
    ignore_eos : bool
        Whether the model's own special tokens do not end a text; False.
    stop_token_ids : sequence of int
        Further tokens that end a text; none.
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
    prompt_logprobs : int or None
        The same of the tokens of the prompt but its first, on the first `Piece` of each text; None.
    seed : int, sequence of int, or None
        On one backend, the same seed gives the same text; 0. Row i draws with ``seed + i``, or with a seed of its own
        if there is one for each. None draws one, and tells it in the log.
    cache : PromptCache or None
        What was read before of prompts that begin so, from `nanochat.lm.Model.load_cache`; nothing.
    cache_salt : str or None
        Texts of a session begin with what others read only if these had the same salt; "". Whoever must not learn, by
        timing, what others asked has one of his own.
    constraint : Constraint or None
        A form that the answer is held to, such as `nanochat.text.grammar.json_grammar`; any.
    draft : bool or "heads"
        Whether several tokens are guessed and read at once, where that is faster; the text is the same. False, or
        True if there is a `prediction`. With "heads", extra heads of the model guess, too.
    prediction : str, sequence of int, or None
        What the text may say, in whole or in parts, such as a file that is to be changed a little: tokens are guessed
        from it; nothing.
    thoughts : Thoughts or None
        How thoughts are told from the answer, and when they are ended, from `nanochat.text.chat.chat_prompt`; not at
        all. They may make a text longer than `max_tokens` is by default, and no string in them stops it.
    calls : Calls or None
        How calls of tools are told from the answer, from `nanochat.text.calls.calls_of`; not at all. What keeps calls
        to declared functions is a `constraint` of `nanochat.text.call_grammar`. No string in them stops a text.
    """

    max_tokens: int | None
    max_new_tokens: int | None
    min_tokens: int | None
    ignore_eos: bool | None
    stop_token_ids: Sequence[int] | None
    n: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    stop: str | Sequence[str] | None
    logprobs: int | None
    prompt_logprobs: int | None
    seed: int | Sequence[int] | None
    cache: PromptCache | None
    cache_salt: str | None
    constraint: Constraint | None
    draft: bool | Literal["heads"] | None
    prediction: str | Sequence[int] | None
    thoughts: Thoughts | None
    calls: Calls | None


class TemplateOptions(TypedDict, total=False):
    """How a conversation becomes a prompt; see `nanochat.text.chat.chat_prompt`."""

    tools: Sequence[Mapping[str, Any]] | None
    chat_template: str | None
    chat_template_kwargs: Mapping[str, Any] | None
    thinking: bool | None
    thinking_budget: int | None


class ChatOptions(GenerationOptions, TemplateOptions, total=False):
    """What a caller may choose about an answer."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The options of a generation, read; `sampling` has no seed, see `seeds_of`."""

    sampling: Sampling
    stops: tuple[str, ...]
    stop_ids: tuple[int, ...]
    ignore_eos: bool
    max_tokens: int | None
    min_tokens: int
    n: int
    logprobs: int | None
    prompt_logprobs: int | None
    seed: object
    cache: PromptCache | None
    cache_salt: str
    constraint: Constraint | None
    draft: bool | Literal["heads"]
    prediction: str | tuple[int, ...]
    thoughts: Thoughts | None
    calls: Calls | None


class Piece(NamedTuple):
    """One chosen token, which continues the text number `row`, and the text that it releases.

    `text` is often empty: characters whose bytes are incomplete and text that may begin a stop string are held back.
    `finish_reason` is on the last piece of a row: "stop" at a special token or a stop string, "tool_calls" if calls of
    tools have come to an end with it, "length" at `max_tokens`, "error" where no token could be chosen, for which
    `error` says why and `token` is -1.

    `reasoning` is what the token releases of a thought, if `GenerationOptions.thoughts` tells thoughts from the answer;
    then `text` is of the answer alone. A token that `is_forced` was not chosen, and has no `logprob`: it ends a thought
    that is too long.

    `calls` is what the token releases of calls, if `GenerationOptions.calls` tells them from the answer; its text comes
    before them.

    `logprob` is the logarithm of the token's probability after softmax of the model's logits, and `top_logprobs` has
    the ids and those of the most probable tokens, if `GenerationOptions.logprobs` asks for them. `prompt_logprobs` has
    the same of the prompt's second token and all that follow, on the first piece of a text.

    `stopped_by` is the stop string or the id of the token that ended a text, and `cached` the tokens of the prompt that
    were not read for this text, because they were known. `drafted` and `accepted` are tokens that were guessed for the
    text so far, and those of them that stood; `predicted` are both of what was guessed from a prediction.
    """

    row: int
    token: int
    text: str
    finish_reason: FinishReason | None
    error: NanochatError | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    reasoning: str = ""
    calls: tuple[CallPart, ...] = ()
    is_forced: bool = False
    stopped_by: str | int | None = None
    cached: int = 0
    drafted: int = 0
    accepted: int = 0
    predicted: tuple[int, int] = (0, 0)
    prompt_logprobs: tuple["TokenLogprob", ...] = ()


class TokenLogprob(NamedTuple):
    """The log-probability of a token of a prompt, and the ids and those of the most probable ones at its place."""

    logprob: float
    top: tuple[tuple[int, float], ...]


def read_options(options: GenerationOptions) -> Wanted:
    """What options ask for, checked.

    Raises
    ------
    InputError
        If an option is out of range.
    TypeError
        If there is no such option.
    """
    known = GenerationOptions.__annotations__
    for name in options:
        if name not in known:
            raise TypeError(
                f"there is no option {name!r}{did_you_mean(name, known)}: choose from {', '.join(known)}"
            )
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    named = [name for name in ("max_tokens", "max_new_tokens") if name in given]
    if len(named) > 1:
        raise InputError("max_tokens and max_new_tokens are two names of one number: pass one")
    logprobs, prompt_logprobs = (
        _alternatives(options.get(name), name) for name in ("logprobs", "prompt_logprobs")
    )
    cache = given.get("cache")
    if cache is not None and not isinstance(cache, PromptCache):
        raise InputError(f"cache={cache!r:.80} is none: pass what model.load_cache(path) returns")
    thoughts = given.get("thoughts")
    if thoughts is not None and not isinstance(thoughts, Thoughts):
        raise InputError(
            f"thoughts={thoughts!r:.80} are none: pass what nanochat.text.chat.chat_prompt returns"
        )
    calls = given.get("calls")
    if calls is not None and not isinstance(calls, Calls):
        raise InputError(
            f"calls={calls!r:.80} are none: pass what nanochat.text.calls.calls_of returns"
        )
    salt = given.get("cache_salt", "")
    if not isinstance(salt, str):
        raise InputError(f"cache_salt={salt!r:.80} is no text: pass a string, or leave it out")
    max_tokens = None
    if named:
        least = 0 if prompt_logprobs is not None else 1
        max_tokens = _count_of(given[named[0]], named[0], None, least=least)
    return Wanted(
        sampling=Sampling(
            **{"temperature": 0.0, **{n: given[n] for n in _OF_SAMPLING if n in given}}
        ),
        stops=_stop_strings(options.get("stop")),
        stop_ids=_stop_ids(given.get("stop_token_ids", ())),
        ignore_eos=bool(given.get("ignore_eos")),
        max_tokens=max_tokens,
        min_tokens=_count_of(given.get("min_tokens", 0), "min_tokens", None, least=0),
        n=_count_of(given.get("n", 1), "n", _MOST_SAMPLES),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        seed=options.get("seed", 0),
        cache=cache,
        cache_salt=salt,
        constraint=given.get("constraint"),
        draft=_draft(given.get("draft", "prediction" in given)),
        prediction=_prediction(given.get("prediction", ())),
        thoughts=thoughts,
        calls=calls,
    )


def split_options(options: ChatOptions) -> tuple[TemplateOptions, GenerationOptions]:
    """The options of the prompt, and those of the generation."""
    of_template = TemplateOptions.__annotations__
    parts: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for name, value in options.items():
        parts[name not in of_template][name] = value
    return cast(TemplateOptions, parts[0]), cast(GenerationOptions, parts[1])


def _count_of(value: object, name: str, most: int | None, *, least: int = 1) -> int:
    """A number of texts or, without an upper bound, of tokens; refused with its name if it is none."""
    number = _whole(value)
    if number is not None and least <= number and (most is None or number <= most):
        return number
    what, upper = ("tokens", "or more") if most is None else ("texts", f"to {most}")
    raise InputError(f"{name}={value!r} is not a number of {what}: pass {least} {upper}")


def _alternatives(value: object, name: str) -> int | None:
    """A number of most probable tokens to tell of, or None."""
    if value is None:
        return None
    number = _whole(value)
    if number is not None and 0 <= number <= _MOST_LOGPROBS:
        return number
    raise InputError(
        f"{name}={value!r} is no number of alternatives: pass 0 to {_MOST_LOGPROBS}, or None for none at all"
    )


def _stop_ids(ids: object) -> tuple[int, ...]:
    tokens = [*ids] if isinstance(ids, Iterable) and not isinstance(ids, str | bytes) else [ids]
    found = []
    for token in tokens:
        number = _whole(token)
        if number is None or number < 0:
            raise InputError(
                f"stop_token_ids={ids!r:.80} holds {token!r:.40}: pass a list of ids of the model's tokenizer"
            )
        found.append(number)
    return tuple(found)


def _draft(value: object) -> bool | Literal["heads"]:
    if value == "heads":
        return "heads"
    if isinstance(value, bool):
        return value
    raise InputError(f'draft={value!r:.80} is no choice: pass True, False or "heads"')


def _prediction(value: object) -> str | tuple[int, ...]:
    """A text, or tokens of one."""
    if isinstance(value, str):
        return value
    tokens = [_whole(token) for token in value] if isinstance(value, Iterable) else [None]
    found = tuple(token for token in tokens if token is not None and 0 <= token < 2**31)
    if len(found) < len(tokens):
        raise InputError(
            f"prediction={value!r:.80} is no text: pass a string, or ids of the model's tokenizer"
        )
    return found


def _whole(value: object) -> int | None:
    """A value as an integer, if it is one."""
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return operator.index(value) if is_whole else None  # type: ignore[arg-type]  # it is one


def seeds_of(seed: object, count: int) -> list[int]:
    """The seed of each of so many texts."""
    if seed is None:
        seed = secrets.randbits(62)
        _LOGGER.info("seed=%d", seed)
    if isinstance(seed, int | np.integer):
        # One that is out of range is refused by whoever draws with it.
        turns = 0 <= seed < SEEDS
        return [(int(seed) + row) % SEEDS if turns else int(seed) for row in range(count)]
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


def tokens_after(
    length: int, max_tokens: int | None, config: ModelConfig, *, thoughts: Thoughts | None = None
) -> int:
    """The number of tokens to generate after a prompt of this length."""
    room = config.context_length - length
    holds = f"the model's context holds {config.context_length} tokens"
    if room < (0 if max_tokens == 0 else 1):
        raise ContextLengthError(
            f"a prompt of {length} tokens leaves no room for an answer, because {holds}: "
            f"shorten it to {config.context_length - 1} tokens or less"
        )
    if max_tokens is None:
        return min(room, _MAX_TOKENS + (0 if thoughts is None else thoughts.usual_tokens))
    if max_tokens > room:
        raise ContextLengthError(
            f"a prompt of {length} tokens and max_tokens={max_tokens} make {length + max_tokens}, but {holds}: "
            f"pass max_tokens={room} or less, or shorten the prompt"
        )
    return int(max_tokens)
