"""This file holds the Responses API as a translation of chats: OpenAI's newer form of the same question and answer.

Nothing is stored, so that whoever goes on with a conversation sends all of it.

References
----------
.. [1] OpenAI, API reference, "Create a model response" and "Streaming events".
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from nanochat.generation.options import Piece
from nanochat.serve.api.chat import AskedAsChat, ask_chat
from nanochat.serve.api.errors import ApiError, as_api_error
from nanochat.serve.api.ids import new_id
from nanochat.serve.api.said import Call, Tally, written
from nanochat.serve.api.schema import ChatRequest, Count
from nanochat.serve.api.sse import event
from nanochat.serve.engine import Answer
from nanochat.serve.served import Served
from nanochat.text.calls import CallPart

__all__ = ["AskedResponse", "ResponseEvents", "ResponseRequest", "ask_response", "response_answer"]


class ResponseRequest(Struct, kw_only=True):
    """A conversation to be answered; see [1]_."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    stream: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    # Beyond OpenAI's.
    seed: int | None = None


# What needs a memory of answers.
_REFUSED = ("previous_response_id", "conversation", "background", "store")


@dataclass(frozen=True, kw_only=True)
class AskedResponse(AskedAsChat):
    """A request for a response, as the chat that it is."""

    request: ResponseRequest
    id: str = field(default_factory=lambda: f"resp_{new_id()}")
    item: str = field(default_factory=lambda: f"msg_{new_id()}")
    thought: str = field(default_factory=lambda: f"rs_{new_id()}")
    created: int = field(default_factory=lambda: int(time.time()))

    def body(
        self, status: str, output: Sequence[dict[str, Any]], tally: Tally | None
    ) -> dict[str, Any]:
        """The response, as far as it is."""
        request, options = self.request, self.chat.options
        is_cut = tally is not None and tally.finish_reason == "length"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": "incomplete" if is_cut else status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": self.chat.model,
            "output": [*output],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": options["temperature"],
            "text": request.text or {"format": {"type": "text"}},
            "tool_choice": request.tool_choice or ("auto" if request.tools else "none"),
            "tools": request.tools or [],
            "top_p": options.get("top_p", 1.0),
            "truncation": "disabled",
            "usage": None if tally is None else self._usage(tally),
            "user": request.user,
            "metadata": request.metadata or {},
        }

    def _usage(self, tally: Tally) -> dict[str, Any]:
        prompt = len(self.chat.ids)
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": tally.cached},
            "output_tokens": tally.num_tokens,
            "output_tokens_details": {"reasoning_tokens": tally.num_thought},
            "total_tokens": prompt + tally.num_tokens,
        }

    def message(self, text: str, status: str) -> dict[str, Any]:
        """The item of the answer's text."""
        content = [{"type": "output_text", "text": text, "annotations": []}] if text else []
        return {
            "type": "message",
            "id": self.item,
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def call(self, call: Call, status: str) -> dict[str, Any]:
        """The item of a call."""
        return {
            "type": "function_call",
            "id": f"fc_{call.id}",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
            "status": status,
        }

    def reasoning(self, text: str) -> dict[str, Any]:
        """The item of its thoughts."""
        content = [{"type": "reasoning_text", "text": text}] if text else []
        return {"type": "reasoning", "id": self.thought, "summary": [], "content": content}


def ask_response(request: ResponseRequest, served: Served) -> AskedResponse:
    """Read a request as a chat.

    Raises
    ------
    ApiError, NanochatError
        If something is wrong with it.
    """
    for name in _REFUSED:
        if getattr(request, name):
            raise ApiError(
                400,
                f"{name} needs a memory that this server has not: leave it out, and send the conversation",
                param=name,
            )
    form = (request.text or {}).get("format", {"type": "text"})
    if isinstance(form, dict) and form.get("type") == "json_schema":
        # Here the schema is not in an object of its own.
        form = {"type": "json_schema", "json_schema": form}
    if not isinstance(form, dict):
        raise ApiError(
            400, f"text.format is {form!r:.80}: pass an object with a type", param="text"
        )
    messages: list[dict[str, Any]] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        messages.append({"role": "user", "content": request.input})
    else:
        for index, item in enumerate(request.input):
            _add(messages, index, item)
    chat = ChatRequest(
        messages=messages,
        model=request.model,
        max_completion_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        stream=request.stream,
        seed=request.seed,
        response_format=form,
        tools=[_tool(number, tool) for number, tool in enumerate(request.tools or [])],
        tool_choice=_choice(request.tool_choice),
        parallel_tool_calls=request.parallel_tool_calls,
    )
    return AskedResponse(request=request, chat=ask_chat(chat, served))


def _tool(number: int, tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as chats declare it."""
    match tool:
        case {"type": "function", **function}:
            return {"type": "function", "function": function}
        case _:
            raise ApiError(
                400, f"tools[{number}] is {tool!r:.80}: only functions are called", param="tools"
            )


def _choice(given: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """A choice of tools as chats have it."""
    match given:
        case {"type": "function", "name": name}:
            return {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools", "mode": mode, "tools": [*tools]}:
            named = [
                {**tool, "function": tool} if isinstance(tool, dict) else tool for tool in tools
            ]
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}
        case _:
            return given


def _add(messages: list[dict[str, Any]], index: int, item: dict[str, Any]) -> None:
    """Add an item of the input to the messages; what the assistant said and called is one of them."""
    match item:
        case {"role": str(role), "content": str(content)}:
            messages.append({"role": role, "content": content})
        case {"role": str(role), "content": [*parts]}:
            text = "".join(_text(index, part) for part in parts)
            messages.append({"role": role, "content": text})
        case {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}:
            function = {"name": name, "arguments": arguments}
            call = {"id": call_id, "type": "function", "function": function}
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            messages[-1].setdefault("tool_calls", []).append(call)
        case {
            "type": "function_call_output",
            "call_id": call_id,
            "output": str() | list() as output,
        }:
            text = (
                output
                if isinstance(output, str)
                else "".join(_text(index, part) for part in output)
            )
            messages.append({"role": "tool", "tool_call_id": call_id, "content": text})
        case {"type": "reasoning"}:
            # Thoughts of earlier turns are the templates' to drop.
            pass
        case _:
            kind = item.get("type", "message")
            raise ApiError(
                400,
                f"input[{index}] of type {kind!r:.40} is no message, nor a call of a function or what came of it",
                param="input",
            )


def _text(index: int, part: object) -> str:
    match part:
        case {"type": "input_text" | "output_text" | "text", "text": str(text)}:
            return text
        case _:
            raise ApiError(
                400, f"input[{index}] has the part {part!r:.80}: only text is read", param="input"
            )


async def response_answer(asked: AskedResponse, answer: Answer) -> dict[str, Any]:
    """The whole answer, as an object of type ``response``."""
    said = await written(answer, asked.chat.new_call_id)
    output = [asked.reasoning(said.thought)] if said.thought else []
    if said.text or not said.calls:
        output.append(asked.message(said.text, "completed"))
    output += [asked.call(call, "completed") for call in said.calls]
    if said.calls and said.tally.finish_reason == "length":
        output[-1]["status"] = "incomplete"
    return asked.body("completed", output, said.tally)


class ResponseEvents:
    """An answer as events, which are numbered and have names."""

    def __init__(self, asked: AskedResponse) -> None:
        self._asked = asked
        self._tally = Tally()
        self._number = 0
        self._output: list[dict[str, Any]] = []
        # The kind of the item that is being written, and its text, or the call that it is.
        self._kind: str | None = None
        self._text = ""
        self._call: Call | None = None

    def begin(self) -> bytes:
        """See `nanochat.serve.api.sse.Translator`."""
        body = self._asked.body("in_progress", [], None)
        return self._event("response.created", response=body) + self._event(
            "response.in_progress", response=body
        )

    def more(self, pieces: Sequence[Piece]) -> bytes:
        """See `nanochat.serve.api.sse.Translator`."""
        found = b""
        for piece in pieces:
            self._tally.count(piece)
        for kind in ("reasoning", "text"):
            if text := "".join(getattr(piece, kind) for piece in pieces):
                found += self._open(kind)
                self._text += text
                found += self._of_item(f"response.{self._part}.delta", delta=text)
        for piece in pieces:
            for part in piece.calls:
                found += self._go_on(part)
        return found

    def end(self) -> bytes:
        """See `nanochat.serve.api.sse.Translator`."""
        found = b"" if self._call is not None else self._open("text")
        found += self._close(is_last=True)
        body = self._asked.body("completed", self._output, self._tally)
        return found + self._event(f"response.{body['status']}", response=body)

    def failed(self, error: Exception) -> bytes:
        """See `nanochat.serve.api.sse.Translator`."""
        told = as_api_error(error, context=self._asked.chat.served.context)
        body = self._asked.body("failed", self._output, None)
        body["error"] = {"code": told.code or told.type, "message": told.message}
        return self._event("response.failed", response=body)

    @property
    def _part(self) -> str:
        return "output_text" if self._kind == "text" else "reasoning_text"

    def _open(self, kind: str) -> bytes:
        """Begin an item of another kind than the one that is being written."""
        if self._kind == kind:
            return b""
        found = self._close()
        self._kind, self._text = kind, ""
        asked = self._asked
        item = asked.message("", "in_progress") if kind == "text" else asked.reasoning("")
        found += self._event(
            "response.output_item.added", output_index=len(self._output), item=item
        )
        return found + self._of_item("response.content_part.added", part=self._content(""))

    def _go_on(self, part: CallPart) -> bytes:
        """Begin a call, or go on with it."""
        found = b""
        if part.name is not None:
            found += self._close()
            self._call = Call(self._asked.chat.new_call_id(), part.name)
            found += self._event(
                "response.output_item.added",
                output_index=len(self._output),
                item=self._asked.call(self._call, "in_progress"),
            )
        assert self._call is not None
        if part.arguments:
            self._call.arguments += part.arguments
            found += self._of_call("delta", self._call, delta=part.arguments)
        return found

    def _close(self, *, is_last: bool = False) -> bytes:
        if self._call is not None:
            call, self._call = self._call, None
            is_cut = is_last and self._tally.finish_reason == "length"
            item = self._asked.call(call, "incomplete" if is_cut else "completed")
            found = self._of_call("done", call, name=call.name, arguments=call.arguments)
            return found + self._done(item)
        if self._kind is None:
            return b""
        found = self._of_item(f"response.{self._part}.done", text=self._text)
        found += self._of_item("response.content_part.done", part=self._content(self._text))
        asked = self._asked
        item = (
            asked.message(self._text, "completed")
            if self._kind == "text"
            else asked.reasoning(self._text)
        )
        self._kind = None
        return found + self._done(item)

    def _done(self, item: dict[str, Any]) -> bytes:
        self._output.append(item)
        index = len(self._output) - 1
        return self._event("response.output_item.done", output_index=index, item=item)

    def _content(self, text: str) -> dict[str, Any]:
        content = {"type": self._part, "text": text}
        return {**content, "annotations": []} if self._kind == "text" else content

    def _of_call(self, kind: str, call: Call, **fields: object) -> bytes:
        item, index = self._asked.call(call, "in_progress"), len(self._output)
        kind = f"response.function_call_arguments.{kind}"
        return self._event(kind, item_id=item["id"], output_index=index, **fields)

    def _of_item(self, kind: str, **fields: object) -> bytes:
        item = self._asked.item if self._kind == "text" else self._asked.thought
        place = {"item_id": item, "output_index": len(self._output), "content_index": 0}
        return self._event(kind, **place, **fields)

    def _event(self, kind: str, **fields: object) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **fields}, kind=kind)
