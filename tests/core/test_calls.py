"""Calls are told from the text of an answer, whatever parts it comes in."""

import json
import re
from typing import Any

import pytest

from nanochat.text.call_grammar import Function, calls_grammar
from nanochat.text.call_probe import call_shape
from nanochat.text.call_shape import SPECIAL
from nanochat.text.calls import CallPart, CallSplitter, calls_of
from nanochat.text.chat import render
from tests.core.grammars import allowed_start
from tests.core.real_templates import real_templates
from tests.core.test_call_grammar import FUNCTIONS, hermes, listed, marked
from tests.core.test_call_shape import REAL
from tests.core.test_chat_template import tokenizer
from tests.core.tool_models import BARE, HERMES, LISTED, MARKED, codec

# As special tokens are spelled.
LISTED_CALLS = SPECIAL + listed(("weather", '{"city": "a\\\\"}'), ("weather_now", "{}"))
CASES: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    (HERMES, "Let me see.\n" + hermes("weather", '{"a": "}<tool_call>\\"{"}'), "Let me see.\n",
     [("weather", '{"a": "}<tool_call>\\"{"}')]),
    (HERMES, hermes("a", "{}") + "\n" + hermes("b", '{"c": [{}, "]"]}'), "",
     [("a", "{}"), ("b", '{"c": [{}, "]"]}')]),
    (HERMES, " Nothing <tool_cal <tool", " Nothing <tool_cal <tool", []),
    (HERMES, '<tool_call>\n{"name": "weather", "arguments": {"a": [1, "é', "",
     [("weather", '{"a": [1, "é')]),
    (HERMES, '<tool_call>\n{"name": "weat', "", []),
    (LISTED, LISTED_CALLS, "", [("weather", '{"city": "a\\\\"}'), ("weather_now", "{}")]),
    (LISTED, LISTED_CALLS + "x" * 40 + " {}", "", [("weather", '{"city": "a\\\\"}'), ("weather_now", "{}")]),
    (LISTED, "The text [TOOL_CALLS][{", "The text [TOOL_CALLS][{", []),
    (BARE, '\n{"name": "now", "parameters": {"a": {"b": 1}}}', "", [("now", '{"a": {"b": 1}}')]),
    (BARE, '\u2003{"name": "now", "parameters": {}}', '\u2003{"name": "now", "parameters": {}}', []),
    (BARE, '{"nam": 1} {"name": "', '{"nam": 1} {"name": "', []),
    (BARE, 'Yes: {"name": "now", "parameters": {}}', 'Yes: {"name": "now", "parameters": {}}', []),
    (MARKED, "Yes\n" + marked("weather", city='é\n</parameter \\"<\n', days="3", unit="c"), "Yes\n",
     [("weather", '{"city": "é\\n</parameter \\\\\\"<\\n", "days": 3, "unit": "c"}')]),
    (MARKED, f"{marked('weather_now')}\n{marked('weather', city='', days='4')}", "",
     [("weather_now", "{}"), ("weather", '{"city": "", "days": 4}')]),
    (MARKED, marked("weather", city="null", note="null", tree='{"of": ["</parameter>"]}'), "",
     [("weather", '{"city": "null", "note": null, "tree": {"of": ["</parameter>"]}}')]),
    (MARKED, "<tool_call>\n<function=weather>\n<parameter=city>\nPar\n</para", "",
     [("weather", '{"city": "Par')]),
]  # fmt: skip


def split(template: str, parts: list[str]) -> tuple[str, list[CallPart], bool]:
    """Text, calls and whether all of these are whole."""
    splitter = CallSplitter(calls_of(call_shape(template, codec(template)), FUNCTIONS))
    said = ""
    calls: list[CallPart] = []
    for part in parts:
        text, found = splitter.push(part)
        said += text
        calls += found
    return said + splitter.flush(), calls, splitter.is_whole


def joined(parts: list[CallPart]) -> list[tuple[str, str]]:
    """The name and the arguments of each call."""
    found: list[tuple[str, str]] = []
    for part in parts:
        if part.name is not None:
            assert part.number == len(found)
            found.append((part.name, ""))
        name, arguments = found[part.number]
        found[part.number] = (name, arguments + part.arguments)
    return found


@pytest.mark.parametrize(("template", "text", "said", "calls"), CASES)
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_text_and_calls_are_told_apart(
    template: str, text: str, said: str, calls: list[tuple[str, str]], size: int
) -> None:
    parts = [text[start : start + size] for start in range(0, len(text), size)]

    found, found_calls, _ = split(template, parts)

    assert found.rstrip("\n") == said.rstrip("\n")
    assert joined(found_calls) == calls


@pytest.mark.parametrize(
    ("text", "is_whole"),
    [
        ("Yes.", False),
        ('<tool_call>\n{"name": "', False),
        ('<tool_call>\n{"name": "now", "arguments": {', False),
        ('<tool_call>\n{"name": "now", "arguments": {}', True),
        (f"{hermes('now', '{}')}\n<tool_call>\n{{", True),
        (f'{hermes("now", "{}")}\n<tool_call>\n{{"name": "now", "arguments"', False),
    ],
)
def test_calls_are_whole_if_all_have_all_arguments(text: str, is_whole: bool) -> None:
    assert split(HERMES, [text])[2] is is_whole


def test_a_name_comes_before_arguments_and_these_as_soon_as_they_are_known() -> None:
    text = marked("weather", city="Paris", tree="[1]", note="no")

    _, parts, _ = split(MARKED, [*text])

    assert [part.arguments for part in parts] == [
        "{", '"city": "', "P", "a", "r", "i", "s", '"', ', "tree": ', "[", "1", "]",
        ', "note": ', '"no"', "}",
    ]  # fmt: skip
    assert [part.name for part in parts] == ["weather"] + [None] * (len(parts) - 1)


