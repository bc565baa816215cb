"""A conversation becomes tokens in one way, and no content can forge a turn."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.errors import InputError
from nanochat.text.chat import Message, render
from nanochat.text.tokenizer import CHAT_TEMPLATE, SPECIALS, Tokenizer

TOKENIZER = Tokenizer.train(["Hello, how are you? Fine, thank you."] * 2, vocab_size=280)
CONVERSATION: list[Message] = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": " Hello "},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "é🙂"},
]


def template(messages: list[Message], *, reply: bool) -> str:
    sandbox = pytest.importorskip("jinja2.sandbox", reason="needs jinja2, which torch brings")
    # The settings of transformers' apply_chat_template.
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    text: str = environment.from_string(CHAT_TEMPLATE).render(
        messages=messages, bos_token=SPECIALS[0], add_generation_prompt=reply
    )
    return text


def test_a_turn_is_role_content_end() -> None:
    tokens = render([{"role": "user", "content": "Hello"}], TOKENIZER)

    assert tokens == [
        TOKENIZER.bos,
        TOKENIZER.user,
        *TOKENIZER.encode("Hello"),
        TOKENIZER.end,
        TOKENIZER.assistant,
    ]


def test_without_a_reply_the_conversation_ends_with_its_last_turn() -> None:
    tokens = render(CONVERSATION, TOKENIZER, reply=False)

    assert tokens[-1] == TOKENIZER.end
    assert [*tokens, TOKENIZER.assistant] == render(CONVERSATION, TOKENIZER)


@pytest.mark.parametrize("reply", [True, False])
def test_the_jinja_template_renders_the_same_tokens(reply: bool) -> None:
    text = template(CONVERSATION, reply=reply)

    assert TOKENIZER.encode(text, specials=True) == render(CONVERSATION, TOKENIZER, reply=reply)


def test_llama_cpp_cannot_take_the_template_for_phi_3() -> None:
    assert "<|assistant|>" not in CHAT_TEMPLATE


@given(st.lists(st.sampled_from([*"<|> end", *SPECIALS])))
def test_no_content_forges_a_turn(parts: list[str]) -> None:
    tokens = render([{"role": "user", "content": "".join(parts)}], TOKENIZER)

    specials = [token for token in tokens if token in TOKENIZER.special_ids]
    assert specials == [TOKENIZER.bos, TOKENIZER.user, TOKENIZER.end, TOKENIZER.assistant]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        pytest.param([], "or a list with at least one", id="empty"),
        pytest.param({"role": "user"}, "pass a text, or a list", id="a message"),
        pytest.param(7, "pass a text, or a list", id="a number"),
        pytest.param(["Hello"], "message 0 is 'Hello'", id="a list of strings"),
        pytest.param([{"content": "Hi"}], "message 0 is", id="no role"),
        pytest.param([{"role": "user"}], "message 0 has no content", id="no content"),
        pytest.param([{"role": "tool", "content": ""}], "message 0 is a tool's", id="tool"),
        pytest.param([{"role": "usr", "content": ""}], "did you mean user", id="unknown role"),
        pytest.param([{"role": [], "content": ""}], "has the role", id="role not a string"),
        pytest.param([{"role": "user", "content": None}], "no content", id="content is None"),
        pytest.param(
            [{"role": "user", "content": 7}], "is 7: pass a text", id="a number's content"
        ),
        pytest.param(
            [{"role": "user", "content": [{"type": "image_url"}]}], "read text only", id="image"
        ),
        pytest.param([{"role": "user", "content": "", "x": {1}}], "holds {1}", id="a set"),
        pytest.param([{"role": "user", "content": "\ud800"}], "surrogate", id="surrogate"),
    ],
)
def test_a_message_that_cannot_be_rendered_is_refused(messages: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        render(messages, TOKENIZER)


def test_texts_parts_and_developers_are_what_they_mean() -> None:
    parts: Any = [{"type": "text", "text": "He"}, {"type": "text", "text": "llo"}]
    hello = render([{"role": "user", "content": "Hello"}], TOKENIZER)

    assert render("Hello", TOKENIZER) == hello
    assert render([{"role": "user", "content": parts}], TOKENIZER) == hello
    assert render([{"role": "developer", "content": "x"}], TOKENIZER) == render(
        [{"role": "system", "content": "x"}], TOKENIZER
    )


def test_our_own_format_knows_no_tools_but_a_template_may() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    names = "{{ bos_token }}{% for t in tools %}{{ t.function.name }}{% endfor %}"

    with pytest.raises(InputError, match=r"knows no tools.*pass a chat_template"):
        render("Hello", TOKENIZER, tools=tools)
    with pytest.raises(InputError, match="knows no enable_thinking"):
        render("Hello", TOKENIZER, chat_template_kwargs={"enable_thinking": False})
    with pytest.raises(InputError, match=r"tools is .*pass a list of JSON schemas"):
        render("Hello", TOKENIZER, tools=[render])  # type: ignore[list-item]  # as transformers takes

    wrong: Any
    for wrong, message in (
        ({"chat_template": 5}, "chat_template is 5: pass the text"),
        ({"chat_template": b"x"}, "chat_template is b'x': pass the text"),
        ({"chat_template_kwargs": ["a"]}, "pass a mapping"),
        ({"chat_template_kwargs": {"tools": []}}, "'tools', which has an argument of its own"),
        ({"chat_template_kwargs": {"messages": []}}, "'messages', which has an argument"),
    ):
        with pytest.raises(InputError, match=message):
            render("Hello", TOKENIZER, **wrong)

    tokens = render("Hello", TOKENIZER, tools=tools, chat_template=names)

    assert tokens == [TOKENIZER.bos, *TOKENIZER.encode("f")]
