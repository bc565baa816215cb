"""This file holds generation: prompts are read, tokens are chosen one after the other, and text comes out in pieces.

A `Runner` runs the network and nothing else; `generate` drives it. Prompts of a batch may have different lengths: each
is read alone, then their states are stacked and every step continues all of them at once.

Legend: B sequences, T tokens, V vocabulary.
"""

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import (
    Generic,
    Literal,
    Protocol,
    TypedDict,
    TypeVar,
    Unpack,
    get_args,
    runtime_checkable,
)

import numpy as np
from numpy.typing import NDArray

from nanochat.config import ModelConfig
from nanochat.errors import ContextLengthError, InputError
from nanochat.model import forward, slots
from nanochat.ops import Ops, Repeats, Storage
from nanochat.sampling import Sampler, Sampling, StopStrings, batch_samplers
from nanochat.text.codec import TextCodec
from nanochat.text.tokenizer import StreamDecoder
from nanochat.weights import Weights

__all__ = [
    "Engine",
    "FinishReason",
    "GenerationOptions",
    "Piece",
    "Runner",
    "check_ids",
    "generate",
    "read_options",
]

Array = TypeVar("Array")
Leaf = TypeVar("Leaf")
State = TypeVar("State")

FinishReason = Literal["stop", "length"]

# The default of `GenerationOptions.max_tokens`.
_MAX_TOKENS = 256


class GenerationOptions(TypedDict, total=False):
    """What a caller may choose about generation; whatever is absent has its default.

    Attributes
    ----------
    max_tokens : int
        Most tokens to generate; 256, or what the longest prompt leaves of the context if that is less.
    temperature : float
        0.0 always takes the most probable token; 0.0.
    top_k, top_p, min_p, repetition_penalty : int or float
        See `nanochat.sampling.Sampling`; off.
    stop : str or sequence of str
        Strings that end the text and are not part of it; none, as with None.
    seed : int
        The same seed gives the same text; 0. Sequence i of a batch draws with ``seed + i``.
    """

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    stop: str | Sequence[str] | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One chosen token, which continues the prompt number `row`, and the text that it releases.

    `text` is often empty: characters whose bytes are incomplete and text that may begin a stop string are held back.
    `finish_reason` is on the last piece of a row: "stop" at a special token or a stop string, "length" at `max_tokens`.
    """

    row: int
    token: int
    text: str
    finish_reason: FinishReason | None


@runtime_checkable
class Runner(Protocol[State]):
    """A model at work: `Engine` on a backend, or a whole graph in a runtime of its own.

    `kv_cache` is what keys and values are kept in while text is generated.
    """

    config: ModelConfig
    kv_cache: Storage

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits after every token of a sequence, (T, V)."""
        ...

    def prefill(self, ids: Sequence[int], *, capacity: int) -> tuple[State, NDArray[np.float32]]:
        """Read a prompt: the state of its one sequence, with room for `capacity` tokens, and the last logits, (V,)."""
        ...

    def decode(self, tokens: Sequence[int], state: State) -> NDArray[np.float32]:
        """Append one token to each sequence of `state`; the logits after it, (B, V)."""
        ...

    def stack(self, states: Sequence[State]) -> State:
        """One state that holds the sequences of all `states`, which had the same capacity."""
        ...


