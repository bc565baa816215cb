"""This file holds Anthropic's Messages API as a translation of chats.

References
----------
.. [1] Anthropic, API reference, "Messages", "Streaming messages" and "Errors".
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta, Struct

from nanochat.generation.options import Piece
from nanochat.serve.api.chat import AskedAsChat, ask_chat
from nanochat.serve.api.errors import ApiError, as_api_error
from nanochat.serve.api.ids import new_id
from nanochat.serve.api.said import Tally, written
from nanochat.serve.api.schema import ChatRequest
from nanochat.serve.api.sse import event
from nanochat.serve.engine import Answer
from nanochat.serve.served import Served
from nanochat.text.calls import CallPart

__all__ = ["AskedMessage", "MessageEvents", "MessageRequest", "ask_message", "message_answer"]
__all__ += ["error_body"]


class MessageRequest(Struct, kw_only=True):
    """A conversation to be answered; see [1]_."""

    model: str
    max_tokens: Annotated[int, Meta(ge=1)]
    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    thinking: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None


@dataclass(frozen=True, kw_only=True)
class AskedMessage(AskedAsChat):
    """A request for a message, as the chat that it is."""

    id: str = field(default_factory=lambda: f"msg_{new_id()}")

    def body(self, content: Sequence[dict[str, Any]], tally: Tally | None) -> dict[str, Any]:
        """The message, as far as it is."""
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.chat.model,
            "content": [*content],
            **(_stop(tally) if tally is not None else {"stop_reason": None, "stop_sequence": None}),
            "usage": {
                "input_tokens": len(self.chat.ids) - (tally.cached if tally else 0),
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": tally.cached if tally else 0,
                "output_tokens": tally.num_tokens if tally else 0,
            },
        }


def _stop(tally: Tally) -> dict[str, str | None]:
    if isinstance(tally.stopped_by, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": tally.stopped_by}
    reasons = {"length": "max_tokens", "tool_calls": "tool_use"}
    return {
        "stop_reason": reasons.get(tally.finish_reason or "", "end_turn"),
        "stop_sequence": None,
    }


def ask_message(request: MessageRequest, served: Served) -> AskedMessage:
    """Read a request as a chat.

    Raises
    ------
    ApiError, NanochatError
        If something is wrong with it.
    """
    messages: list[dict[str, Any]] = []
    if request.system:
        messages.append({"role": "system", "content": _text("system", request.system)})
    for index, message in enumerate(request.messages):
        match message:
            case {"role": "user", "content": str() | list() as content}:
                messages += _results(f"messages[{index}]", content)
            case {"role": "assistant", "content": str() | list() as content}:
                messages.append(_said(f"messages[{index}]", content))
            case _:
                raise ApiError(
                    400,
                    f"messages[{index}] is {message!r:.80}: roles are user and assistant, and contents text or blocks",
                    param="messages",
                )
    budget = None
    if request.thinking is not None and request.thinking.get("type") == "enabled":
        budget = request.thinking.get("budget_tokens")
        if not isinstance(budget, int) or isinstance(budget, bool) or budget < 0:
            raise ApiError(
                400,
                f"thinking.budget_tokens is {budget!r:.40}: pass a number of tokens",
                param="thinking",
            )
    choice, is_single = _choice(request.tool_choice)
    chat = ChatRequest(
        messages=messages,
        tools=[_tool(number, tool) for number, tool in enumerate(request.tools or [])],
        tool_choice=choice,
        parallel_tool_calls=not is_single,
        model=request.model,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        stop=request.stop_sequences,
        stream=request.stream,
        thinking_budget=budget,
        # What the client has begun to say for the assistant.
        continue_final_message=bool(messages) and messages[-1]["role"] == "assistant",
    )
    return AskedMessage(chat=ask_chat(chat, served))


def _tool(number: int, tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as chats declare it."""
    match tool:
        case {"name": name, **fields} if fields.get("type", "custom") == "custom":
            function = {"name": name, "parameters": fields.get("input_schema")}
            if "description" in fields:
                function["description"] = fields["description"]
            return {"type": "function", "function": function}
        case _:
            raise ApiError(
                400,
                f"tools[{number}] is {tool!r:.80}: pass a name and an input_schema",
                param="tools",
            )


def _choice(given: Mapping[str, Any] | None) -> tuple[str | dict[str, Any] | None, bool]:
    """A choice of tools as chats have it, and whether there may be one call only."""
    is_single = given is not None and given.get("disable_parallel_tool_use") is True
    match given:
        case None:
            return None, False
        case {"type": "auto" | "none" as choice}:
            return choice, is_single
        case {"type": "any"}:
            return "required", is_single
        case {"type": "tool", "name": str(name)}:
            return {"type": "function", "function": {"name": name}}, is_single
        case _:
            raise ApiError(
                400,
                f"tool_choice is {given!r:.80}: types are auto, any, none, and tool with a name",
                param="tool_choice",
            )


