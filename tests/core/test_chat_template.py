"""Other people's chat templates render as transformers renders them, cannot be forged, and cannot run away."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from nanochat.errors import FormatError, InputError
from nanochat.text.chat import Message, chat_prompt, render, render_text
from nanochat.text.library import LibraryTokenizer
from nanochat.text.roles import Roles
from nanochat.text.template import render_template
from tests.core.foreign_tokenizers import CHAT_TEMPLATE, llama_3

CONVERSATION: list[Message] = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": " to be? "},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "é🙂 < > |"},
]
TEMPLATES = {
    "llama 3": CHAT_TEMPLATE,
    "loops": (
        "{%- set ns = namespace(last='') %}{% for m in messages %}\n"
        "  {%- if m.role == 'system' %}{% continue %}{% endif %}\n"
        "  {%- set ns.last = m.content %}\n"
        "  {{- loop.index ~ ': ' ~ m.content | upper + '|' }}\n"
        "{%- endfor %}{{ ns.last[:3] }}{{ messages | length }}"
    ),
    "macros": (
        "{% macro turn(m) %}<{{ m.role }}>{{ m.content.strip() }}{% endmacro %}"
        "{% for m in messages | selectattr('role', 'ne', 'system') %}{{ turn(m) }}{% endfor %}"
    ),
    "blocks": (
        "{% set text %}{% for m in messages %}{{ m.content | replace(' ', '_') }}{% endfor %}{% endset %}"
        "{{ text }}{{ messages | tojson }}{{ messages | map(attribute='role') | join(',') }}"
        "{{ '%s-%d' % ('a', 7) }}{{ 'x' * 3 }}{{ 2 ** 5 }}{{ range(4) | list }}"
    ),
    "generation": (
        "{% set x = 1 %}{% for m in messages %}{% generation %}{% set x = 2 %}{{ m.content }}{{ x }}"
        "{% endgeneration %}{{ x }}{%- generation -%}  a  {%- endgeneration -%}{% endfor %}"
    ),
    "json": (
        "{{ messages | tojson(ensure_ascii=True) }}{{ messages | tojson(separators=(',', ':')) }}"
        "{{ messages | tojson(indent=2, sort_keys=True) }}{{ messages | tojson(true, 4) }}{{ '<&>' | tojson }}"
    ),
    "filters": (
        "{{ '%s %05.1f' | format('a', 2.5) }}{{ messages | pprint }}{{ 'a b c d e' | wordwrap(3) }}"
        "{{ 'see https://a.org now' | urlize }}{{ {'a': 1, 'b': none} | xmlattr }}{{ 'ab cd' | title }}"
        "{{ [3, 1, 2] | sort | join(',') }}{{ [1, 2, 3] | batch(2) | list }}{{ 'a' | center(5) }}"
        "{{ [1, 2] | random in [1, 2] }}{{ messages | groupby('role') | map('first') | list }}"
        "{{ '<a>' | striptags | escape }}{{ 3.7 | round | int }}{{ messages | dictsort if false }}"
    ),
    "globals": (
        "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.current }}"
        "{% set j = joiner('|') %}{{ j() }}x{{ j() }}y{{ dict(a=1).items() | list }}{{ dict.fromkeys('ab') }}"
        "{{ namespace(self=1, x=2).x }}{{ lipsum(n=1) | length > 20 }}{{ strftime_now('%Y') | length }}"
    ),
    "tests": (
        "{{ messages is sequence }}{{ messages[0] is mapping }}{{ 'a' is string }}{{ x is defined }}"
        "{{ none is none }}{{ true is boolean }}{{ 4 is divisibleby 2 }}{{ 'a' in 'abc' }}{{ 1 is eq 1 }}"
    ),
    "never taken": (
        "{% if false %}{% include 'other' %}{{ 1 | no_such }}{{ 1 is no_such }}{{ tool.name.x }}{% endif %}"
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}"
    ),
}


def tokenizer(template: str = CHAT_TEMPLATE) -> LibraryTokenizer:

    start, end = map(llama_3().token_to_id, ("<|begin_of_text|>", "<|eot_id|>"))
    roles = Roles(bos=start, eos=end, chat_template=template)
    return LibraryTokenizer(json.loads(llama_3().to_str()), roles)


TOKENIZER = tokenizer()


def plain(template: str, messages: list[Message]) -> str:
    """What transformers makes of a template."""
    texts = render_jinja_template(
        [[*map(dict, messages)]],
        chat_template=template,
        add_generation_prompt=True,
        bos_token="<|begin_of_text|>",
    )
    return texts[0][0]


@pytest.mark.parametrize("name", TEMPLATES)
def test_limits_do_not_change_what_a_template_writes(name: str) -> None:
    text = render_template(
        TEMPLATES[name], CONVERSATION, names={"bos_token": "<|begin_of_text|>"}, reply=True
    )

    assert text == plain(TEMPLATES[name], CONVERSATION)


@pytest.mark.parametrize("reply", [True, False])
def test_a_conversation_has_the_tokens_of_its_text(reply: bool) -> None:
    text = plain(CHAT_TEMPLATE, CONVERSATION)
    if not reply:
        text = text.removesuffix("<|start_header_id|>assistant<|end_header_id|>\n\n")

    tokens = render(CONVERSATION, TOKENIZER, reply=reply)

    assert tokens == llama_3().encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("reply", [True, False])
def test_the_text_of_a_conversation_is_that_of_the_template(reply: bool) -> None:
    named: list[Message] = [*CONVERSATION, {"role": "user", "content": "<|eot_id|> <|eot"}]

    text = render_text(named, TOKENIZER, reply=reply)

    opening = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert text + opening * (not reply) == plain(CHAT_TEMPLATE, named)


NAMES = list(TOKENIZER.specials)


@given(st.lists(st.sampled_from([*"<|> x", *NAMES, "<|eot", "_id|>", "<|start_header_id"])))
def test_no_content_forges_a_turn(parts: list[str]) -> None:
    content = "".join(parts)

    tokens = render([{"role": "user", "content": content}], TOKENIZER)

    specials = [token for token in tokens if token in TOKENIZER.special_ids]
    expected = render([{"role": "user", "content": "x"}], TOKENIZER)
    assert specials == [token for token in expected if token in TOKENIZER.special_ids]
    assert content.strip() in TOKENIZER.decode(tokens)


def test_contents_side_by_side_do_not_make_a_special_token() -> None:
    joined = tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}>")
    messages: list[Message] = [
        {"role": "user", "content": "<|eot"},
        {"role": "user", "content": "_id|>"},
        {"role": "user", "content": "<|eot_id|"},
    ]

    tokens = render(messages, joined)

    assert joined.special_ids.isdisjoint(tokens)
    assert joined.decode(tokens) == "<|eot_id|><|eot_id|>"


def test_what_a_template_begins_no_content_ends() -> None:
    begun = tokenizer("<|eot{% for m in messages %}{{ m.content }}{% endfor %}")

    tokens = render([{"role": "user", "content": "_id|> x"}], begun)

    assert begun.special_ids.isdisjoint(tokens)
    assert begun.decode(tokens) == "<|eot_id|> x"


FORMS = [
    "{{ x }}",
    "{{ [x] }}",
    "{{ x | tojson(ensure_ascii=True) }}",
    "{{ x | tojson(true) | tojson(true) }}",
    "{{ [[x] | string] | string }}",
    "{{ x | pprint | tojson }}",
    "{{ x[1:] }}",
    "{{ x[1:-1] }}",
    "{{ x[:-1] }}",
    "{{ x[:-2] }}",
    "{{ x[:11] }}",
    "{{ x[:12] }}",
    "{{ x | truncate(15) }}",
    "<{{ x }}>",
    "{{ '<' ~ x ~ '>' }}",
    "{{ x }}{{ x }}",
    "{% for k in y %}{{ k }}{% endfor %}",
    "{{ y | tojson }}",
    "{% for k in y %}{{ '<' ~ k ~ '>' }}{% endfor %}",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "content", ["<|eot_id|>", "a <|eot_id|> <|eot", "|eot_id|", "<|eot_id|", "|eot_id|>"]
)
def test_no_form_of_a_content_forges_a_turn(form: str, content: str) -> None:
    template = (
        "{% for m in messages %}{% set x = m.content %}{% set y = m.more %}"
        + form
        + "<|eot_id|>{% endfor %}"
    )
    message: Any = {"role": "user", "content": content, "more": {content: content}}

    tokens = render([message], tokenizer(template))

    assert [token for token in tokens if token in TOKENIZER.special_ids] == tokens[-1:]


def test_a_name_is_data_in_tools_keys_and_variables() -> None:
    name = "<|eot_id|>"
    tools = [{"type": "function", "function": {"name": name, "parameters": {name: name}}}]
    call = {"function": {"name": name, "arguments": {name: [name]}}}
    message: Any = {"role": "assistant", "content": None, "tool_calls": [call], name: name}
    template = "{{ tools | tojson }}{{ messages | tojson }}{{ x }}{{ y | tojson }}"

    tokens = render(
        [message],
        tokenizer(template),
        tools=tools,
        chat_template_kwargs={"x": name, "y": {name: name}},
    )

    assert TOKENIZER.special_ids.isdisjoint(tokens)
    assert TOKENIZER.decode(tokens).count(name) == 11


def test_what_stands_behind_a_word_that_was_cut_off_is_no_reason_to_spell_the_template_s_own() -> (
    None
):
    # As of a model that thinks: its own token, then what its answer is without the thought.
    template = "<|eot_id|>{{ messages[0].content.split('<|end_of_text|>')[-1] }}"

    tokens = render("a<|end_of_text|>b", tokenizer(template))

    assert tokens[0] == TOKENIZER.specials["<|eot_id|>"]
    assert TOKENIZER.decode(tokens) == "b"


def test_a_template_may_look_for_a_name_and_split_at_it() -> None:
    split = tokenizer(
        "{% set c = messages[0].content %}{{ c.split('<|eot_id|>')[1] if '<|eot_id|>' in c }}|"
    )

    assert split.decode(render("a<|eot_id|>b", split)) == "b|"


def test_characters_that_mark_are_chosen_around_those_of_a_message() -> None:
    marks = "".join(chr(0xFDD0 + i) for i in range(32))
    content = marks[:21] + "<|eot_id|>"

    assert TOKENIZER.decode(render(content, TOKENIZER)).endswith(content + "assistant\n\n")
    with pytest.raises(InputError, match="more than 21 of the characters"):
        render(marks[:22], TOKENIZER)


def test_tools_are_data_too() -> None:
    template = "{{ tools | tojson }}{{ x }}"
    tools = [{"type": "function", "function": {"description": "<|eot_id|>"}}]

    tokens = render("a", tokenizer(template), tools=tools, chat_template_kwargs={"x": "<|eot_id|>"})

    assert TOKENIZER.special_ids.isdisjoint(tokens)
    assert TOKENIZER.decode(tokens).count("<|eot_id|>") == 2


def test_a_role_that_the_template_names_is_one() -> None:
    ipython = tokenizer("{% for m in messages %}{{ 'r' if m.role == 'ipython' }}{% endfor %}")

    assert ipython.decode(render([{"role": "ipython", "content": ""}], ipython)) == "r"
    with pytest.raises(InputError, match="did you mean assistant"):
        render([{"role": "asistant", "content": ""}], ipython)


def test_a_model_without_a_template_asks_for_one() -> None:
    with pytest.raises(InputError, match=r"brings no chat template.*pass one as chat_template"):
        render(CONVERSATION, tokenizer(""))


def test_a_template_may_refuse_a_conversation() -> None:
    template = "{{ raise_exception('roles must alternate') }}"

    with pytest.raises(InputError, match="refuses this conversation: roles must alternate"):
        render(CONVERSATION, tokenizer(template))


DOUBLED = "{% set n = namespace(x=[], y=[]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
BOMBS = {
    "doubled lists": DOUBLED + "{{ n.x }}",
    "equal lists": DOUBLED + DOUBLED.replace("x", "z") + "{{ n.x == n.z }}",
    "doubled mappings": DOUBLED.replace("[n.x, n.x]", "{'a': n.x, 'b': n.x}")
    + "{{ n.x | string }}",
    "bytes": "{{ 'x'.encode() * 1500000000 }}",
    "a buffer": (
        "{% set x = 'a' * 900000 %}{% set y %}{% for i in range(1500) %}{{ x }}{% endfor %}{% endset %}"
    ),
    "a macro's buffer": (
        "{% set x = 'a' * 900000 %}{% macro m() %}{% for i in range(1500) %}{{ x }}{% endfor %}{% endmacro %}"
        "{{ m() | length }}"
    ),
    "a fixed text": "{% for i in range(199999) %}" + "a" * 2000 + "{% endfor %}",
    "widths": "{{ ('{0:9999}' * 100000).format(1) }}",
    "named widths": "{{ ('%(a)9999s' * 90000) % {'a': 1} }}",
    "indent": "{{ [[[[1]]]] | tojson(indent=200000) }}",
    "separators": "{{ [1, 2] | tojson(separators=('a' * 99, ':')) }}",
    "negative lorem": "{{ lipsum(n=4000000, min=-1, max=0) }}",
    "slow addresses": "{{ (')' * 20000 ~ 'x)') | urlize }}",
    "slow wraps": "{{ ('a ' * 400000) | wordwrap(1) }}",
    "slow sums": "{{ ([[1]] * 100000) | sum(start=[]) }}",
    "steps": "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "range": "{% for a in range(10 ** 9) %}{% endfor %}",
    "text": "{{ 'a' * 10 ** 10 }}",
    "list": "{% set x = [0] * 10 ** 10 %}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "squares": "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "sums": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "joins": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "blocks": (
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}"
        "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}"
    ),
    "lists": (
        "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{{ n.x | tojson }}"
        "{% endfor %}"
    ),
    "macro": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "caller": "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{{ m() }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "replace": "{% set x = 'a' * 60000 %}{{ x.replace('a', x) }}",
    "filter": "{% set x = 'a' * 60000 %}{{ x | replace('a', x) }}",
    "join": "{% set x = 'a' * 60000 %}{{ range(99999) | join(x) }}",
    "pad": "{{ 'a'.ljust(10 ** 10) }}",
    "center": "{{ 'a' | center(10 ** 10) }}",
    "format": "{{ '{:9999999999}'.format('a') }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "star": "{{ '%*d' % (10 ** 10, 1) }}",
    "output": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "nesting": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "length": "a" * (2**18 + 1),
    "escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "syntax": "{% for %}",
    "missing": "{{ tool.name.x }}",
    "type": "{{ 1 + 'a' }}",
    "include": "{% include 'other' %}",
    "no filter": "{{ 'a' | no_such }}",
    "lorem": "{{ lipsum(n=10 ** 6) }}",
    "wide format": "{{ '%9999999999d' | format(1) }}",
    "hidden": "{{ namespace(__class__=1) }}",
    "keys": (
        "{% set k = 'a' * 60000 %}{% set n = namespace(x={}) %}"
        "{% for i in range(999) %}{% set n.x = {k: n.x} %}{% endfor %}{{ n.x | tojson }}"
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_that_fails_or_takes_too_much_is_an_error(name: str) -> None:
    with pytest.raises(FormatError, match="the model's chat template"):
        render(CONVERSATION, tokenizer(BOMBS[name]))


@pytest.mark.parametrize("name", BOMBS)
def test_a_switch_is_looked_for_in_any_template(name: str) -> None:
    template = BOMBS[name] + "</think>"

    with pytest.raises((FormatError, InputError)):
        chat_prompt(CONVERSATION, TOKENIZER, chat_template=template, thinking=False)
