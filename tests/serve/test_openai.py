"""OpenAI's own client gets what the model says here, whole and in events."""

import json
from typing import Any

import numpy as np
import openai
import pytest

from nanochat.lm import Model
from tests.serve.processes import Process, ask, post

MESSAGES: Any = [{"role": "user", "content": "fn main() {"}]
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "seed": 7}


def expected(model: Model, **options: Any) -> str:
    text: str = model.chat(MESSAGES, **options)
    return text


def test_a_chat_is_answered_as_by_the_model_here(client: openai.OpenAI, model: Model) -> None:
    answer = client.chat.completions.create(
        model="nanochat-tiny", messages=MESSAGES, max_completion_tokens=30, **SAMPLED
    )

    assert answer.choices[0].message.content == expected(model, max_tokens=30, **SAMPLED)
    assert answer.object == "chat.completion"
    assert answer.model == "nanochat-tiny"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ask_tokens(client, {"messages": MESSAGES}))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def ask_tokens(client: openai.OpenAI, body: dict[str, Any]) -> list[int]:
    response = client.with_options(base_url=str(client.base_url).replace("/v1", "")).post(
        "/tokenize", body=body, cast_to=object
    )
    found: list[int] = response["tokens"]  # type: ignore[index]
    return found


@pytest.mark.parametrize("stop", [None, ["\n"], [";", "}"]])
def test_a_stream_adds_up_to_the_whole_answer(
    client: openai.OpenAI, model: Model, stop: list[str] | None
) -> None:
    chunks = list(
        client.chat.completions.create(
            model="nanochat-tiny",
            messages=MESSAGES,
            max_tokens=40,
            stop=stop,
            stream=True,
            stream_options={"include_usage": True},
            **SAMPLED,
        )
    )

    *steps, last = chunks
    assert {(chunk.id, chunk.created, chunk.object) for chunk in chunks} == {
        (chunks[0].id, chunks[0].created, "chat.completion.chunk")
    }
    assert steps[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in steps)
    assert text == expected(model, max_tokens=40, stop=stop, **SAMPLED)
    assert [chunk.choices[0].finish_reason for chunk in steps].count(None) == len(steps) - 1
    assert steps[-1].choices[0].finish_reason in ("stop", "length")
    assert all(chunk.usage is None for chunk in steps)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens <= 40


def test_choices_draw_with_seeds_one_after_the_other(client: openai.OpenAI, model: Model) -> None:
    answer = client.chat.completions.create(
        model="nanochat-tiny", messages=MESSAGES, max_tokens=20, n=3, temperature=1, seed=11
    )

    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert texts == [expected(model, max_tokens=20, temperature=1, seed=11 + i) for i in range(3)]
    assert len(set(texts)) == 3


def test_streams_of_several_choices_are_told_apart(client: openai.OpenAI, model: Model) -> None:
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(
        model="nanochat-tiny",
        messages=MESSAGES,
        max_tokens=20,
        n=3,
        temperature=1,
        seed=11,
        stream=True,
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""

    assert texts == [expected(model, max_tokens=20, temperature=1, seed=11 + i) for i in range(3)]


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_of_the_tokens_of_the_text(
    client: openai.OpenAI, model: Model, stream: bool
) -> None:
    options: dict[str, Any] = {"max_tokens": 16, "logprobs": True, "top_logprobs": 3, **SAMPLED}
    if stream:
        chunks = client.chat.completions.create(
            model="nanochat-tiny", messages=MESSAGES, stream=True, **options
        )
        told = [
            entry
            for chunk in chunks
            if chunk.choices[0].logprobs is not None
            for entry in chunk.choices[0].logprobs.content or []
        ]
    else:
        answer = client.chat.completions.create(model="nanochat-tiny", messages=MESSAGES, **options)
        assert answer.choices[0].logprobs is not None
        told = answer.choices[0].logprobs.content or []

    content = b"".join(bytes(entry.bytes or ()) for entry in told).decode("utf-8", "replace")
    assert content == expected(model, max_tokens=16, **SAMPLED)
    for entry in told:
        top = {other.token: other.logprob for other in entry.top_logprobs}
        assert len(entry.top_logprobs) == 3
        assert top.get(entry.token, entry.logprob) == entry.logprob
        assert list(top.values()) == sorted(top.values(), reverse=True)


def test_completions_are_those_of_the_model_for_texts_and_tokens(
    client: openai.OpenAI, model: Model
) -> None:
    prompts = ["fn main() {", "use std::"]
    tokens = [model.encode_prompt(text) for text in prompts]

    for prompt in (prompts, tokens):
        answer = client.completions.create(
            model="nanochat-tiny", prompt=prompt, max_tokens=12, n=2, temperature=1, seed=3
        )
        wanted = model.generate(prompts, n=2, max_tokens=12, temperature=1, seed=3)
        assert [choice.text for choice in answer.choices] == wanted
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert client.completions.create(
        model="nanochat-tiny", prompt=tokens[0], max_tokens=9, temperature=0
    ).choices[0].text == model.generate(prompts[0], max_tokens=9)


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_an_echoed_prompt_has_the_log_probabilities_that_score_it(
    client: openai.OpenAI, model: Model, max_tokens: int
) -> None:
    text = 'fn main() { println!("héllo 🦀"); }'
    ids = model.encode_prompt(text)

    answer = client.completions.create(
        model="nanochat-tiny",
        prompt=text,
        max_tokens=max_tokens,
        echo=True,
        logprobs=5,
        temperature=0,
    )

    choice = answer.choices[0]
    assert choice.text.startswith(text)
    told = choice.logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    assert told.text_offset is not None
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs)
    assert len(told.tokens) == len(ids) + max_tokens
    assert told.token_logprobs[0] is None
    assert told.top_logprobs[0] is None
    nats = -sum(told.token_logprobs[1 : len(ids)])
    assert nats == pytest.approx(model.score(text).nats, rel=1e-6)
    for token, logprob, top in zip(
        told.tokens[1:], told.token_logprobs[1:], told.top_logprobs[1:], strict=True
    ):
        assert top[token] == logprob
    assert told.text_offset == sorted(told.text_offset)
    places = zip(told.tokens, told.text_offset, strict=True)
    whole = [(token, at) for token, at in places if not token.startswith(("bytes:", "<|"))]
    assert len(whole) > len(ids) // 2
    assert all(choice.text.startswith(token, at) for token, at in whole)


