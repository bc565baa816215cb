"""This file holds conversations as callers give them, checked: messages, and the tools that a model may ask for."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Required, TypedDict

from nanochat.errors import InputError, did_you_mean

__all__ = [
    "Message",
    "TextPart",
    "answer_message",
    "checked_messages",
    "checked_tools",
    "plain",
    "text_of",
    "with_argument_texts",
    "with_texts",
]

_ROLES = ("system", "developer", "user", "assistant", "tool")
_REASONING = ("reasoning_content", "thinking", "reasoning")
_MAX_DEPTH = 32


class TextPart(TypedDict):
    """A part of a message's content, as OpenAI's clients send it."""

    type: Literal["text"]
    text: str


class Message(TypedDict, total=False):
    """One turn of a conversation, as OpenAI's clients write it; names of special tokens in it are text.

    Attributes
    ----------
    role : str
        "system", "developer", "user", "assistant", "tool", or another that the model's chat template names.
    content : str, list of TextPart, or None
        What is said; may be absent beside tool calls.
    reasoning_content : str
        What the assistant thought before it spoke.
    tool_calls : list of mapping
        What the assistant asked for.
    name, tool_call_id : str
        Of a tool's answer.
    """

    role: Required[str]
    content: str | Sequence[TextPart] | None
    reasoning_content: str
    tool_calls: Sequence[Mapping[str, Any]]
    name: str
    tool_call_id: str


def checked_messages(messages: object, *, template: str = "") -> list[dict[str, object]]:
    """Return a conversation as plain data, or a text as its only message; refuse what is none.

    As in transformers, what is None counts as absent, and reasoning has all of its names. Arguments of calls that are
    JSON in a text, as OpenAI's clients send them, become what they say.

    Parameters
    ----------
    template : str
        The chat template, which may name further roles.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if (
        not isinstance(messages, Iterable)
        or isinstance(messages, Mapping)
        or not (every := [*messages])
    ):
        raise InputError(
            f"messages is {messages!r:.80}: pass a text, or a list with at least one "
            '{"role": "user", "content": "..."}'
        )
    return [_checked(index, message, template) for index, message in enumerate(every)]


def answer_message(content: str, reasoning: str) -> Message:
    """What an assistant said, and thought before, as a turn of the conversation; templates drop thoughts themselves."""
    message: Message = {"role": "assistant", "content": content}
    return {**message, "reasoning_content": reasoning} if reasoning else message


def checked_tools(tools: object) -> list[object] | None:
    """Return tools as plain data, or None if there is none."""
    if tools is None:
        return None
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise InputError(
            f"tools is {tools!r:.80}: pass a list of JSON schemas, each "
            '{"type": "function", "function": {"name": ..., "parameters": ...}}'
        )
    return [plain(tool, "tools") for tool in tools] or None


def text_of(content: object) -> str:
    """The text of a content, whose parts stand side by side."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content if isinstance(content, str) else ""


def with_texts(messages: Iterable[Mapping[str, object]]) -> list[dict[str, object]]:
    """The messages with a text for every content."""
    return [
        {**message, "content": text_of(message["content"])} if "content" in message else {**message}
        for message in messages
    ]


def with_argument_texts(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with JSON in a text for the arguments of every call."""
    return [
        {**message, "tool_calls": [_with_arguments(call, _json_text) for call in calls]}
        if isinstance(calls := message.get("tool_calls"), list)
        else {**message}
        for message in messages
    ]


def plain(value: object, where: str, depth: int = 0) -> object:
    """Return a copy that has JSON's types only: what a template sees has no methods of anybody else's."""
    match value:
        case None | bool():
            return value
        case str() | int() | float():
            # A class derived from one of them stays behind.
            return next(kind(value) for kind in (str, int, float) if isinstance(value, kind))
        case Mapping() if depth < _MAX_DEPTH and all(isinstance(key, str) for key in value):
            return {str(key): plain(item, where, depth + 1) for key, item in value.items()}
        case list() | tuple() if depth < _MAX_DEPTH:
            return [plain(item, where, depth + 1) for item in value]
        case _:
            raise InputError(
                f"{where} holds {value!r:.80}: pass only texts, numbers, lists and mappings of them, nested at most "
                f"{_MAX_DEPTH} deep"
            )


def _checked(index: int, message: object, template: str) -> dict[str, object]:
    where = f"message {index}"
    if not isinstance(message, Mapping) or "role" not in message:
        raise InputError(f'{where} is {message!r:.80}: pass {{"role": "user", "content": "..."}}')
    _require_role(where, message["role"], template)
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        raise InputError(f"{where} has no content: pass a text")
    if isinstance(content, list | tuple):
        content = [_part(where, part) for part in content]
    elif content is not None and not isinstance(content, str):
        raise InputError(
            f"the content of {where} is {content!r:.80}: pass a text, or a list of "
            '{"type": "text", "text": "..."}'
        )
    fields = {str(key): plain(value, where) for key, value in message.items() if key != "content"}
    found = {
        key: value for key, value in {**fields, "content": content}.items() if value is not None
    }
    if isinstance(calls := found.get("tool_calls"), list):
        read = partial(_read_arguments, where)
        found["tool_calls"] = [_with_arguments(call, read) for call in calls]
    reasoning = next((found[key] for key in _REASONING if key in found), None)
    if reasoning is not None:
        found = {"thinking": reasoning, **found, "reasoning_content": reasoning}
    return found


def _with_arguments(call: Any, change: Callable[[object], object]) -> object:
    """A call with other arguments, which are its own or those of its function."""
    match call:
        case {"function": {"arguments": arguments} as function}:
            return {**call, "function": {**function, "arguments": change(arguments)}}
        case {"arguments": arguments}:
            return {**call, "arguments": change(arguments)}
        case _:
            return call


def _json_text(arguments: object) -> object:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _read_arguments(where: str, arguments: object) -> object:
    if not isinstance(arguments, str):
        return arguments
    try:
        # Some clients send nothing for none.
        read = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise InputError(
            f"{where} calls a function with the arguments {arguments!r:.80}: pass an object of JSON"
        )
    return plain(read, where)


def _require_role(where: str, role: object, template: str) -> None:
    if isinstance(role, str) and (
        role in _ROLES or re.search(rf"""(['"]){re.escape(role)}\1""", template)
    ):
        return
    raise InputError(
        f"{where} has the role {role!r:.40}{did_you_mean(role, _ROLES)}: use one of {', '.join(_ROLES)}, or another "
        "that the model's chat template names"
    )


def _part(where: str, part: object) -> dict[str, str]:
    match part:
        case {"type": "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case str(text):
            return {"type": "text", "text": text}
        case _:
            raise InputError(
                f"the content of {where} has the part {part!r:.80}: these models read text only, "
                '{"type": "text", "text": "..."}'
            )
