"""Calls of tools are told as the Responses API and Anthropic's have them, to their makers' own clients."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from nanochat.lm import Model
from nanochat.text.chat import render
from tests.core.test_call_grammar import hermes
from tests.core.tool_models import MARKED, guesser
from tests.serve.here import Here
from tests.serve.processes import post
from tests.serve.tools import NOW, WEATHER, Weather, say

ARGUMENTS = '{"place": {"name": "é\\n\\"", "near": ["a"]}, "unit": "c", "days": 3, "note": null}'
SAID = f"Yes.\n{hermes('weather', ARGUMENTS)}\n{hermes('now', '{}')}"
CALLS = [("weather", json.loads(ARGUMENTS)), ("now", {})]
CLAUDES: list[Any] = [
    {"name": "weather", "description": "It is.", "input_schema": Weather.model_json_schema()},
    {"name": "now", "input_schema": {"type": "object", "properties": {}}},
]
FLAT: list[Any] = [{"type": "function", **one["function"]} for one in (WEATHER, NOW)]


@pytest.fixture
def claude(tool_server: Here) -> Iterator[Any]:
    url = tool_server.url.removesuffix("/v1")
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def message(**fields: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "model": "talker",
        "max_tokens": 300,
        "tools": CLAUDES,
        "messages": [{"role": "user", "content": "Hi"}],
        "extra_body": {"temperature": 0},
    }
    return usual | fields


def response(**fields: Any) -> dict[str, Any]:
    usual = {"model": "talker", "input": "Hi", "tools": FLAT, "temperature": 0}
    return {**usual, "max_output_tokens": 300, **fields}


def used(content: Any) -> list[tuple[str, Any]]:
    return [(block.name, block.input) for block in content if block.type == "tool_use"]


def test_a_message_uses_tools(claude: Any, talker: Model) -> None:
    say(talker, SAID)

    made = claude.messages.create(**message())

    assert [block.type for block in made.content] == ["text", "tool_use", "tool_use"]
    assert made.content[0].text == "Yes."
    assert used(made.content) == CALLS
    assert made.stop_reason == "tool_use"


def test_events_of_a_message_add_up_to_its_blocks(claude: Any, talker: Model) -> None:
    say(talker, SAID)

    with claude.messages.stream(**message()) as stream:
        events = list(stream)
        made = stream.get_final_message()

    assert [block.type for block in made.content] == ["text", "tool_use", "tool_use"]
    assert used(made.content) == CALLS
    assert made.stop_reason == "tool_use"
    starts = [event for event in events if event.type == "content_block_start"]
    assert [event.index for event in starts] == [0, 1, 2]
    assert starts[1].content_block.input == {}
    parts = [event.partial_json for event in events if event.type == "input_json"]
    assert "".join(parts) == ARGUMENTS + "{}"
    assert sum(event.type == "content_block_stop" for event in events) == 3


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, ["now", "now"]),
        ({"type": "any", "disable_parallel_tool_use": True}, ["now"]),
        ({"type": "tool", "name": "weather", "disable_parallel_tool_use": True}, ["weather"]),
        ({"type": "none"}, []),
    ],
    ids=["auto", "any", "tool", "none"],
)
def test_a_message_keeps_to_the_choice(
    claude: Any, talker: Model, choice: Any, expected: list[str]
) -> None:
    say(talker, f"{hermes('now', '{}')}\n{hermes('now', '{}')}")

    made = claude.messages.create(**message(tool_choice=choice))

    assert [name for name, _ in used(made.content)] == expected
    assert made.stop_reason == ("tool_use" if expected else "end_turn")


def test_a_message_that_is_cut_tells_no_half_call(claude: Any, talker: Model) -> None:
    say(talker, hermes("weather", ARGUMENTS))

    made = claude.messages.create(**message(max_tokens=60))

    assert (made.content, made.stop_reason) == ([], "max_tokens")


def test_a_message_goes_on_with_results(claude: Any) -> None:
    turns: Any = [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "text", "text": "Yes."},
                {"type": "tool_use", "id": "toolu_1", "name": "now", "input": {"a": "é"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "And?"},
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "content": [{"type": "text", "text": "9"}],
                },
                {"type": "tool_result", "tool_use_id": "toolu_2", "is_error": True},
            ],
        },
    ]

    made = claude.messages.create(
        **message(model="marked", messages=turns, tools=CLAUDES[1:], max_tokens=2)
    )

    function = {"name": "now", "arguments": {"a": "é"}}
    chat: Any = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes.", "tool_calls": [{"function": function}]},
        {"role": "tool", "content": "9"},
        {"role": "tool", "content": ""},
        {"role": "user", "content": "And?"},
    ]
    declared = {"name": "now", "parameters": CLAUDES[1]["input_schema"]}
    tools = [{"type": "function", "function": declared}]
    assert made.usage.input_tokens == len(render(chat, guesser(MARKED).tokenizer, tools=tools))


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tools": [{"description": "nameless"}]},
        {"tools": [*CLAUDES, CLAUDES[0]]},
        {"tools": [{"name": "now", "input_schema": {"type": "array"}}]},
        {"tool_choice": {"type": "tool"}},
        {"tool_choice": {"type": "tool", "name": "then"}},
        {"tools": [], "tool_choice": {"type": "any"}},
        {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "x"}]}]},
    ],
)
def test_a_message_s_mistakes_are_refused(claude: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(**message(**fields))


def called(output: Any) -> list[tuple[str, Any]]:
    return [(one.name, json.loads(one.arguments)) for one in output if one.type == "function_call"]


def test_a_response_calls_functions(tool_client: openai.OpenAI, talker: Model) -> None:
    say(talker, SAID)

    made = tool_client.responses.create(**response(parallel_tool_calls=True))

    assert [item.type for item in made.output] == ["message", "function_call", "function_call"]
    assert made.output_text == "Yes."
    assert called(made.output) == CALLS
    assert made.status == "completed"
    assert len({item.call_id for item in made.output if item.type == "function_call"}) == 2


def test_events_of_a_response_add_up_to_its_items(
    tool_client: openai.OpenAI, talker: Model
) -> None:
    say(talker, SAID)

    with tool_client.responses.stream(**response()) as stream:
        events: list[Any] = list(stream)
        made = stream.get_final_response()

    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert called(made.output) == CALLS
    parts = ["", "", ""]
    for event in events:
        if event.type == "response.function_call_arguments.delta":
            parts[event.output_index] += event.delta
    assert parts == ["", ARGUMENTS, "{}"]
    done = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert [(event.name, event.arguments) for event in done] == [
        ("weather", ARGUMENTS),
        ("now", "{}"),
    ]
    items: list[Any] = [e.item for e in events if e.type == "response.output_item.done"]
    output: list[Any] = made.output
    assert [item.id for item in items] == [item.id for item in output]
    added = [event.item for event in events if event.type == "response.output_item.added"]
    assert [item.arguments for item in added[1:]] == ["", ""]
    assert {event.item_id for event in done} == {item.id for item in added[1:]}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("required", "now"),
        ("none", None),
        ({"type": "function", "name": "weather"}, "weather"),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "weather"}],
            },
            "weather",
        ),
    ],
    ids=["required", "none", "function", "allowed"],
)
def test_a_response_keeps_to_the_choice(
    tool_client: openai.OpenAI, talker: Model, choice: Any, expected: str | None
) -> None:
    say(talker, f"{hermes('now', '{}')}\n{hermes('now', '{}')}")

    made = tool_client.responses.create(**response(tool_choice=choice, parallel_tool_calls=False))

    assert [name for name, _ in called(made.output)] == ([] if expected is None else [expected])
    assert made.tools[0].type == "function"


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_that_is_cut_has_an_incomplete_call(
    tool_server: Here, talker: Model, stream: bool
) -> None:
    say(talker, hermes("weather", ARGUMENTS))

    answer = post(tool_server, "/v1/responses", response(max_output_tokens=60, stream=stream))

    last = json.loads(answer.body.decode().strip().rpartition("data: ")[2]) if stream else None
    made = answer.json if last is None else last["response"]
    (item,) = made["output"]
    assert (made["status"], item["status"], item["name"]) == ("incomplete", "incomplete", "weather")
    assert ARGUMENTS.startswith(item["arguments"])


def test_a_response_goes_on_with_its_own_items(tool_client: openai.OpenAI, talker: Model) -> None:
    say(talker, f"<think>\nHm</think>\n\n{SAID}")
    first = tool_client.responses.create(**response())
    outputs: Any = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "9"}
        for item in first.output
        if item.type == "function_call"
    ]
    turns: Any = [{"role": "user", "content": "Hi"}, *first.output, *outputs]

    second = tool_client.responses.create(**response(input=turns, max_output_tokens=2))

    calls = [{"function": {"name": name, "arguments": given}} for name, given in CALLS]
    chat: Any = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes.", "tool_calls": calls},
        *({"role": "tool", "content": "9"} for _ in CALLS),
    ]
    tools = [
        {"type": "function", "function": {k: v for k, v in one.items() if k != "type"}}
        for one in FLAT
    ]
    assert first.output[0].type == "reasoning"
    assert second.usage is not None
    assert second.usage.input_tokens == len(render(chat, talker.tokenizer, tools=tools))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "then"}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [1]}}, "tool_choice"),
        ({"input": [{"type": "function_call", "name": "now"}]}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "x"}]}, "input"),
    ],
)
def test_a_response_s_mistakes_are_refused(
    tool_server: Here, fields: dict[str, Any], param: str
) -> None:
    answer = post(tool_server, "/v1/responses", response(**fields))

    assert (answer.status, answer.error["param"]) == (400, param)