def test_embeddings_are_those_of_the_model_in_either_form(
    client: openai.OpenAI, model: Model
) -> None:
    texts = ["fn main() {", "use std::"]
    wanted = model.embed(texts)

    # The client asks for base64 by itself.
    coded = client.embeddings.create(model="nanochat-tiny", input=texts)
    plain = client.embeddings.create(model="nanochat-tiny", input=texts, encoding_format="float")

    for answer in (coded, plain):
        found = np.array([entry.embedding for entry in answer.data], np.float32)
        assert np.array_equal(found, wanted)
    assert coded.usage.prompt_tokens == sum(len(model.encode_prompt(text)) for text in texts)


def test_the_model_is_listed_by_its_name(client: openai.OpenAI) -> None:
    (listed,) = client.models.list().data

    assert client.models.retrieve("nanochat-tiny") == listed
    assert listed.id == "nanochat-tiny"
    assert listed.max_model_len == 1024  # type: ignore[attr-defined]  # beyond OpenAI's


@pytest.mark.parametrize(
    ("body", "kind", "param"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 5000}, openai.BadRequestError, None),
        ({"messages": []}, openai.BadRequestError, "messages"),
    ],
)
def test_a_mistake_raises_the_exception_of_its_status(
    client: openai.OpenAI,
    body: dict[str, Any],
    kind: type[openai.APIStatusError],
    param: str | None,
) -> None:
    with pytest.raises(kind) as error:
        client.chat.completions.create(**{"model": "nanochat-tiny", "messages": MESSAGES, **body})

    assert error.value.param == param
    assert error.value.type == "invalid_request_error"


def test_a_prompt_that_is_too_long_is_refused_in_the_words_that_programs_look_for(
    client: openai.OpenAI,
) -> None:
    with pytest.raises(
        openai.BadRequestError, match="maximum context length is 1024 tokens"
    ) as error:
        client.completions.create(model="nanochat-tiny", prompt="word " * 3000)

    assert error.value.code == "context_length_exceeded"


def test_the_same_prompt_is_read_once(server: Process) -> None:
    body = {"prompt": "let known = 1; " * 30, "max_tokens": 5, "temperature": 0}

    first, second = (post(server, "/v1/completions", body).json for _ in range(2))
    other = post(server, "/v1/completions", {**body, "cache_salt": "x"}).json

    assert first["choices"] == second["choices"] == other["choices"]
    length = second["usage"]["prompt_tokens"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == length - 1
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_tokens_and_texts_become_each_other(server: Process, model: Model) -> None:
    text = "fn main() {"

    tokens = post(server, "/tokenize", {"prompt": text, "add_special_tokens": False}).json["tokens"]

    assert tokens == model.tokenizer.encode(text)
    assert post(server, "/detokenize", {"tokens": tokens}).json == {"prompt": text}
    info = ask(server, "GET", "/tokenizer_info").json
    assert info["eos_token"] in model.tokenizer.specials


def test_what_the_server_counts_is_there_for_prometheus(server: Process) -> None:
    post(server, "/v1/completions", {"prompt": "x", "max_tokens": 2})

    lines = ask(server, "GET", "/metrics").body.decode().splitlines()

    counts = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(counts["nanochat_generated_tokens_total"]) >= 2
    assert float(counts["nanochat_first_token_seconds_count"]) >= 1
    assert counts["nanochat_rows"] == "0.0"


def test_events_are_lines_of_json_that_end_with_done(server: Process) -> None:
    answer = post(
        server,
        "/v1/chat/completions",
        {"messages": MESSAGES, "max_tokens": 5, "stream": True},
    )

    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = answer.body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for line in events[:-2]:
        assert json.loads(line.removeprefix("data: "))["object"] == "chat.completion.chunk"
