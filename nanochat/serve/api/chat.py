"""This file holds chat completions: a conversation in, the assistant's next turn out, whole or in events.

References
----------
.. [1] OpenAI, API reference, "The chat completion object" and "The chat completion chunk object".
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanochat.generation.options import GenerationOptions, Piece
from nanochat.serve.api.asked import asked_options, wants_usage
from nanochat.serve.api.errors import ApiError
from nanochat.serve.api.forms import asked_form
from nanochat.serve.api.ids import new_id
from nanochat.serve.api.logprobs import chat_logprob
from nanochat.serve.api.said import Said, Tally, usage
from nanochat.serve.api.schema import ChatRequest
from nanochat.serve.api.sse import DONE, Chunks, error_event, event
from nanochat.serve.api.tools import AskedTools, asked_tools
from nanochat.serve.engine import Answer
from nanochat.serve.served import Served
from nanochat.text.calls import CallPart
from nanochat.text.chat import chat_prompt, render
from nanochat.text.thinking import Thoughts
from nanochat.text.tokenizer import Tokenizer

__all__ = ["AskedAsChat", "AskedChat", "ChatEvents", "ask_chat", "chat_answer"]


@dataclass(frozen=True, kw_only=True)
class AskedChat:
    """A chat request, ready for the engine."""

    served: Served
    request: ChatRequest
    model: str
    ids: list[int]
    options: GenerationOptions
    tools: AskedTools | None
    id: str = field(default_factory=lambda: f"chatcmpl-{new_id()}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def prompts(self) -> list[list[int]]:
        """The one prompt."""
        return [self.ids]

    @property
    def n(self) -> int:
        """Choices."""
        return self.request.n or 1

    def new_call_id(self) -> str:
        """The number of a call, which only a request with tools can lead to."""
        assert self.tools is not None
        return self.tools.new_id()

    def body(self, kind: str) -> dict[str, Any]:
        """What begins each object of the answer."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.served.fingerprint,
        }


@dataclass(frozen=True, kw_only=True)
class AskedAsChat:
    """A request of another API, as the chat that it is."""

    chat: AskedChat

    @property
    def served(self) -> Served:
        """The model."""
        return self.chat.served

    @property
    def prompts(self) -> list[list[int]]:
        """The one prompt."""
        return self.chat.prompts

    @property
    def options(self) -> GenerationOptions:
        """As of the chat."""
        return self.chat.options

    @property
    def n(self) -> int:
        """One."""
        return self.chat.n


def ask_chat(request: ChatRequest, served: Served) -> AskedChat:
    """Render a conversation, and check what is asked of its answer.

    Raises
    ------
    ApiError, NanochatError
        If something is wrong with either.
    """
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs without logprobs: true", param="top_logprobs")
    options = asked_options(request, served, num_prompts=1)
    tools = asked_tools(request, served)
    ids, thoughts = _prompt(request, served, tools)
    most = request.max_completion_tokens
    most = request.max_tokens if most is None else most
    if most == 0:
        raise ApiError(
            400, "max_tokens is 0, but an answer has 1 token or more", param="max_tokens"
        )
    # A prompt that fills the context is refused with all numbers.
    options["max_tokens"] = max(served.context - len(ids), 1) if most is None else most
    options["thoughts"] = thoughts
    if tools is None:
        options["constraint"] = asked_form(request, served)
    else:
        options["constraint"] = tools.constraint(thoughts)
        options["calls"] = tools.calls
    if request.logprobs:
        options["logprobs"] = request.top_logprobs or 0
    return AskedChat(
        served=served,
        request=request,
        model=request.model or served.id,
        ids=ids,
        options=options,
        tools=tools,
    )


def _prompt(
    request: ChatRequest, served: Served, tools: AskedTools | None
) -> tuple[list[int], Thoughts | None]:
    declared = None if tools is None else tools.declared
    tokenizer, messages = served.tokenizer, request.messages
    continues = bool(request.continue_final_message)
    if not continues and request.add_generation_prompt is not False:
        prompt = chat_prompt(
            messages,  # type: ignore[arg-type]  # they are checked there
            tokenizer,
            tools=declared,
            chat_template_kwargs=request.chat_template_kwargs,
            thinking_budget=request.thinking_budget,
        )
        return prompt.ids, prompt.thoughts
    ids = render(
        messages,  # type: ignore[arg-type]  # the same
        tokenizer,
        reply=False,
        tools=declared,
        chat_template_kwargs=request.chat_template_kwargs,
    )
    if continues:
        if request.add_generation_prompt:
            raise ApiError(
                400,
                "continue_final_message and add_generation_prompt exclude each other",
                param="continue_final_message",
            )
        if messages[-1].get("role") != "assistant":
            raise ApiError(
                400,
                "continue_final_message is true, but the last message is not the assistant's",
                param="continue_final_message",
            )
        if not isinstance(tokenizer, Tokenizer):
            raise ApiError(
                400,
                "continue_final_message: where a turn ends is not known of this model's chat template",
                param="continue_final_message",
            )
        # Without the end of the turn.
        ids = ids[:-1]
    return ids, None


