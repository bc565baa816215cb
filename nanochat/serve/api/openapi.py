"""This file holds the description of the server: as OpenAPI for programs, and as a page of tables for people."""

from collections.abc import Mapping
from html import escape
from typing import Any

import msgspec
from msgspec import Struct

from nanochat import __version__

__all__ = ["as_page", "document"]

_REFERENCE = "#/components/schemas/{name}"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def document(
    posts: Mapping[str, type[Struct]], gets: Mapping[str, str], *, root_path: str
) -> dict[str, Any]:
    """The OpenAPI document of some paths.

    Parameters
    ----------
    posts : mapping of str to struct
        The requests of paths that are posted to.
    gets : mapping of str to str
        What the others give, in words.
    """
    references, components = msgspec.json.schema_components(posts.values(), ref_template=_REFERENCE)
    paths: dict[str, Any] = {}
    for (path, kind), reference in zip(posts.items(), references, strict=True):
        paths[path] = {
            "post": {
                "summary": (kind.__doc__ or "").splitlines()[0],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": reference}},
                },
                "responses": _responses("The answer, or its events if stream is true."),
            }
        }
    for path, text in gets.items():
        paths[path] = {"get": {"summary": text, "responses": _responses(text)}}
        if "{" in path:
            paths[path]["get"]["parameters"] = [
                {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
            ]
    return {
        "openapi": "3.1.0",
        "info": {"title": "nanochat-ternary", "version": __version__},
        "servers": [{"url": root_path or "/"}],
        "paths": paths,
        "components": {"schemas": {**components, "Error": _ERROR}},
    }


def _responses(text: str) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": _REFERENCE.format(name="Error")}}}
    return {
        "200": {"description": text},
        "4XX": {"description": "What is wrong with the request.", "content": error},
        "5XX": {"description": "What the server cannot do now.", "content": error},
    }


def as_page(described: Mapping[str, Any]) -> str:
    """An OpenAPI document as a page: each path with the fields of its requests."""
    parts = []
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            parts.append(
                f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>"
            )
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                name = schema["$ref"].rpartition("/")[2]
                parts.append(_table(described["components"]["schemas"][name]))
    title = escape(described["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<h1>{title}</h1>{''.join(parts)}</html>"
    )


def _table(schema: Mapping[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = [
        f"<tr><td><code>{escape(name)}</code><td>{'required' if name in required else ''}"
        f"<td>{escape(_type(field))}"
        for name, field in schema["properties"].items()
    ]
    return f"<table><tr><th>field<th><th>type{''.join(rows)}</table>"


def _type(field: Mapping[str, Any]) -> str:
    """A type in words, without null, which is absent everywhere."""
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"] if one.get("type") != "null")
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "enum" in field:
        return " or ".join(map(str, field["enum"]))
    kind = str(field.get("type", "anything"))
    return f"{kind} of {_type(field['items'])}" if field.get("items") else kind
