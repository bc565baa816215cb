"""Chat templates of real models give the text and the tokens that transformers gives."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from nanochat.errors import NanochatError
from nanochat.text.chat import render
from nanochat.text.messages import checked_messages
from nanochat.text.template import render_template
from tests.core.foreign_tokenizers import llama_3
from tests.core.real_templates import real_templates
from tests.core.test_chat_template import tokenizer

NAMES = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Paris", "days": 3}},
}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather <b>é</b>",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "A city"}},
                "required": ["city"],
            },
        },
    }
]
HI = {"role": "user", "content": "Hi"}
# Messages, and what else a template may be given.
CONVERSATIONS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "turns": (
        [
            {"role": "user", "content": " Hi é🙂 <b> "},
            {"role": "assistant", "content": "Hello\n"},
            {"role": "user", "content": "Why?"},
        ],
        {},
    ),
    "system": ([{"role": "system", "content": "Be brief."}, HI], {}),
    "developer": ([{"role": "developer", "content": "Be brief."}, HI], {}),
    "parts": (
        [{"role": "user", "content": [{"type": "text", "text": t} for t in ("Hi", " you")]}],
        {},
    ),
    "tools": ([HI], {"tools": TOOLS}),
    "call": (
        [
            HI,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": "22"},
        ],
        {"tools": TOOLS},
    ),
    "thinking": (
        [
            HI,
            {
                "role": "assistant",
                "reasoning_content": "Hm.",
                "content": "<think>\na\n</think>\n\nYes",
            },
            {"role": "user", "content": "b"},
        ],
        {"enable_thinking": False},
    ),
}


# Thoughts in two forms, and calls of tools, over several turns; every beginning of it is a conversation.
TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather in Paris?"},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "\nI need the tool.\n",
        "tool_calls": [
            CALL,
            {
                "id": "x2",
                "type": "function",
                "function": {
                    "name": "weather",
                    "arguments": {
                        "city": "Köln <b>",
                        "days": [1, 2],
                        "deep": {"a": None, "b": True},
                    },
                },
            },
        ],
    },
    {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": "22"},
    {"role": "tool", "tool_call_id": "x2", "name": "weather", "content": '{"t": 7}'},
    {"role": "assistant", "content": "\nIt is 22.\n", "reasoning_content": "Now I know."},
    {"role": "user", "content": "And <think> tomorrow?"},
    {
        "role": "assistant",
        "content": "<think>\nAgain.\n</think>\n\nLet me see.",
        "tool_calls": [CALL],
    },
    {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": "21"},
]
THINKERS = [name for name in real_templates() if "qwen3" in name]


def test_qwen_3_and_3_5_are_among_them() -> None:
    assert {"trl/qwen3", "trl/qwen3_5_think", "trl/qwen3_6", "axolotl/qwen3_5"} <= {*THINKERS}


@pytest.mark.parametrize("name", THINKERS)
@pytest.mark.parametrize(
    "options",
    [{}, {"enable_thinking": True}, {"enable_thinking": False}, {"preserve_thinking": True}],
    ids=["default", "thinking", "not thinking", "preserved"],
)
def test_thoughts_and_calls_over_several_turns(name: str, options: dict[str, Any]) -> None:
    template = real_templates()[name]
    ours = tokenizer(template)
    theirs = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # it has no types
        tokenizer_object=llama_3(), chat_template=template, **NAMES
    )
    for length in range(2, len(TURNS) + 1):
        turns: Any = TURNS[:length]
        tools: Any = TOOLS
        for reply in (True, False):
            ids = theirs.apply_chat_template(
                turns, add_generation_prompt=reply, return_dict=False, tools=tools, **options
            )

            found = render(turns, ours, reply=reply, tools=TOOLS, chat_template_kwargs=options)

            assert found == ids, (length, reply)


def test_there_are_many() -> None:
    assert len(real_templates()) > 100


@pytest.mark.parametrize("name", real_templates())
def test_real_template(name: str) -> None:
    template = real_templates()[name]
    ours = tokenizer(template)
    theirs = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # it has no types
        tokenizer_object=llama_3(), chat_template=template, **NAMES
    )
    for case, (messages, given) in CONVERSATIONS.items():
        plain = checked_messages(messages, template=template)
        try:
            text = render_jinja_template(
                [[{k: v for k, v in m.items() if v is not None} for m in messages]],
                chat_template=template,
                add_generation_prompt=True,
                **{**NAMES, **given},
            )[0][0]
        # Whatever a template runs into.
        except Exception:
            with pytest.raises(NanochatError):
                render_template(template, plain, names={**NAMES, **given}, reply=True)
            continue

        assert render_template(template, plain, names={**NAMES, **given}, reply=True) == text, case
        if "{'type': 'text'" in text:
            # The template knows no parts, and has written them as Python does: here it is given the text.
            messages = [{"role": "user", "content": "Hi you"}]
        options = {name: value for name, value in given.items() if name != "tools"}
        ids = theirs.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False, **given
        )
        found = render(
            CONVERSATIONS[case][0], ours, tools=given.get("tools"), chat_template_kwargs=options
        )
        assert found == ids, case
