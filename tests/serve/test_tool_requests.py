"""Tools that are wrong are refused with the field that is, and none makes the server fail."""

import json
from http.client import HTTPConnection
from typing import Any

import numpy as np
import pytest

from tests.serve.here import Here
from tests.serve.processes import post
from tests.serve.test_fuzz import changed
from tests.serve.tools import ASKED, CHAT, HI, NOW, WEATHER, tool

WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("none", {}, "tools", "its chat template knows none"),
    ("hermes", {"tools": [{"type": "web_search"}]}, "tools", "a function with a name"),
    (
        "hermes",
        {"tools": [{"type": "function", "function": {}}]},
        "tools",
        "a function with a name",
    ),
    ("hermes", {"tools": [tool("a b")]}, "tools", "1 to 64 letters"),
    ("hermes", {"tools": [tool("a" * 65)]}, "tools", "1 to 64 letters"),
    ("hermes", {"tools": [tool("")]}, "tools", "1 to 64 letters"),
    ("hermes", {"tools": [NOW, WEATHER, NOW]}, "tools", "tools[2] is a second function 'now'"),
    ("hermes", {"tools": [tool(f"f{i}") for i in range(129)]}, "tools", "pass 128 or less"),
    ("hermes", {"tools": [tool("f", [1])]}, "tools", "no dict"),
    ("hermes", {"tools": [tool("f", {"type": "array"})]}, "tools", "function 'f': parameters are"),
    (
        "hermes",
        {"tools": [NOW, tool("f", {"properties": {"a": {"type": "hiccup"}}})]},
        "tools",
        "function 'f': the grammar",
    ),
    (
        "hermes",
        {"tools": [tool("f", {"properties": {"a": {"const": "x" * 100_000}}})]},
        "tools",
        "bytes",
    ),
    ("hermes", {"tools": [tool("f", {"properties": {"\ud800": {}}})]}, "tools", "half a character"),
    ("marked", {"tools": [tool("f", {"anyOf": [{}]})]}, "tools", "pass parameters with properties"),
    ("hermes", {"tool_choice": "any"}, "tool_choice", "pass none, auto, required"),
    ("hermes", {"tool_choice": {"type": "function"}}, "tool_choice", "pass none, auto, required"),
    (
        "hermes",
        {"tool_choice": {"type": "function", "function": {"name": "then"}}},
        "tool_choice",
        "'then', which tools have not",
    ),
    ("hermes", {"tools": None, "tool_choice": "required"}, "tool_choice", "without tools"),
    ("hermes", {"tools": [], "tool_choice": "auto"}, "tool_choice", "without tools"),
    ("hermes", {"parallel_tool_calls": "no"}, "parallel_tool_calls", "Expected `bool"),
    ("hermes", {"grammar": 'start: "a"'}, "grammar", "pass one of both"),
    ("bare", {"response_format": {"type": "json_object"}}, "response_format", "pass one of both"),
    (
        "hermes",
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "now", "arguments": "{"}}],
                }
            ]
        },
        "messages",
        "pass an object of JSON",
    ),
]


@pytest.mark.parametrize(("model", "fields", "param", "message"), WRONG)
def test_what_is_wrong_is_refused_with_its_field(
    tool_server: Here, model: str, fields: dict[str, Any], param: str, message: str
) -> None:
    answer = post(tool_server, CHAT, {**ASKED, "model": model, **fields})

    assert (answer.status, answer.error["param"]) == (400, param)
    assert message in answer.error["message"]


def test_a_deep_schema_is_refused_and_the_next_request_answered(tool_server: Here) -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(400):
        schema = {"type": "object", "properties": {"a": schema}}

    refused = post(tool_server, CHAT, {**ASKED, "model": "hermes", "tools": [tool("f", schema)]})

    assert (refused.status, refused.error["param"]) == (400, "tools")
    assert post(tool_server, CHAT, {**ASKED, "model": "hermes", "max_tokens": 2}).status == 200


@pytest.mark.parametrize("model", ["hermes", "marked"])
def test_changed_requests_are_answered_or_refused(tool_server: Here, model: str) -> None:
    turns = [
        *HI,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "x", "type": "function", "function": {"name": "now", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "x", "content": "9"},
    ]
    usual = {**ASKED, "messages": turns, "tool_choice": "required", "parallel_tool_calls": True}
    generator = np.random.default_rng(2)
    statuses = {200: 0, 400: 0}
    connection = HTTPConnection("127.0.0.1", tool_server.port, timeout=60)
    for _ in range(30):
        body: Any = usual
        for _ in range(generator.integers(1, 3)):
            body = changed(body, generator)
        if isinstance(body, dict):
            body = {**body, "model": model, "max_tokens": 3}
        connection.request("POST", CHAT, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        assert response.status in (200, 400), (response.status, body, content[:300])
        statuses[response.status] += 1
    connection.close()

    assert min(statuses.values()) > 0
