"""What a model is told of calls that it has made is what its chat template wants to see of them."""

from typing import Any

import pytest

from nanochat.errors import InputError
from nanochat.text.chat import render
from tests.core.real_templates import real_templates
from tests.core.test_chat_template import TOKENIZER, tokenizer

NAME = "<|eot_id|>"
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def turn(arguments: object) -> list[Any]:
    function = {"name": "weather", "arguments": arguments}
    call = {"id": "a1B2c3D4e", "type": "function", "function": function}
    answer = {"role": "tool", "tool_call_id": "a1B2c3D4e", "content": "22"}
    asked = {"role": "user", "content": "Hi"}
    return [asked, {"role": "assistant", "content": "", "tool_calls": [call]}, answer]


@pytest.mark.parametrize("name", ["trl/qwen3", "trl/qwen3_6", "trl/llama3_1", "trl/glm4moe"])
@pytest.mark.parametrize(
    ("text", "arguments"),
    [('{"city": "K\u00f6ln <b>", "days": [1, 2]}', {"city": "Köln <b>", "days": [1, 2]}), ("", {})],
)
def test_arguments_that_are_a_text_are_read(name: str, text: str, arguments: Any) -> None:
    codec = tokenizer(real_templates()[name])

    assert render(turn(text), codec, tools=[TOOL]) == render(turn(arguments), codec, tools=[TOOL])


@pytest.mark.parametrize("arguments", ['{"a": 1}', {"a": 1}], ids=["text", "object"])
def test_a_template_that_wants_their_text_gets_it(arguments: object) -> None:
    codec = tokenizer(real_templates()["trl/deepseekv3"])

    assert '```json\n{"a": 1}\n```' in codec.decode(render(turn(arguments), codec))


@pytest.mark.parametrize(
    "text", ["{", "[]", "1", '"a"', "[" * 100_000, '{"a": ' * 50 + "1" + "}" * 50]
)
def test_arguments_that_are_no_object_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="message 1"):
        render(turn(text), tokenizer(real_templates()["trl/qwen3"]))


@pytest.mark.parametrize("name", ["trl/qwen3", "trl/qwen3_6", "trl/glm4moe"])
def test_a_special_token_s_name_in_arguments_is_text(name: str) -> None:
    codec = tokenizer(real_templates()[name])
    plain = render(turn('{"a": "b"}'), codec)

    tokens = render(turn(f'{{"a": "{NAME}", "b{NAME}": ["{NAME}"]}}'), codec)

    specials = TOKENIZER.special_ids
    assert codec.decode(tokens).count(NAME) == 3
    assert [t for t in tokens if t in specials] == [t for t in plain if t in specials]
