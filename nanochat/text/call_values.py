"""This file holds arguments of calls by their JSON schemas: which types they may have, and how texts become JSON.

Where a chat template writes an argument between marks, a text stands there as it is, and all else as JSON.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from nanochat.errors import InputError

__all__ = ["COMPOSED", "TEXT", "argument_schema", "as_json", "expressions", "resolved", "types_of"]

# Any text, as an expression of a grammar in the manner of Lark, as are those that follow.
TEXT = "/(?s:.*)/"
_EXPRESSIONS = {
    "null": "/null/",
    "boolean": "/true|false/",
    "integer": "/-?(0|[1-9][0-9]*)/",
    "number": r"/-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/",
}
_TYPES = frozenset([*_EXPRESSIONS, "string", "array", "object"])
# Beside these, whether what is not named may be there cannot be decided for a schema alone.
COMPOSED = {"$ref", "allOf", "anyOf", "oneOf", "patternProperties", "if"}
_MOST_REFERENCES = 32


def argument_schema(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """The schema of the arguments of a function; without one, it has none.

    Arguments that are not named are not written, unless the schema speaks of them.

    Raises
    ------
    InputError
        If it is no schema of objects.
    """
    schema = {"properties": {}} if parameters is None else {**parameters}
    if schema.setdefault("type", "object") != "object":
        raise InputError(f"parameters are of type {schema['type']!r:.80}: arguments are an object")
    if "properties" in schema and not COMPOSED & schema.keys():
        schema.setdefault("additionalProperties", False)
    return schema


def resolved(schema: object, root: Mapping[str, Any]) -> dict[str, Any]:
    """A schema, or the one that it refers to in the whole.

    Raises
    ------
    InputError
        If there is none.
    """
    for _ in range(_MOST_REFERENCES):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            return {**schema} if isinstance(schema, Mapping) else {}
        found: object = root
        for part in str(schema["$ref"]).removeprefix("#/").split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, Mapping) else None
        if found is None:
            break
        schema = found
    raise InputError(f"the JSON schema cannot be used: {schema!r:.80} leads nowhere within it")


def types_of(schema: object, root: Mapping[str, Any], *, depth: int = 0) -> frozenset[str]:
    """The types that values of a schema may have.

    >>> sorted(types_of({"anyOf": [{"type": "string"}, {"const": None}]}, {}))
    ['null', 'string']
    """
    schema = resolved(schema, root)
    found = _TYPES
    named = schema.get("type")
    if isinstance(named, str | list):
        found &= frozenset(map(str, [named] if isinstance(named, str) else named))
    values = _values(schema)
    if values is not None:
        found &= frozenset(map(_type, values))
    for key in ("anyOf", "oneOf", "allOf"):
        parts = schema.get(key)
        if isinstance(parts, list) and parts and depth < _MOST_REFERENCES:
            every = [types_of(part, root, depth=depth + 1) for part in parts]
            joined = frozenset.intersection if key == "allOf" else frozenset.union
            found &= joined(*every)
    return found


def expressions(schema: object, root: Mapping[str, Any], *, depth: int = 0) -> list[str]:
    """What matches values of a schema that has texts, without those that are lists or objects."""
    schema = resolved(schema, root)
    values = _values(schema)
    if values is not None:
        texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
        return [json.dumps(text, ensure_ascii=False) for text in texts if text]
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list) and depth < _MOST_REFERENCES:
            return [
                each for part in schema[key] for each in expressions(part, root, depth=depth + 1)
            ]
    types = types_of(schema, root)
    own = [form for name, form in _EXPRESSIONS.items() if name in types]
    return [*own, _text(schema)] if "string" in types else own


def as_json(text: str, types: frozenset[str]) -> str:
    """The JSON of an argument that was written as a text: that of a text, unless it is JSON of another of its types.

    >>> as_json("5", frozenset(["integer", "string"])), as_json("5", frozenset(["string"]))
    ('5', '"5"')
    """
    if types != {"string"}:
        try:
            value = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            value = text
        # A whole number is a number, too.
        own = {_type(value), "number"} if _type(value) == "integer" else {_type(value)}
        if not isinstance(value, str) and own & types:
            return text.strip()
    return json.dumps(text, ensure_ascii=False)


def _refuse(constant: str) -> float:
    """Python reads NaN and Infinity, which JSON has not."""
    raise ValueError(constant)


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _type(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _text(schema: Mapping[str, Any]) -> str:
    """What matches the texts of a schema."""
    own = [TEXT]
    lengths = {key: schema[key] for key in ("minLength", "maxLength") if key in schema}
    if lengths:
        if not all(isinstance(length, int) for length in lengths.values()):
            raise InputError(f"the JSON schema cannot be used: {lengths!r:.80} are no lengths")
        least, most = lengths.get("minLength", 0), lengths.get("maxLength", "")
        own = [f"/(?s:.{{{least:d},{most}}})/"]
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        own.append(_search(pattern))
    return " & ".join(own)


def _search(pattern: str) -> str:
    """What matches texts in which a regular expression is found."""
    # Signs with their backslashes.
    signs = re.findall(r"(?s)\\.|.", pattern)
    if signs[-1:] == ["\\"]:
        raise InputError(
            f"the JSON schema cannot be used: pattern {pattern!r:.80} ends within an escape: double the last backslash"
        )
    start = "" if signs[:1] == ["^"] else "(?s:.*)"
    end = "" if signs[-1:] == ["$"] else "(?s:.*)"
    inner = signs[not start : len(signs) - (not end)]
    # As they are spelled between slashes, in one line.
    spelled = {"/": r"\/", "\n": r"\n", "\\\n": r"\n"}
    return f"/{start}({''.join(spelled.get(sign, sign) for sign in inner)}){end}/"
