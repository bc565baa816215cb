"""This file holds Anthropic's Messages API as a translation of chats.

References
----------
.. [1] Anthropic, API reference, "Messages", "Streaming messages" and "Errors".
"""

from collections.abc import Mapping, Sequence
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
    reason = "max_tokens" if tally.finish_reason == "length" else "end_turn"
    return {"stop_reason": reason, "stop_sequence": None}


def ask_message(request: MessageRequest, served: Served) -> AskedMessage:
    """Read a request as a chat.

    Raises
    ------
    ApiError, NanochatError
        If something is wrong with it.
    """
    if request.tools:
        raise ApiError(400, "tools is not served yet: leave it out", param="tools")
    messages: list[dict[str, Any]] = []
    if request.system:
        messages.append({"role": "system", "content": _text("system", request.system)})
    for index, message in enumerate(request.messages):
        match message:
            case {"role": "user" | "assistant" as role, "content": str() | list() as content}:
                messages.append({"role": role, "content": _text(f"messages[{index}]", content)})
            case _:
                raise ApiError(
                    400,
                    f"messages[{index}] is {message!r:.80}: roles are user and assistant, and contents text",
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
    chat = ChatRequest(
        messages=messages,
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
    return asked.body([*content, {"type": "text", "text": said.text}], said.tally)


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
        return found

    def end(self) -> bytes:
        """See `nanochat.serve.api.sse.Translator`."""
        found = self._open("text") + self._close()
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
