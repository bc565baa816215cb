"""A grammar of calls takes what is declared, as a chat template writes it, and nothing else."""

from typing import Any

import pytest

from nanochat.errors import InputError
from nanochat.text.call_grammar import Function, calls_grammar
from nanochat.text.call_probe import call_shape
from tests.core.grammars import allowed_start
from tests.core.tool_models import BARE, HERMES, LISTED, MARKED, codec

TREE = {"type": "object", "properties": {"of": {"type": "array", "items": {"$ref": "#/$defs/t"}}}}
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"enum": ["c", "f"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "note": {"anyOf": [{"type": "string", "maxLength": 4, "pattern": "^a/"}, {"type": "null"}]},
        "tree": {"$ref": "#/$defs/t"},
    },
    "required": ["city", "days"],
    "$defs": {"t": TREE},
}
FUNCTIONS = [
    Function(name="weather", parameters=WEATHER),
    Function(name="weather_now", parameters={"properties": {}}),
]


def taken(template: str, text: str, **options: Any) -> str:
    """As much of a text as the grammar of a template takes."""
    tokenizer = codec(template)
    usual: dict[str, Any] = {"choice": "auto", "several": True, "thought": None, "content": None}
    functions = options.pop("functions", FUNCTIONS)
    shape = call_shape(template, tokenizer)
    grammar = calls_grammar(shape, functions, tokenizer, **{**usual, **options})
    return allowed_start(grammar, tokenizer, text)


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def listed(*calls: tuple[str, str]) -> str:
    every = (f'{{"name": "{n}", "arguments": {a}, "id": "a1B2c3D4e"}}' for n, a in calls)
    return f"[TOOL_CALLS][{', '.join(every)}]"


