"""This file holds completions: texts in, what follows them out, whole or in events, with the prompt if that is wanted.

References
----------
.. [1] OpenAI, API reference, "The completion object".
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nanochat.generation.options import GenerationOptions, Piece
from nanochat.generation.prompts import encode_prompt
from nanochat.serve.api.asked import asked_options, wants_usage
from nanochat.serve.api.errors import ApiError
from nanochat.serve.api.forms import asked_form
from nanochat.serve.api.ids import new_id
from nanochat.serve.api.logprobs import CompletionLogprobs
from nanochat.serve.api.said import Tally, usage
from nanochat.serve.api.schema import CompletionRequest, Prompt
from nanochat.serve.api.sse import DONE, Chunks, error_event, event
from nanochat.serve.engine import Answer
from nanochat.serve.served import Served
from nanochat.text.codec import TextCodec
from nanochat.text.tokenizer import StreamDecoder

__all__ = [
    "AskedCompletion",
    "CompletionEvents",
    "ask_completion",
    "completion_answer",
    "prompts_of",
]

# What OpenAI writes if nobody says how much.
_MAX_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class AskedCompletion:
    """A completion request, ready for the engine."""

    served: Served
    request: CompletionRequest
    model: str
    prompts: list[list[int]]
    # The prompts as texts, if they are to be told.
    texts: list[str]
    options: GenerationOptions
    id: str = field(default_factory=lambda: f"cmpl-{new_id()}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def n(self) -> int:
        """Texts for each prompt."""
        return self.request.n or 1

    @property
    def num_texts(self) -> int:
        """Choices: number ``p * n + i`` is text i of prompt p."""
        return len(self.prompts) * self.n

    @property
    def body(self) -> dict[str, Any]:
        """What begins each object of the answer."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.served.fingerprint,
        }


def ask_completion(request: CompletionRequest, served: Served) -> AskedCompletion:
    """Encode the prompts, and check what is asked.

    Raises
    ------
    ApiError, NanochatError
        If something is wrong.
    """
    if request.suffix:
        raise ApiError(400, "suffix: this model has no tokens for filling in", param="suffix")
    if request.best_of not in (None, 1):
        raise ApiError(400, f"best_of is {request.best_of}: only 1 is served", param="best_of")
    prompts = prompts_of(request.prompt, served.tokenizer, param="prompt")
    most = request.max_tokens if request.max_tokens is not None else _MAX_TOKENS
    options = asked_options(request, served, num_prompts=len(prompts))
    options["max_tokens"] = most
    options["constraint"] = asked_form(request, served)
    if request.logprobs is not None:
        options["logprobs"] = request.logprobs
    if request.echo and (request.logprobs is not None or most == 0):
        options["prompt_logprobs"] = request.logprobs or 0
    if most == 0 and not request.echo:
        raise ApiError(400, "max_tokens is 0: pass 1 or more, or echo: true", param="max_tokens")
    return AskedCompletion(
        served=served,
        request=request,
        model=request.model or served.id,
        prompts=prompts,
        texts=[served.tokenizer.decode(ids) for ids in prompts] if request.echo else [],
        options=options,
    )


def prompts_of(prompt: Prompt, codec: TextCodec, *, param: str) -> list[list[int]]:
    """The tokens of each prompt, which is a text or tokens.

    Raises
    ------
    ApiError
        If there is none.
    InputError
        If one is empty, or no text.
    """
    if not prompt:
        raise ApiError(400, f"{param} is empty: pass a text", param=param)
    if isinstance(prompt, str):
        return [encode_prompt(prompt, codec)]
    if all(isinstance(token, int) for token in prompt):
        return [[int(token) for token in prompt]]  # type: ignore[arg-type]  # they are
    found = []
    for one in prompt:
        if isinstance(one, int):
            raise ApiError(
                400, f"{param} holds tokens and texts: pass one kind of them", param=param
            )
        if not one:
            raise ApiError(400, f"{param} holds an empty text: leave it out", param=param)
        found.append(encode_prompt(one, codec) if isinstance(one, str) else one)
    return found


