"""Answers that are held to a form have it, and are to the token those of the model here."""

import json
import re
from typing import Any

import openai
import pytest

from nanochat.lm import Model
from nanochat.text.grammar import Vocabulary, json_grammar
from tests.serve.processes import Process, post

CHAT = "/v1/chat/completions"
MESSAGES: Any = [{"role": "user", "content": "hi"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["cat", "dog"]},
        "legs": {"type": "integer", "minimum": 2, "maximum": 8},
    },
    "required": ["name", "kind", "legs"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA}}


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_keeps_to_a_schema(
    client: openai.OpenAI, model: Model, temperature: float, stream: bool
) -> None:
    options: dict[str, Any] = {"max_tokens": 80, "temperature": temperature, "seed": 4}
    answer: Any = client.chat.completions.create(
        model="nanochat-tiny", messages=MESSAGES, response_format=FORMAT, stream=stream, **options
    )
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        text = answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "stop"

    value = json.loads(text)
    assert value["kind"] in ("cat", "dog")
    assert 2 <= value["legs"] <= 8
    form = json_grammar(Vocabulary(model.tokenizer), SCHEMA)
    assert text == model.chat(MESSAGES, constraint=form, **options)


def test_choices_and_log_probabilities_are_given_within_a_form(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="nanochat-tiny",
        messages=MESSAGES,
        response_format=FORMAT,
        n=3,
        logprobs=True,
        max_tokens=80,
    )

    for choice in answer.choices:
        assert json.loads(choice.message.content or "")["kind"] in ("cat", "dog")
        assert choice.logprobs is not None
        told = b"".join(bytes(one.bytes or ()) for one in choice.logprobs.content or [])
        assert told.decode() == choice.message.content


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"structured_outputs": {"regex": "[a-c]{3}-[0-9]+;"}}, "[a-c]{3}-[0-9]+;"),
        ({"structured_outputs": {"choice": ["yes", "no (maybe)"]}}, "yes|no \\(maybe\\)"),
        ({"structured_outputs": {"json": {"const": [1, 2]}}}, "\\[1,2\\]"),
        ({"structured_outputs": {"grammar": 'start: "a"+ "b"'}}, "a+b"),
        ({"grammar": 'start: ("x" | "yz")+ "."'}, "(x|yz)+\\."),
    ],
)
def test_expressions_choices_and_grammars_are_kept_to(
    server: Process, fields: dict[str, Any], pattern: str
) -> None:
    for path, body in ((CHAT, {"messages": MESSAGES}), ("/v1/completions", {"prompt": "x"})):
        answer = post(server, path, {**body, **fields, "max_tokens": 200, "seed": 1}).json

        (choice,) = answer["choices"]
        text = choice.get("text") or choice["message"]["content"]
        assert choice["finish_reason"] == "length" or re.fullmatch(pattern, text)


def test_a_response_keeps_to_a_schema(client: openai.OpenAI) -> None:
    made = client.responses.create(
        model="nanochat-tiny",
        input="hi",
        text={"format": {"type": "json_schema", "name": "animal", "schema": SCHEMA}},
        max_output_tokens=80,
    )

    assert json.loads(made.output_text)["kind"] in ("cat", "dog")


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": {"type": "xml"}}, "response_format", "types are text, json_object"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "holds a schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 1}}}},
            "response_format",
            "type must be a string",
        ),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs", "unclosed group"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs", "pass one"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs", "pass one"),
        ({"grammar": "start: NOTHING"}, "grammar", "cannot be used"),
        ({"grammar": "x" * 200_000}, "grammar", "pass 100000 or less"),
        ({"grammar": 'start: "a"', "structured_outputs": {}}, "grammar", "pass one of them"),
        ({"tools": [{"type": "function"}]}, "tools", "chat template knows none"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_form_that_cannot_be_is_refused(
    server: Process, fields: dict[str, Any], param: str, message: str
) -> None:
    answer = post(server, CHAT, {"messages": MESSAGES, **fields})

    assert (answer.status, answer.error["param"]) == (400, param)
    assert message in answer.error["message"]


def test_a_deep_schema_is_refused_or_served_and_the_next_request_answered(server: Process) -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(400):
        schema = {"type": "array", "items": schema, "maxItems": 2}
    body = {"messages": MESSAGES, "max_tokens": 3, "structured_outputs": {"json": schema}}

    assert post(server, CHAT, body).status in (200, 400)
    assert post(server, CHAT, {"messages": MESSAGES, "max_tokens": 3}).status == 200