def marked(name: str, **arguments: str) -> str:
    every = (f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{''.join(every)}</function>\n</tool_call>"


ARGUMENTS = '{"city": "a<tool_call>\\"}", "days": 3, "tree": {"of": [{}, {"of": []}]}}'
WHOLE = [
    (HERMES, hermes("weather", ARGUMENTS)),
    (HERMES, f"Let me see.\n{hermes('weather_now', '{}')}\n{hermes('weather', ARGUMENTS)}"),
    (HERMES, "No call, though <tool_cal and a <b>."),
    (LISTED, listed(("weather", ARGUMENTS))),
    (LISTED, "é" + listed(("weather_now", "{}"), ("weather", ARGUMENTS))),
    (LISTED, "The text [TOOL_CALLS is none.".replace("S is", "S  is")),
    (BARE, f'{{"name": "weather", "parameters": {ARGUMENTS}}}'),
    (BARE, '{"name": 1} {"name": "weather"'),
    (BARE, f'\n \t{{"name": "weather", "parameters": {ARGUMENTS}}}'),
    (BARE, '\n\u2003{"name": "evil"'),
    (MARKED, marked("weather", city="a\n</parameter\n>\n <b> é", days="3")),
    (MARKED, marked("weather", city="", unit="f", days="9", note="a/b", tree='{"of": [{}]}')),
    (
        MARKED,
        f"Yes.\n{marked('weather_now')}\n{marked('weather', city='x', days='1', note='null')}",
    ),
]


@pytest.mark.parametrize(("template", "text"), WHOLE)
def test_what_is_declared_is_taken(template: str, text: str) -> None:
    assert taken(template, text) == text + "."


PARTS = [
    (HERMES, hermes("weather", '{"city": "a", "days": |12}')),
    (HERMES, hermes("weather", '{"city": "a"|}')),
    (HERMES, hermes("weather", '{"city": "a", "|other": 1}')),
    (HERMES, hermes("weather", '{"city": | "a", "days": 1}')),
    (HERMES, hermes("weather_no|o", "{}")),
    (HERMES, hermes("weather_now", "{}").replace(": ", ":|", 1)),
    (HERMES, f"{hermes('weather_now', '{}')}.|, and more"),
    (LISTED, listed(("weather_now", '{|"a": 1}'))),
    (LISTED, listed(("weather_now", "{}")).replace("4e", "|-e")),
    (BARE, '{"name": "weather_now", "parameters": {}}.|{'),
    (BARE, '\n\n{"name": "|evil", "parameters": {}}'),
    (MARKED, marked("weather", city="x", days="1|2")),
    (MARKED, marked("weather", city="x", unit="|g", days="1")),
    (MARKED, marked("weather", city="x", days="1", note="a/bc|d")),
    (MARKED, marked("weather", city="x", days="1", note="|b/")),
    (MARKED, marked("weather", days="1", city="x").replace("days", "|days", 1)),
    (MARKED, marked("weather", city="x").replace("</function", "<|/function")),
    (MARKED, marked("weather_now", city="x").replace("<parameter", "<|parameter")),
]


@pytest.mark.parametrize(("template", "text"), PARTS)
def test_what_is_not_declared_ends_where_it_differs(template: str, text: str) -> None:
    start, _, rest = text.partition("|")
    is_whole = start.endswith(".")

    found = taken(template, start.removesuffix(".") + rest)

    # A token may have begun before the first character that is wrong.
    assert start.startswith(found.removesuffix(".")) or found == start
    assert len(found) >= len(start) - 4
    assert found.endswith(".") == is_whole


def test_a_text_that_is_too_short_cannot_end_and_go_on() -> None:
    long = {"properties": {"a": {"type": "string", "minLength": 30}}}
    short, whole = marked("f", a="x" * 9), marked("f", a="x" * 30)
    functions = [Function(name="f", parameters=long)]

    found = taken(MARKED, short, functions=functions)

    assert found in (short.partition("parameter>\n</f")[0] + end for end in ("", "parameter"))
    assert taken(MARKED, whole, functions=functions) == whole + "."


@pytest.mark.parametrize(
    ("template", "text"),
    [(HERMES, hermes("weather_now", "{}")), (LISTED, listed(("weather_now", "{}")))],
)
def test_none_takes_text_and_no_call(template: str, text: str) -> None:
    found = taken(template, f"Yes. {text}", choice="none")

    assert text.startswith(found.removeprefix("Yes. ").removesuffix("."))
    assert len(found) < len("Yes. <tool_call>")
    assert taken(template, "Yes.", choice="none") == "Yes.."


def test_none_of_bare_json_takes_other_json() -> None:
    assert taken(BARE, '{"nam": "weather"}', choice="none") == '{"nam": "weather"}.'
    assert taken(BARE, '{"name": "weather"', choice="none") == '{"name": .'
    assert taken(BARE, '\n {"name": "weather"', choice="none") == '\n {"name": .'


@pytest.mark.parametrize("template", [HERMES, LISTED, BARE, MARKED])
@pytest.mark.parametrize("gap", ["", "\n", "\n\n"])
def test_a_call_that_is_required_comes_first(template: str, gap: str) -> None:
    call = {
        HERMES: hermes("weather_now", "{}"),
        LISTED: listed(("weather_now", "{}")),
        BARE: '{"name": "weather_now", "parameters": {}}',
        MARKED: marked("weather_now"),
    }[template]

    assert taken(template, gap + call, choice="required") == gap + call + "."
    assert taken(template, "Yes. " + call, choice="required") == ""
    assert taken(template, "\n\n\n" + call, choice="required") in ("\n", "\n\n")


def test_a_second_call_is_taken_only_if_several_may_be() -> None:
    once = hermes("weather_now", "{}")

    assert taken(HERMES, f"{once}\n{once}", several=False) == once + "."


def test_a_number_may_stand_before_a_name() -> None:
    template = HERMES.replace('{"name"', '{"id": "{{ c.id }}", "name"')
    once = hermes("weather_now", "{}").replace('{"name"', '{"id": "a1B2c3D4e5F6g7H", "name"')
    short = once.replace("F6g7H", "")

    assert taken(template, f"Yes.\n{once}\n{once}") == f"Yes.\n{once}\n{once}."
    assert '", "name"' not in taken(template, short)


def test_a_thought_may_come_before_what_is_required() -> None:
    call = f"<think>\n\n{hermes('weather_now', '{}')}"

    assert taken(HERMES, call, choice="required", thought="<think>") == call + "."
    assert taken(HERMES, call, choice="required") == ""


def test_a_special_token_opens_a_thought_only_where_it_is_named() -> None:
    text = "<|start_header_id|>\nYes"

    assert taken(HERMES, text, thought="<|start_header_id|>") == text + "."
    assert taken(HERMES, text) == "."


def test_what_calls_nothing_may_be_kept_to_a_schema() -> None:
    content = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    call = hermes("weather_now", "{}")

    assert taken(HERMES, '{"a":1}', content=content) == '{"a":1}.'
    assert taken(HERMES, call, content=content) == call + "."
    assert taken(HERMES, f"Yes. {call}", content=content) == ""


@pytest.mark.parametrize(
    ("parameters", "text", "expected"),
    [
        ({"type": "object"}, '{"any": [1]}', True),
        ({}, '{"any": [1]}', True),
        ({"properties": {"a": {}}}, '{"a": null}', True),
        ({"properties": {"a": {}}}, '{"b": 1}', False),
        ({"properties": {"a": {}}, "additionalProperties": {"type": "integer"}}, '{"b": 1}', True),
        ({"$ref": "#/$defs/o", "$defs": {"o": {"properties": {"a": {}}}}}, '{"a": 1}', True),
        ({"anyOf": [{"properties": {"a": {"const": 1}}}]}, '{"a": 1}', True),
    ],
)
def test_arguments_that_are_not_named_are_written_if_the_schema_says_so(
    parameters: dict[str, Any], text: str, expected: bool
) -> None:
    call = hermes("f", text)

    found = taken(HERMES, call, functions=[Function(name="f", parameters=parameters)])

    assert (found == call + ".") is expected


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (r"^[0-9]+\$", "12$, at most", True),
        (r"^[0-9]+\$", "12", False),
        (r"^[0-9]+\$$", "12$", True),
        (r"^[0-9]+\$$", "12$, at most", False),
        (r"^a\\$", "a\\", True),
        (r"^a\\$", "a\\b", False),
        (r"\^a/b", "1 ^a/b", True),
        ("^a\n\\\nb$", "a\n\nb", True),
    ],
)
def test_signs_of_a_pattern_keep_their_backslashes(pattern: str, text: str, expected: bool) -> None:
    parameters = {"properties": {"a": {"type": "string", "pattern": pattern}}}
    call = marked("f", a=text)

    found = taken(MARKED, call, functions=[Function(name="f", parameters=parameters)])

    assert (found == call + ".") is expected