@dataclass
class _Choice:
    """One text as it comes."""

    asked: AskedCompletion
    index: int
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        request = self.asked.request
        self._is_first = True
        self._text = ""
        self._told: CompletionLogprobs | None = None
        if request.logprobs is not None:
            self._told = CompletionLogprobs(
                self.asked.served.tokenizer, alternatives=request.logprobs
            )
        self._decoder = StreamDecoder(self.asked.served.tokenizer)

    def add(self, piece: Piece) -> None:
        self.tally.count(piece)
        if self._is_first and self.asked.request.echo:
            self._echo(piece)
        self._is_first = False
        self._text += piece.text
        if self._told is not None and piece.logprob is not None:
            length = len(self._decoder.push(piece.token))
            if piece.token != piece.stopped_by:
                self._told.add(piece.token, piece.logprob, piece.top_logprobs, length=length)

    def take(self, *, whole: bool) -> dict[str, Any] | None:
        """What has come since the last time; nothing if no text has, and it goes on."""
        has_ended = self.tally.finish_reason is not None
        if not (self._text or has_ended or whole):
            return None
        text, self._text = self._text, ""
        found = {
            "index": self.index,
            "text": text,
            "logprobs": None if self._told is None else self._told.take(),
            "finish_reason": self.tally.finish_reason,
        }
        if has_ended:
            found["stop_reason"] = self.tally.stopped_by
        return found

    def _echo(self, piece: Piece) -> None:
        number = self.index // self.asked.n
        self._text += self.asked.texts[number]
        if self._told is None:
            return
        ids = self.asked.prompts[number]
        told = [(None, ()), *piece.prompt_logprobs]
        decoder = StreamDecoder(self.asked.served.tokenizer)
        for token, (logprob, top) in zip(ids, told, strict=True):
            self._told.add(token, logprob, top, length=len(decoder.push(token)))


def _usage(asked: AskedCompletion, tallies: Sequence[Tally]) -> dict[str, Any]:
    return usage(
        prompt=sum(map(len, asked.prompts)),
        tallies=tallies,
        cached=sum(tally.cached for tally in tallies[:: asked.n]),
    )


async def completion_answer(asked: AskedCompletion, answer: Answer) -> dict[str, Any]:
    """The whole answer, as an object of type ``text_completion``."""
    choices = [_Choice(asked, index) for index in range(asked.num_texts)]
    async for pieces in answer.pieces():
        for piece in pieces:
            choices[piece.row].add(piece)
    return {
        **asked.body,
        "choices": [choice.take(whole=True) for choice in choices],
        "usage": _usage(asked, [choice.tally for choice in choices]),
    }


class CompletionEvents:
    """An answer as chunks, which are of type ``text_completion``, too."""

    def __init__(self, asked: AskedCompletion) -> None:
        self._asked = asked
        self._usage = wants_usage(asked.request)
        self._chunks = Chunks(asked.body, has_usage=self._usage)
        self._choices = [_Choice(asked, index) for index in range(asked.num_texts)]

    def begin(self) -> bytes:
        """See `nanochat.serve.api.sse.Translator`."""
        return b""

    def more(self, pieces: Sequence[Piece]) -> bytes:
        """See `nanochat.serve.api.sse.Translator`."""
        for piece in pieces:
            self._choices[piece.row].add(piece)
        found = []
        for index in dict.fromkeys(piece.row for piece in pieces):
            choice = self._choices[index].take(whole=False)
            if choice is not None:
                found.append(self._chunks.event([choice]))
        return b"".join(found)

    def end(self) -> bytes:
        """See `nanochat.serve.api.sse.Translator`."""
        if not self._usage:
            return DONE
        tallies = [choice.tally for choice in self._choices]
        last = {**self._asked.body, "choices": [], "usage": _usage(self._asked, tallies)}
        return event(last) + DONE

    def failed(self, error: Exception) -> bytes:
        """See `nanochat.serve.api.sse.Translator`."""
        return error_event(error, context=self._asked.served.context)
