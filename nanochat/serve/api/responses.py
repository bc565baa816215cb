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
from nanochat.serve.api.said import Tally, written
from nanochat.serve.api.schema import ChatRequest, Count
from nanochat.serve.api.sse import event
from nanochat.serve.engine import Answer
from nanochat.serve.served import Served

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
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    # Beyond OpenAI's.
    seed: int | None = None


# What needs a memory of answers, or what is not served yet.
_REFUSED = ("previous_response_id", "conversation", "background", "tools", "store")


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
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": options["temperature"],
            "text": request.text or {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
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
            why = (
                "is not served yet"
                if name == "tools"
                else "needs a memory that this server has not"
            )
            raise ApiError(
                400, f"{name} {why}: leave it out, and send the conversation", param=name
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
        messages += [_message(index, item) for index, item in enumerate(request.input)]
    chat = ChatRequest(
        messages=messages,
        model=request.model,
        max_completion_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        stream=request.stream,
        seed=request.seed,
        response_format=form,
    )
    return AskedResponse(request=request, chat=ask_chat(chat, served))


def _message(index: int, item: dict[str, Any]) -> dict[str, Any]:
    """An item of the input as a message."""
    match item:
        case {"role": str(role), "content": str(content)}:
            return {"role": role, "content": content}
        case {"role": str(role), "content": [*parts]}:
            return {"role": role, "content": "".join(_text(index, part) for part in parts)}
        case _:
            kind = item.get("type", "message")
            raise ApiError(
                400,
                f"input[{index}] of type {kind!r:.40} is no message with a role and a content of text",
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
    return asked.body("completed", [*output, asked.message(said.text, "completed")], said.tally)


class ResponseEvents:
    """An answer as events, which are numbered and have names."""

    def __init__(self, asked: AskedResponse) -> None:
        self._asked = asked
        self._tally = Tally()
        self._number = 0
        self._output: list[dict[str, Any]] = []
        # The kind of the item that is being written, and its text.
        self._kind: str | None = None
        self._text = ""

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
        return found

    def end(self) -> bytes:
        """See `nanochat.serve.api.sse.Translator`."""
        found = self._open("text") + self._close()
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

    def _close(self) -> bytes:
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
        found += self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._kind = None
        return found

    def _content(self, text: str) -> dict[str, Any]:
        content = {"type": self._part, "text": text}
        return {**content, "annotations": []} if self._kind == "text" else content

    def _of_item(self, kind: str, **fields: object) -> bytes:
        item = self._asked.item if self._kind == "text" else self._asked.thought
        place = {"item_id": item, "output_index": len(self._output), "content_index": 0}
        return self._event(kind, **place, **fields)

    def _event(self, kind: str, **fields: object) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **fields}, kind=kind)