async def chat_answer(asked: AskedChat, answer: Answer) -> dict[str, Any]:
    """The whole answer, as an object of type ``chat.completion``."""
    choices: list[list[Piece]] = [[] for _ in range(asked.n)]
    async for pieces in answer.pieces():
        for piece in pieces:
            choices[piece.row].append(piece)
    said = [Said(asked.new_call_id) for _ in choices]
    for each, pieces in zip(said, choices, strict=True):
        each.take(pieces)
    return {
        **asked.body("chat.completion"),
        "choices": [
            _choice(asked, index, pieces, each)
            for index, (pieces, each) in enumerate(zip(choices, said, strict=True))
        ],
        "usage": _usage(asked, [each.tally for each in said]),
        "nanochat": {"seed": asked.options["seed"][0]},  # type: ignore[index]  # a list
    }


def _choice(asked: AskedChat, index: int, pieces: Sequence[Piece], said: Said) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None}
    if said.thought:
        message["reasoning_content"] = said.thought
    if said.calls:
        message["content"] = said.text or None
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in said.calls
        ]
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(asked, pieces),
        "finish_reason": said.tally.finish_reason,
        "stop_reason": said.tally.stopped_by,
    }


def _logprobs(asked: AskedChat, pieces: Sequence[Piece]) -> dict[str, Any] | None:
    if not asked.request.logprobs:
        return None
    codec = asked.served.tokenizer
    told = [chat_logprob(piece, codec) for piece in pieces if piece.logprob is not None]
    # The token that ends a text is none of its own.
    if pieces and isinstance(pieces[-1].stopped_by, int):
        told = told[:-1]
    return {"content": told, "refusal": None}


def _usage(asked: AskedChat, tallies: Sequence[Tally]) -> dict[str, Any]:
    return usage(prompt=len(asked.ids), tallies=tallies, cached=tallies[0].cached)


class ChatEvents:
    """An answer as chunks, of type ``chat.completion.chunk``."""

    def __init__(self, asked: AskedChat) -> None:
        self._asked = asked
        self._body = asked.body("chat.completion.chunk")
        self._usage = wants_usage(asked.request)
        self._chunks = Chunks(self._body, has_usage=self._usage)
        self._tallies = [Tally() for _ in range(asked.n)]
        # Tokens whose text is held back.
        self._held: list[list[Piece]] = [[] for _ in self._tallies]

    def begin(self) -> bytes:
        """See `Translator`: each choice says its role."""
        role = {"role": "assistant", "content": ""}
        return b"".join(self._chunk(index, role) for index in range(len(self._tallies)))

    def more(self, pieces: Sequence[Piece]) -> bytes:
        """See `Translator`."""
        found = []
        for index in dict.fromkeys(piece.row for piece in pieces):
            own = [piece for piece in pieces if piece.row == index]
            tally = self._tallies[index]
            for piece in own:
                tally.count(piece)
            held = self._held[index]
            held += own
            delta: dict[str, Any] = {}
            if text := "".join(piece.text for piece in own):
                delta["content"] = text
            if reasoning := "".join(piece.reasoning for piece in own):
                delta["reasoning_content"] = reasoning
            deltas = [delta] if delta else []
            deltas += [
                {"tool_calls": [call]}
                for piece in own
                for part in piece.calls
                for call in self._calls(part)
            ]
            logprobs = None
            if deltas or tally.finish_reason is not None:
                logprobs = _logprobs(self._asked, held)
                held.clear()
            if not deltas and logprobs is not None and logprobs["content"]:
                deltas = [{}]
            # Those of all tokens come with the first.
            for delta in deltas:
                found.append(self._chunk(index, delta, logprobs=logprobs))
                logprobs = None
            if tally.finish_reason is not None:
                found.append(self._chunk(index, {}, tally=tally))
        return b"".join(found)

    def _calls(self, part: CallPart) -> Iterator[dict[str, Any]]:
        """What is new of a call: its name with nothing else, then arguments."""
        if part.name is not None:
            function = {"name": part.name, "arguments": ""}
            call = {"id": self._asked.new_call_id(), "type": "function", "function": function}
            yield {"index": part.number, **call}
        if part.arguments:
            yield {"index": part.number, "function": {"arguments": part.arguments}}

    def end(self) -> bytes:
        """See `Translator`."""
        if not self._usage:
            return DONE
        last = {**self._body, "choices": [], "usage": _usage(self._asked, self._tallies)}
        return event(last) + DONE

    def failed(self, error: Exception) -> bytes:
        """See `Translator`."""
        return error_event(error, context=self._asked.served.context)

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        tally: Tally | None = None,
    ) -> bytes:
        choice: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": None if tally is None else tally.finish_reason,
        }
        if tally is not None:
            choice["stop_reason"] = tally.stopped_by
        return self._chunks.event([choice])