class Engine(Generic[Array, Leaf, State]):
    """A model on a backend: tokens in, logits out, both NumPy's.

    Parameters
    ----------
    weights : tree of the backend's leaves
        From ``ops.prepare``.
    prefill_chunk : int
        Tokens of a prompt that are read at once, which bounds the memory of activations.
    kv_cache : {"float32", "float16", "int8"}
        What keys and values are kept in while text is generated; see `nanochat.ops.Slot`. `logits` rounds none.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights[Leaf],
        ops: Ops[Array, Leaf, State],
        *,
        prefill_chunk: int = 512,
        kv_cache: Storage = "float32",
    ) -> None:
        if kv_cache not in get_args(Storage):
            raise InputError(
                f"kv_cache={kv_cache!r} is nothing that keys and values can be kept in: choose one of "
                f"{', '.join(get_args(Storage))}"
            )
        self.config = config
        self.weights = weights
        self.ops = ops
        # Asked once: to look for a protocol takes longer than some kernels.
        self._repeats: Repeats[Array, State] | None = ops if isinstance(ops, Repeats) else None
        self._prefill_chunk = prefill_chunk
        self.kv_cache: Storage = kv_cache
        self._slots = slots(config, storage=kv_cache)
        # A backend that cannot keep them so says it now, not at the first prompt.
        ops.new_state(self._slots, batch=1, capacity=1)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        _require_tokens(ids)
        tokens = self.ops.tokens(np.array([ids], np.int64))
        logits: NDArray[np.float32] = self.ops.numpy(
            forward(tokens, self.weights, self.config, self.ops)
        )[0]
        return logits

    def prefill(self, ids: Sequence[int], *, capacity: int) -> tuple[State, NDArray[np.float32]]:
        _require_tokens(ids)
        state = self.ops.new_state(self._slots, batch=1, capacity=capacity)
        logits = np.empty(0, np.float32)
        for start in range(0, len(ids), self._prefill_chunk):
            tokens = self.ops.tokens(np.array([ids[start : start + self._prefill_chunk]], np.int64))
            logits = self.ops.numpy(self._forward(tokens, state))[0, 0]
        return state, logits

    def decode(self, tokens: Sequence[int], state: State) -> NDArray[np.float32]:
        _require_tokens(tokens)
        ids = self.ops.tokens(np.array(tokens, np.int64)[:, None])
        if self._repeats is None:
            logits = self._forward(ids, state)
        else:
            logits = self._repeats.repeat(lambda ids: self._forward(ids, state), ids, state)
        return self.ops.numpy(logits)[:, 0]

    def stack(self, states: Sequence[State]) -> State:
        return self.ops.stack(states)

    def _forward(self, tokens: Array, state: State) -> Array:
        return forward(tokens, self.weights, self.config, self.ops, state, only_last=True)


def generate(
    engine: Runner[State],
    tokenizer: TextCodec,
    prompts: Sequence[Sequence[int]],
    **options: Unpack[GenerationOptions],
) -> Iterator[Piece]:
    """Continue every prompt until it stops; the pieces of the rows arrive in turn, one token each.

    The tokenizer's stop tokens end a row. Closing the iterator, or an interrupt (Ctrl-C) inside
    it, frees the state; the pieces that it gave before are complete.

    Parameters
    ----------
    prompts : sequence of sequences of int
        Token ids, as a rule with ``<|bos|>`` first.

    Raises
    ------
    ContextLengthError
        If a prompt and `max_tokens` together exceed the model's context.
    InputError
        If there is no prompt, a prompt is empty or holds ids that the model does not have, or an option is out of
        range.
    """
    sampling, stops = read_options(options)
    if not prompts:
        raise InputError("there is no prompt: pass at least one")
    for ids in prompts:
        check_ids(ids, engine.config)
    longest = max(map(len, prompts))
    max_tokens = _check_room(longest, options.get("max_tokens"), engine.config)
    rows = [
        _Row(index, tokenizer, sampler, StopStrings(stops), max_tokens)
        for index, sampler in enumerate(batch_samplers(sampling, prompts))
    ]
    # The last token is never fed back. A row that has stopped is still computed, but no row runs for longer.
    capacity = longest + max_tokens - 1
    return _run(engine, prompts, rows, capacity)


def read_options(options: GenerationOptions) -> tuple[Sampling, tuple[str, ...]]:
    """The sampling settings and the stop strings that options stand for."""
    unknown = sorted(options.keys() - GenerationOptions.__annotations__.keys())
    if unknown:
        raise TypeError(
            f"there is no option {unknown[0]!r}: choose from {', '.join(GenerationOptions.__annotations__)}"
        )
    max_tokens = options.get("max_tokens", _MAX_TOKENS)
    whole = isinstance(max_tokens, int | np.integer) and not isinstance(max_tokens, bool)
    if not whole or max_tokens < 1:
        raise InputError(f"max_tokens={max_tokens!r} is not a number of tokens: pass 1 or more")
    sampling = Sampling(
        repetition_penalty=options.get("repetition_penalty", 1.0),
        temperature=options.get("temperature", 0.0),
        top_k=options.get("top_k", 0),
        top_p=options.get("top_p", 1.0),
        min_p=options.get("min_p", 0.0),
        seed=options.get("seed", 0),
    )
    return sampling, _stop_strings(options.get("stop"))


def check_ids(ids: Sequence[int], config: ModelConfig) -> None:
    """Refuse tokens that a model cannot read."""
    try:
        tokens = [operator.index(token) for token in ids]
    except TypeError as error:
        raise InputError(
            f"{ids!r:.80} is not one sequence of token ids, which are integers: encode the text with the model's "
            "own tokenizer"
        ) from error
    _require_tokens(tokens)
    for token in (min(tokens), max(tokens)):
        if not 0 <= token < config.vocab_size:
            raise InputError(
                f"token {token} is outside the model's vocabulary of {config.vocab_size}: "
                "encode the text with the model's own tokenizer"
            )


def _require_tokens(tokens: Sequence[int]) -> None:
    if not len(tokens):
        raise InputError("there is no token to read: pass at least one, such as <|bos|>")


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


def _check_room(length: int, max_tokens: int | None, config: ModelConfig) -> int:
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


def _run(
    engine: Runner[State], prompts: Sequence[Sequence[int]], rows: Sequence["_Row"], capacity: int
) -> Iterator[Piece]:
    states: list[State] = []
    running: list[_Row] = []
    for ids, row in zip(prompts, rows, strict=True):
        state, logits = engine.prefill(ids, capacity=capacity)
        yield row.push(logits)
        if row.finish_reason is None:
            states.append(state)
            running.append(row)
    if not running:
        return
    # One name for the state, so that nothing keeps the parts alive next to the whole.
    state = states[0] if len(states) == 1 else engine.stack(states)
    states.clear()
    while any(row.finish_reason is None for row in running):
        logits = engine.decode([row.token for row in running], state)
        for row, row_logits in zip(running, logits, strict=True):
            if row.finish_reason is None:
                yield row.push(row_logits)


@dataclass(eq=False)
class _Row:
    """The text of one sequence as it grows."""

    index: int
    tokenizer: TextCodec
    sampler: Sampler
    stops: StopStrings
    tokens_left: int
    token: int = -1
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self._decoder = StreamDecoder(self.tokenizer)

    def push(self, logits: NDArray[np.float32]) -> Piece:
        """Choose the token that follows."""
        # A model may have more rows in its table than its tokenizer has tokens.
        self.token = self.sampler.next(logits[: self.tokenizer.vocab_size])
        self.tokens_left -= 1
        text, stopped = self.stops.push(self._decoder.push(self.token))
        if stopped or self.token in self.tokenizer.stop_ids:
            self.finish_reason = "stop"
        elif not self.tokens_left:
            self.finish_reason = "length"
        if self.finish_reason is not None:
            text += self.stops.push(self._decoder.flush())[0] + self.stops.flush()
        return Piece(row=self.index, token=self.token, text=text, finish_reason=self.finish_reason)