@pytest.mark.parametrize("template", [HERMES, MARKED])
@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "array"},
        {"type": "object", "properties": {"a": {"type": "hiccup"}}},
        {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"type": "integer", "not": {"const": 1}}}},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}},
        # What is put behind it must not complete it.
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "a)\\"}}},
    ],
)
def test_schemas_that_are_wrong_are_refused(template: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        taken(template, "", functions=[Function(name="f", parameters=parameters)])


ENDLESS = {"$ref": "#/$defs/a"}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"properties": {"a": {}}, "required": ["b"]}, "pass parameters with properties"),
        ({"anyOf": [{"properties": {"a": {}}}]}, "pass parameters with properties"),
        ({"properties": {"a>\n": {}}}, "pass parameters with properties"),
        ({"properties": {"a": {}}, "required": [["a"]]}, "pass parameters with properties"),
        ({"properties": {"a": {"type": "string", "maxLength": "9})/ | /("}}}, "are no lengths"),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, "leads nowhere"),
        (
            {"properties": {"a": ENDLESS}, "$defs": {"a": {"anyOf": [ENDLESS] * 2}}},
            "without an end",
        ),
        ({"properties": {"a": {"type": "array", "items": {"$ref": "#"}}}}, "refers to all of them"),
    ],
)
def test_arguments_between_marks_need_names_and_schemas_of_their_own(
    parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        taken(MARKED, "", functions=[Function(name="f", parameters=parameters)])