def _results(where: str, content: str | list[Any]) -> list[dict[str, Any]]:
    """What a user says, as messages: results of tools come first."""
    found, rest = [], []
    for block in content if isinstance(content, list) else []:
        match block:
            case {"type": "tool_result", "tool_use_id": str(number), **fields}:
                text = _text(where, fields.get("content") or "")
                found.append({"role": "tool", "tool_call_id": number, "content": text})
            case _:
                rest.append(block)
    if found and not rest:
        return found
    return [*found, {"role": "user", "content": _text(where, rest if found else content)}]


def _said(where: str, content: str | list[Any]) -> dict[str, Any]:
    """What the assistant said and called."""
    calls, rest = [], []
    for block in content if isinstance(content, list) else []:
        match block:
            case {"type": "tool_use", "id": str(number), "name": str(name), "input": dict(given)}:
                function = {"name": name, "arguments": given}
                calls.append({"id": number, "type": "function", "function": function})
            case _:
                rest.append(block)
    said = {"role": "assistant", "content": _text(where, rest if calls else content)}
    return {**said, "tool_calls": calls} if calls else said


def _text(where: str, content: object) -> str:
    if isinstance(content, str):
        return content
    found = []
    for block in content if isinstance(content, list) else [content]:
        match block:
            case {"type": "text", "text": str(text)}:
                found.append(text)
            case {"type": "thinking" | "redacted_thinking"}:
                # Thoughts of earlier turns are the templates' to drop.
                pass
            case _:
                raise ApiError(
                    400, f"{where} has the block {block!r:.80}: only text is read", param="messages"
                )
    return "".join(found)


async def message_answer(asked: AskedMessage, answer: Answer) -> dict[str, Any]:
    """The whole answer, as an object of type ``message``."""
    said = await written(answer, asked.chat.new_call_id)
    content: list[dict[str, Any]] = []
    if said.thought:
        content.append({"type": "thinking", "thinking": said.thought, "signature": ""})
    if said.text or not said.calls:
        content.append({"type": "text", "text": said.text})
    for call in said.calls:
        # One that was cut is told in events only: half an object is none.
        with suppress(ValueError):
            given = json.loads(call.arguments)
            content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": given})
    return asked.body(content, said.tally)


# The blocks of an answer by the fields of its pieces: type, and what its deltas are called.
_BLOCKS: Mapping[str, tuple[str, str, str]] = {
    "reasoning": ("thinking", "thinking_delta", "thinking"),
    "text": ("text", "text_delta", "text"),
}


class MessageEvents:
    """An answer as events, each with its name."""

    def __init__(self, asked: AskedMessage) -> None:
        self._asked = asked
        self._tally = Tally()
        self._index = -1
        self._kind: str | None = None

    def begin(self) -> bytes:
        """See `nanochat.serve.api.sse.Translator`."""
        return _event("message_start", message=self._asked.body([], None))

    def more(self, pieces: Sequence[Piece]) -> bytes:
        """See `nanochat.serve.api.sse.Translator`."""
        found = b""
        for piece in pieces:
            self._tally.count(piece)
        for kind, (_, delta, name) in _BLOCKS.items():
            if text := "".join(getattr(piece, kind) for piece in pieces):
                found += self._open(kind)
                found += _event(
                    "content_block_delta", index=self._index, delta={"type": delta, name: text}
                )
        for piece in pieces:
            for part in piece.calls:
                found += self._call(part)
        return found

    def _call(self, part: CallPart) -> bytes:
        found = b""
        if part.name is not None:
            found += self._close()
            self._kind = "call"
            self._index += 1
            block = {"type": "tool_use", "id": self._asked.chat.new_call_id(), "name": part.name}
            found += _event(
                "content_block_start", index=self._index, content_block={**block, "input": {}}
            )
        if part.arguments:
            delta = {"type": "input_json_delta", "partial_json": part.arguments}
            found += _event("content_block_delta", index=self._index, delta=delta)
        return found

    def end(self) -> bytes:
        """See `nanochat.serve.api.sse.Translator`."""
        found = b"" if self._kind == "call" else self._open("text")
        found += self._close()
        body = self._asked.body([], self._tally)
        found += _event("message_delta", delta=_stop(self._tally), usage=body["usage"])
        return found + _event("message_stop")

    def failed(self, error: Exception) -> bytes:
        """See `nanochat.serve.api.sse.Translator`."""
        told = _message_error(as_api_error(error, context=self._asked.chat.served.context))
        return event(told, kind="error")

    def _open(self, kind: str) -> bytes:
        if self._kind == kind:
            return b""
        found = self._close()
        self._kind = kind
        self._index += 1
        block, _, name = _BLOCKS[kind]
        return found + _event(
            "content_block_start", index=self._index, content_block={"type": block, name: ""}
        )

    def _close(self) -> bytes:
        if self._kind is None:
            return b""
        self._kind = None
        return _event("content_block_stop", index=self._index)


def _event(kind: str, **fields: object) -> bytes:
    return event({"type": kind, **fields}, kind=kind)


_ERRORS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def _message_error(error: ApiError) -> dict[str, Any]:
    """An error in the words of this API."""
    kind = _ERRORS.get(error.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def error_body(error: ApiError, path: str) -> dict[str, Any]:
    """An error in the words of the API at a path."""
    return _message_error(error) if path.endswith("/v1/messages") else error.body
