"""This file holds arguments of calls by their JSON schemas: which types they may have, and how texts become JSON.

Where a chat template writes an argument between marks, a text stands there as it is, and all else as JSON.
"""

import itertools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from nanochat.errors import InputError

__all__ = ["COMPOSED", "TEXT", "Schemas", "argument_schema", "as_json"]

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
_MOST_LEVELS = 32
_Found = TypeVar("_Found")


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


class Schemas:
    """The schemas within a whole one, to which they may refer.

    What is found of one that is referred to is kept: where each of n refers to the next twice, the last would be read
    2^n times.

    Examples
    --------
    >>> sorted(Schemas({}).types({"anyOf": [{"type": "string"}, {"const": None}]}))
    ['null', 'string']
    """

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._types: dict[str, frozenset[str]] = {}
        self._forms: dict[str, list[str]] = {}

    def resolved(self, schema: object) -> dict[str, Any]:
        """A schema, or the one that it refers to.

        Raises
        ------
        InputError
            If there is none.
        """
        for _ in range(_MOST_LEVELS):
            if not isinstance(schema, Mapping) or "$ref" not in schema:
                return {**schema} if isinstance(schema, Mapping) else {}
            found: object = self._root
            for part in str(schema["$ref"]).removeprefix("#/").split("/"):
                name = part.replace("~1", "/").replace("~0", "~")
                found = found.get(name) if isinstance(found, Mapping) else None
            if found is None:
                break
            schema = found
        raise InputError(f"the JSON schema cannot be used: {schema!r:.80} leads nowhere within it")

    def types(self, schema: object) -> frozenset[str]:
        """The types that values of a schema may have.

        Raises
        ------
        InputError
            If it chooses among others that choose, and so on, for too long, or for ever.
        """
        return self._once(self._types, self._types_of, schema, 0)

    def expressions(self, schema: object) -> list[str]:
        """What matches values of a schema that has texts, without those that are lists or objects; raises the same."""
        return self._once(self._forms, self._forms_of, schema, 0)

    def _once(
        self,
        known: dict[str, _Found],
        find: Callable[[dict[str, Any], int], _Found],
        schema: object,
        level: int,
    ) -> _Found:
        if level > _MOST_LEVELS:
            raise InputError(
                f"the JSON schema cannot be used: {schema!r:.80} is a choice within others without an end, or more "
                f"than {_MOST_LEVELS} deep: write anyOf, oneOf and allOf in fewer levels"
            )
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            return find(self.resolved(schema), level)
        reference = str(schema["$ref"])
        if reference not in known:
            known[reference] = find(self.resolved(schema), level)
        return known[reference]

    def _types_of(self, schema: dict[str, Any], level: int) -> frozenset[str]:
        found = _TYPES
        named = schema.get("type")
        if isinstance(named, str | list):
            found &= frozenset(map(str, [named] if isinstance(named, str) else named))
        values = _values(schema)
        if values is not None:
            found &= frozenset(map(_type, values))
        for key in ("anyOf", "oneOf", "allOf"):
            parts = schema.get(key)
            if isinstance(parts, list) and parts:
                every = [self._once(self._types, self._types_of, part, level + 1) for part in parts]
                joined = frozenset.intersection if key == "allOf" else frozenset.union
                found &= joined(*every)
        return found

    def _forms_of(self, schema: dict[str, Any], level: int) -> list[str]:
        values = _values(schema)
        if values is not None:
            texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
            return [json.dumps(text, ensure_ascii=False) for text in texts if text]
        for key in ("anyOf", "oneOf"):
            parts = schema.get(key)
            if isinstance(parts, list):
                every = (self._once(self._forms, self._forms_of, part, level + 1) for part in parts)
                return [*dict.fromkeys(itertools.chain.from_iterable(every))]
        types = self._types_of(schema, level)
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