def test_json_among_marks_may_hold_them() -> None:
    template = real_templates()["trl/glm4moe"]
    shape = call_shape(template, tokenizer(template))
    texts = {"properties": {"a": {"type": "array", "items": {"type": "string"}}}}
    functions = [Function(name="f", parameters=texts)]
    value = '["</arg_value>\\n", "<b>"]'

    _, parts = CallSplitter(calls_of(shape, functions)).push(
        f"<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>"
    )

    assert joined([*parts]) == [("f", f'{{"a": {value}}}')]


CONTENT = {"properties": {"a": {"type": "string"}}, "additionalProperties": False}


@pytest.mark.parametrize("size", [1, 1000])
def test_a_mark_in_an_answer_that_is_json_is_text(size: int) -> None:
    text = '{"a":"<tool_call>\\n{!name!: weather_now, {}}"}'
    shape = call_shape(HERMES, codec(HERMES))
    grammar = calls_grammar(
        shape, FUNCTIONS, codec(HERMES), choice="auto", several=True, thought=None, content=CONTENT
    )
    splitter = CallSplitter(calls_of(shape, FUNCTIONS, content=CONTENT))

    found = [splitter.push(text[start : start + size]) for start in range(0, len(text), size)]

    assert allowed_start(grammar, codec(HERMES), text) == text + "."
    assert ("".join(said for said, _ in found), splitter.is_whole) == (text, False)
    assert not any(parts for _, parts in found)


@pytest.mark.parametrize("blank", ["", "\n"])
def test_a_call_in_the_place_of_an_answer_that_is_json_is_found(blank: str) -> None:
    shape = call_shape(HERMES, codec(HERMES))
    splitter = CallSplitter(calls_of(shape, FUNCTIONS, content=CONTENT))

    found = [splitter.push(character) for character in blank + hermes("weather_now", "{}")]

    assert "".join(said for said, _ in found) == ""
    assert joined([part for _, parts in found for part in parts]) == [("weather_now", "{}")]


def test_arguments_may_follow_a_name_at_once() -> None:
    template = HERMES.replace(
        '\n{"name": "{{ c.function.name }}", "arguments": ', "{{ c.function.name }}"
    ).replace("}}}\n</tool", "}}</tool")
    first, second = (
        '<tool_call>weather{"a": {}}</tool_call>',
        "<tool_call>weather_now{}</tool_call>",
    )

    said, parts, is_whole = split(template, [f"Yes. {first}\n{second}"])

    assert (said, is_whole) == ("Yes. ", True)
    assert joined(parts) == [("weather", '{"a": {}}'), ("weather_now", "{}")]


def test_a_call_s_number_before_its_name_is_skipped() -> None:
    template = HERMES.replace('{"name"', '{"id": "{{ c.id }}", "name"')
    plain = "\n".join((hermes("weather_now", "{}"), hermes("weather", '{"a": 1}')))
    text = plain.replace('{"name"', '{"id": "a1B2c3D4e5F6g7H", "name"')

    said, parts, is_whole = split(template, [*text])

    assert (said, is_whole) == ("", True)
    assert joined(parts) == [("weather_now", "{}"), ("weather", '{"a": 1}')]


# Names of this model's and of other models' tokens.
_END = re.compile(r"<\|(?:im_end|eom|eot_id|endofturn)\|>|</s>")
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("weather", {"city": 'Köln "<b>" \\ 🙂\n\n', "unit": "f", "days": 3}),
    ("weather_now", {}),
    ("weather", {"city": "", "days": 9, "tree": {"of": [{}, {"of": []}]}}),
]


@pytest.mark.parametrize("name", [*REAL, "axolotl/jamba", "trl/nemotron_3_nano"])
@pytest.mark.parametrize("content", ["", "Let me see."])
def test_what_a_real_template_writes_of_calls_is_taken_and_read_as_what_it_was(
    name: str, content: str
) -> None:
    template = real_templates()[name]
    ours = tokenizer(template)
    shape = call_shape(template, ours)
    calls = CALLS if shape.between is not None else CALLS[2:]
    if not shape.mark:
        content = ""
    asked: Any = {"role": "user", "content": "Hi"}
    made = [
        {"id": f"a1B2c3D4{i}", "type": "function", "function": {"name": name, "arguments": given}}
        for i, (name, given) in enumerate(calls)
    ]
    said: Any = {"role": "assistant", "content": content, "tool_calls": made}
    function = {"name": "f", "description": "declared by us", "parameters": {}}
    tools = [{"type": "function", "function": function}]
    whole = ours.decode(render([asked, said], ours, reply=False, tools=tools), skip_specials=False)
    # Some write no text beside calls. The tools may have such marks, too.
    content = content if content in whole else ""
    answer = whole[whole.index("Hi", whole.rindex("declared by us")) :]
    text = _END.split(answer[answer.index(content or shape.opening[:6]) :])[0].rstrip("\n")
    grammar = calls_grammar(
        shape, FUNCTIONS, ours, choice="auto", several=True, thought=None, content=None
    )

    taken = allowed_start(grammar, ours, text)
    found = CallSplitter(calls_of(shape, FUNCTIONS))
    shown, parts = found.push(text)

    assert taken.removesuffix(".").rstrip("\n") == text
    assert shown.strip() == content
    assert [(name, json.loads(given)) for name, given in joined([*parts])] == calls
