"""This file holds the forms that a request may hold its answer to: JSON, a schema of it, an expression, a grammar.

References
----------
.. [1] OpenAI, API reference, "response_format"; vLLM, "Structured Outputs".
"""

import re
from functools import lru_cache
from typing import Any

import msgspec

from nanochat.errors import InputError
from nanochat.serve.api.errors import ApiError
from nanochat.serve.api.schema import GenerationRequest
from nanochat.serve.served import Served
from nanochat.text.grammar import Grammar, Vocabulary, json_grammar, lark_grammar, regex_grammar

__all__ = ["FORMS", "asked_form", "asked_schema"]

# Fields, of which a request may have one.
FORMS = ("response_format", "structured_outputs", "grammar")

# Schemas that are kept compiled: programs ask for the same again and again.
_KEPT = 64


def asked_form(request: GenerationRequest, served: Served) -> Grammar | None:
    """The form that a request asks for, if it does.

    Raises
    ------
    ApiError
        If it asks for several, or for one that is not known or cannot be compiled.
    """
    given = [name for name in FORMS if getattr(request, name) is not None]
    if len(given) > 1:
        raise ApiError(400, f"{' and '.join(given)}: pass one of them", param=given[1])
    if not given or request.response_format == {"type": "text"}:
        return None
    try:
        return _form(request, served.vocabulary)
    except InputError as error:
        raise ApiError(400, str(error), param=given[0]) from error


def asked_schema(request: GenerationRequest) -> dict[str, Any] | None:
    """The JSON schema of a response format that asks for one, or for any object."""
    match request.response_format:
        case {"type": "json_object"}:
            return {"type": "object"}
        case {"type": "json_schema", "json_schema": {"schema": dict() as schema}}:
            return schema
        case _:
            return None


def _form(request: GenerationRequest, vocabulary: Vocabulary) -> Grammar:
    if request.grammar is not None:
        return _compiled(vocabulary, "grammar", request.grammar)
    if request.structured_outputs is not None:
        return _structured(vocabulary, request.structured_outputs)
    schema = asked_schema(request)
    if schema is None:
        raise ApiError(
            400,
            f"response_format is {request.response_format!r:.200}: types are text, json_object, and json_schema "
            "with a json_schema that holds a schema",
            param="response_format",
        )
    return _compiled(vocabulary, "json", _text(schema))


def _structured(vocabulary: Vocabulary, given: dict[str, Any]) -> Grammar:
    match {name: value for name, value in given.items() if value is not None}:
        case {"json": dict() as schema, **rest} if not rest:
            return _compiled(vocabulary, "json", _text(schema))
        case {"json_object": True, **rest} if not rest:
            return _compiled(vocabulary, "json", "")
        case {"regex": str(expression), **rest} if not rest:
            return _compiled(vocabulary, "regex", expression)
        case {"choice": [*choices], **rest} if choices and not rest and _are_texts(choices):
            return _compiled(vocabulary, "regex", "|".join(map(re.escape, choices)))
        case {"grammar": str(grammar), **rest} if not rest:
            return _compiled(vocabulary, "grammar", grammar)
        case _:
            raise ApiError(
                400,
                "structured_outputs is none of json (a schema), json_object, regex, choice (texts), grammar: pass one",
                param="structured_outputs",
            )


def _are_texts(values: list[object]) -> bool:
    return all(isinstance(value, str) and value for value in values)


def _text(schema: dict[str, Any]) -> str:
    # In its own order, in which properties are written.
    return msgspec.json.encode(schema).decode()


@lru_cache(maxsize=_KEPT)
def _compiled(vocabulary: Vocabulary, kind: str, text: str) -> Grammar:
    if kind == "regex":
        return regex_grammar(vocabulary, text)
    if kind == "grammar":
        return lark_grammar(vocabulary, text)
    return json_grammar(vocabulary, msgspec.json.decode(text) if text else None)
