"""The Responses API and Anthropic's say the same as a chat, to their makers' own clients."""

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from nanochat.lm import Model
from tests.serve.processes import Process, post

TEXT = "fn main() {"
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95}


@pytest.fixture
def claude(server: Process) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=server.url.removesuffix("/v1"), api_key="none", max_retries=0
    ) as client:
        yield client


def test_a_response_is_the_chat_s_answer(client: openai.OpenAI, model: Model) -> None:
    made = client.responses.create(
        model="nanochat-tiny",
        input=TEXT,
        instructions="Be brief.",
        max_output_tokens=20,
        extra_body={"seed": 5},
        **SAMPLED,
    )

    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}]
    assert made.output_text == model.chat(messages, max_tokens=20, seed=5, **SAMPLED)
    assert made.usage is not None
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    assert made.status == ("incomplete" if made.usage.output_tokens == 20 else "completed")


def test_a_response_goes_on_with_what_is_sent(client: openai.OpenAI, model: Model) -> None:
    turns: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Yes"}]},
        {"role": "user", "content": TEXT},
    ]

    made = client.responses.create(
        model="nanochat-tiny",
        input=turns,
        max_output_tokens=9,
        temperature=0,
    )

    messages: Any = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": TEXT},
    ]
    assert made.output_text == model.chat(messages, max_tokens=9)


def test_events_of_a_response_are_numbered_and_add_up(client: openai.OpenAI, model: Model) -> None:
    events = list(
        client.responses.create(
            model="nanochat-tiny",
            input=TEXT,
            max_output_tokens=20,
            stream=True,
            extra_body={"seed": 5},
            **SAMPLED,
        )
    )

    kinds = [event.type for event in events]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:-1] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    assert kinds[-1] in ("response.completed", "response.incomplete")
    wanted = model.chat(TEXT, max_tokens=20, seed=5, **SAMPLED)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == wanted
    assert events[-1].response.output_text == wanted


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input"),
        ({"text": {"format": "json"}}, "text"),
    ],
)
def test_what_would_need_a_memory_or_more_than_text_is_refused(
    server: Process, fields: dict[str, Any], param: str
) -> None:
    answer = post(server, "/v1/responses", {"input": TEXT, **fields})

    assert (answer.status, answer.error["param"]) == (400, param)


def test_a_message_is_the_chat_s_answer(claude: Any, model: Model) -> None:
    made = claude.messages.create(
        model="nanochat-tiny",
        max_tokens=20,
        system="Be brief.",
        messages=[{"role": "user", "content": [{"type": "text", "text": TEXT}]}],
        extra_body={"temperature": 0},
    )

    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}]
    (block,) = made.content
    assert block.type == "text"
    assert block.text == model.chat(messages, max_tokens=20)
    assert (made.role, made.type) == ("assistant", "message")
    assert made.stop_reason in ("max_tokens", "end_turn")


def test_a_message_goes_on_with_what_the_assistant_has_begun(claude: Any, server: Process) -> None:
    turns: Any = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "let x"}]

    made = claude.messages.create(
        model="nanochat-tiny", max_tokens=8, messages=turns, extra_body={"temperature": 0}
    )

    chat = {"messages": turns, "max_tokens": 8, "temperature": 0, "continue_final_message": True}
    wanted = post(server, "/v1/chat/completions", chat).json["choices"][0]["message"]["content"]
    assert made.content[0].text == wanted


def test_a_message_says_which_string_has_ended_it(claude: Any, model: Model) -> None:
    text = model.chat(TEXT, max_tokens=30)
    stop = text[len(text) // 2]

    with claude.messages.stream(
        model="nanochat-tiny",
        max_tokens=30,
        messages=[{"role": "user", "content": TEXT}],
        stop_sequences=[stop],
        extra_body={"temperature": 0},
    ) as stream:
        found = "".join(stream.text_stream)
        made = stream.get_final_message()

    assert found == text.partition(stop)[0]
    assert (made.stop_reason, made.stop_sequence) == ("stop_sequence", stop)
    assert made.usage.output_tokens > 0


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"model": "claude"}, anthropic.NotFoundError),
        ({"messages": [{"role": "tool", "content": "x"}]}, anthropic.BadRequestError),
        ({"messages": []}, anthropic.BadRequestError),
        ({"max_tokens": 5000}, anthropic.BadRequestError),
        ({"extra_body": {"temperature": -1}}, anthropic.BadRequestError),
    ],
)
def test_a_mistake_raises_anthropic_s_exception_of_its_status(
    claude: Any, fields: dict[str, Any], kind: type[anthropic.APIStatusError]
) -> None:
    usual = {
        "model": "nanochat-tiny",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": TEXT}],
    }

    with pytest.raises(kind) as error:
        claude.messages.create(**{**usual, **fields})

    body: Any = error.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] in ("not_found_error", "invalid_request_error")
