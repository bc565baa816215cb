"""A model is told of the calls that it has made, and its pieces tell what it calls."""

import json
from typing import Any

import pytest

from nanochat.errors import InputError
from nanochat.generation.options import Piece
from nanochat.generation.session import generate
from nanochat.lm import Model
from nanochat.text.call_grammar import Function, calls_grammar
from nanochat.text.call_probe import call_shape
from nanochat.text.calls import calls_of
from nanochat.text.chat import chat_prompt, render
from nanochat.text.grammar import Vocabulary, lark_grammar
from tests.core.real_templates import real_templates
from tests.core.test_call_grammar import hermes, listed
from tests.core.test_chat_template import TOKENIZER, tokenizer
from tests.core.tool_models import BARE, HERMES, LISTED, MARKED, THINKER, THINKING, guesser, parrot

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


SHORT = {
    "properties": {
        "city": {"type": "string", "maxLength": 9},
        "days": {"type": "array", "items": {"enum": [1, 22]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["city"],
}
FUNCTIONS = [Function(name="weather", parameters=SHORT), Function(name="now", parameters={})]


def pieces(model: Model, choice: Any = "auto", **options: Any) -> list[Piece]:
    """What a model says to a question, with tools."""
    codec = model.tokenizer
    prompt = chat_prompt("Hi", codec, tools=[TOOL])
    shape = call_shape(codec.chat_template, codec)
    grammar = calls_grammar(
        shape, FUNCTIONS, codec, choice=choice, several=True, thought=None, content=None
    )
    usual: dict[str, Any] = {
        "constraint": lark_grammar(Vocabulary(codec), grammar),
        "calls": calls_of(shape, FUNCTIONS),
        "thoughts": prompt.thoughts,
        "max_tokens": 200,
    }
    return list(generate(model.engine, codec, [prompt.ids], **{**usual, **options}))


def told(found: list[Piece]) -> tuple[str, list[tuple[str, str]], str | None]:
    """The text, the calls, and the reason of the end."""
    calls: list[tuple[str, str]] = []
    for part in (part for piece in found for part in piece.calls):
        if part.name is not None:
            calls.append((part.name, ""))
        calls[-1] = (calls[-1][0], calls[-1][1] + part.arguments)
    return "".join(piece.text for piece in found), calls, found[-1].finish_reason


CALL = ("weather", '{"city": "<b>\\n\\"}", "days": [22]}')


@pytest.mark.parametrize(
    ("template", "call"),
    [
        (HERMES, hermes(*CALL)),
        (LISTED, listed(CALL)),
        (
            MARKED,
            '<tool_call>\n<function=weather>\n<parameter=city>\n<b>\n"}\n</parameter>\n<parameter=days>\n'
            "[22]\n</parameter>\n</function>\n</tool_call>",
        ),
    ],
    ids=["hermes", "listed", "marked"],
)
@pytest.mark.parametrize(("before", "text"), [("", ""), ("Yes é.\n", "Yes é."), ("\n\n", "")])
def test_a_call_comes_after_its_text_and_ends_the_answer(
    template: str, call: str, before: str, text: str
) -> None:
    found = pieces(parrot(template, before + call))

    assert told(found) == (text, [CALL], "tool_calls")


def test_bare_json_is_a_call_where_the_answer_begins() -> None:
    call = f'{{"name": "weather", "parameters": {CALL[1]}}}'

    assert told(pieces(parrot(BARE, call))) == ("", [CALL], "tool_calls")
    assert told(pieces(parrot(BARE, f"Yes: {call}"))) == (f"Yes: {call}", [], "stop")


def test_a_text_without_a_call_keeps_its_white_space() -> None:
    text = "\n Yes,  <tool_cal \n"

    assert told(pieces(parrot(HERMES, text))) == (text, [], "stop")
    assert told(pieces(parrot(HERMES, "Yes <tool_cal")))[0] == "Yes <tool_cal"
    assert told(pieces(parrot(HERMES, "Yes. \nNo"), stop=["No"])) == ("Yes. \n", [], "stop")
    assert told(pieces(parrot(HERMES, "abc \n d"), max_tokens=5))[0] == "abc \n"


def test_strings_stop_a_text_and_no_call() -> None:
    model = parrot(HERMES, f"Let me see.\n{hermes(*CALL)}")

    assert told(pieces(model, stop=["city", "<b>", 'n"'])) == ("Let me see.", [CALL], "tool_calls")
    assert told(pieces(model, stop=["see"])) == ("Let me ", [], "stop")
    # What may begin a string is shown once a call has begun.
    assert told(pieces(model, stop=["see.\n<x"]))[:2] == ("Let me see.", [CALL])


def test_a_call_that_is_cut_is_told_as_far_as_it_came() -> None:
    whole = parrot(HERMES, hermes(*CALL))
    length = len(pieces(whole))
    assert length == len(whole.tokenizer.encode(hermes(*CALL))) + 1

    for count in (*range(1, length, 9), length - 2, length - 1):
        text, calls, reason = told(pieces(whole, max_tokens=count))

        assert (text, reason) == ("", "length")
        assert not calls or (calls[0][0] == "weather" and CALL[1].startswith(calls[0][1]))


def test_a_token_that_ends_a_text_within_a_call_leaves_no_whole_one() -> None:
    model = parrot(HERMES, hermes(*CALL))
    (brace,) = model.tokenizer.encode("[")

    assert told(pieces(model, stop_token_ids=[brace]))[1:] == (
        [("weather", CALL[1].partition("22")[0])],
        "stop",
    )


def test_a_call_is_made_behind_a_thought_and_none_within() -> None:
    inner = hermes("now", "{}")
    model = parrot(THINKING, f"Hm {inner}</think>\n\n{hermes(*CALL)}")

    for choice in ("auto", "required"):
        found = pieces(model, choice)

        assert told(found) == ("", [CALL], "tool_calls")
        assert "".join(piece.reasoning for piece in found) == f"Hm {inner}"


def test_a_call_is_made_behind_a_thought_that_the_model_begins() -> None:
    inner = hermes("now", "{}")
    model = parrot(THINKER, f"<think>\nHm {inner}</think>\n\nYes.\n{hermes(*CALL)}")

    found = pieces(model)

    assert told(found) == ("Yes.", [CALL], "tool_calls")
    assert "".join(piece.reasoning for piece in found) == f"Hm {inner}"


def test_a_special_token_in_a_thought_is_no_mark() -> None:
    thinking = (
        LISTED.replace("%}assistant", "%}assistant").replace(
            "assistant<|end_header_id|>{%", "assistant<|end_header_id|><think>{%"
        )
        + "{# </think> #}"
    )
    inner = "Hm [TOOL_CALLS][{</think>\n"

    found = pieces(parrot(thinking, inner + listed(CALL)))

    assert told(found) == ("", [CALL], "tool_calls")
    assert "".join(piece.reasoning for piece in found) == "Hm [{"


@pytest.mark.parametrize("template", [HERMES, LISTED, BARE, MARKED], ids=["h", "l", "b", "m"])
def test_what_a_model_guesses_within_a_grammar_is_of_its_schema(template: str) -> None:
    ended = 0
    for seed in range(6):
        text, calls, reason = told(
            pieces(guesser(template), "required", temperature=1.0, seed=seed, max_tokens=150)
        )

        if reason == "tool_calls":
            ended += 1
            assert (text, calls != []) == ("", True)
            for name, arguments in calls:
                given = json.loads(arguments)
                assert name == "now" or given["city"] == given["city"][:9]
                assert {*given.get("days", [1])} <= {1, 22} or name == "now"
    assert ended > 1


@pytest.mark.parametrize("template", [HERMES, LISTED, MARKED], ids=["h", "l", "m"])
def test_guessed_tokens_change_no_call(template: str) -> None:
    model, accepted = guesser(template), 0
    for seed in range(3):
        options: dict[str, Any] = {"temperature": 1.0, "seed": seed, "max_tokens": 100}
        plain = pieces(model, "required", **options)

        drafted = pieces(model, "required", draft=True, **options)

        assert told(drafted) == told(plain)
        assert [piece.token for piece in drafted] == [piece.token for piece in plain]
        accepted += drafted[-1].accepted
    assert accepted > 0
