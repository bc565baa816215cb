"""This file holds the requests that the server takes: their fields, types and defaults.

``null`` means absent everywhere. Fields that nobody knows are ignored, those that are known and wrong are refused with
their names. What values a field may have is checked where it is used: see `nanochat.generation.options`.

References
----------
.. [1] OpenAI, API reference, "Create chat completion", "Create completion", "Create embeddings".
.. [2] vLLM, "OpenAI-Compatible Server", for the fields that OpenAI has not.
"""

import json
import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from nanochat.serve.api.errors import ApiError

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "EmbeddingRequest",
    "GenerationRequest",
    "Prompt",
    "TokenizeRequest",
    "read_request",
]

Request = TypeVar("Request", bound=Struct)

_MOST_STOPS = 16
Stop = str | Annotated[list[str], Meta(max_length=_MOST_STOPS)] | None
# A text, texts, tokens, or lists of tokens; which of these is seen where it is used.
Prompt = str | list[str | int | list[int]]
Count = Annotated[int, Meta(ge=0)]


class StreamOptions(Struct, kw_only=True):
    """How an answer is streamed."""

    include_usage: bool | None = None


class GenerationRequest(Struct, kw_only=True):
    """What may be asked of any text."""

    model: str | None = None
    max_tokens: Count | None = None
    min_tokens: Count | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    seed: int | None = None
    stop: Stop = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: str | None = None
    # What the text may say; changes the time that it takes.
    prediction: dict[str, Any] | None = None
    # A form of the answer, by one of these; the second as vLLM names it.
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    grammar: str | None = None
    # Taken, and of no effect here.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class ChatRequest(GenerationRequest, kw_only=True):
    """A conversation to be answered."""

    messages: list[dict[str, Any]]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    thinking_budget: Count | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class CompletionRequest(GenerationRequest, kw_only=True):
    """Texts to be continued."""

    prompt: Prompt
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None


class EmbeddingRequest(Struct, kw_only=True):
    """Texts to be turned into vectors."""

    input: Prompt
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    pooling: Literal["mean", "last"] | None = None
    user: str | None = None


class TokenizeRequest(Struct, kw_only=True):
    """A text or a conversation to be turned into tokens."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None


class DetokenizeRequest(Struct, kw_only=True):
    """Tokens to be turned into a text."""

    tokens: list[int]
    model: str | None = None


def read_request(body: bytes, kind: type[Request]) -> tuple[Request, list[str]]:
    """The request in a body, and the names of fields that it has not.

    Raises
    ------
    ApiError
        If the body is no JSON object, or a field has another type.
    """
    try:
        fields = json.loads(
            body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_object
        )
    except (ValueError, RecursionError) as error:
        reason = f"the body is no valid JSON ({error!s:.200}): send one object"
        raise ApiError(400, reason) from error
    if not isinstance(fields, dict):
        raise ApiError(400, f"the body is {type(fields).__name__} in JSON: send one object")
    given = {name: value for name, value in fields.items() if value is not None}
    known = kind.__struct_fields__
    if b"\\ud" in body.lower():
        _refuse_halves(given)
    try:
        request = msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        param = re.split(r"[.[]", where.rstrip("`"))[0] or None
        missing = what.removeprefix("Object missing required field ").strip("`")
        if param is None and missing in known:
            param = missing
        raise ApiError(400, f"{param or 'the body'}: {what}", param=param) from error
    return request, sorted(given.keys() - set(known))


def _refuse_halves(fields: dict[str, Any]) -> None:
    """Refuse texts with half a character, which escapes of JSON can write, and nobody can send back."""
    for name, value in fields.items():
        try:
            json.dumps([name, value], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ApiError(
                400,
                f"{name!a:.40} holds a lone surrogate, {error.object[error.start]!a}, which is half a character: send "
                "whole ones",
                param=name if name.isascii() else None,
            ) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {name!r:.80} is there twice")
            seen.add(name)
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
