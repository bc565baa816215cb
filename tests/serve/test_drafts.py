"""What is guessed for a text changes the time that it takes, and what is told of it, but not the text."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from nanochat.lm import Model
from tests.serve.processes import Process, counts, post, running

MESSAGES: Any = [{"role": "user", "content": "fn main() {"}]


@pytest.fixture(scope="module")
def eager() -> Iterator[Process]:
    """A server that guesses whether that pays or not."""
    words = ("--backend", "numba", "--max-rows", "4")
    with running("nanochat-tiny", *words, first="tests.serve.eager") as one:
        yield one


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_prediction_is_counted_and_changes_no_text(
    eager: Process, model: Model, temperature: float, stream: bool
) -> None:
    text = model.chat(MESSAGES, max_tokens=60, temperature=temperature, seed=5)
    place = len(text) // 2
    # Some letters of it are others.
    wrong = "".join("~" if number % 25 == 24 else letter for number, letter in enumerate(text))
    parts = [wrong[:place], wrong[place:]]
    options: Any = {"max_tokens": 60, "temperature": temperature, "seed": 5, "n": 2}
    prediction: Any = {
        "type": "content",
        "content": [{"type": "text", "text": part} for part in parts],
    }
    before = counts(eager)

    with openai.OpenAI(base_url=eager.url, api_key="none", max_retries=0) as client:
        create = client.chat.completions.create
        asked: Any = {"model": "nanochat-tiny", "messages": MESSAGES, "prediction": prediction}
        if stream:
            *chunks, last = create(
                **asked, **options, stream=True, stream_options={"include_usage": True}
            )
            usage = last.usage
            found = "".join(
                chunk.choices[0].delta.content or ""
                for chunk in chunks
                if chunk.choices[0].index == 0
            )
        else:
            answer = create(**asked, **options)
            usage, found = answer.usage, answer.choices[0].message.content

    assert found == text
    details = usage.completion_tokens_details
    assert details.accepted_prediction_tokens > 2
    assert details.rejected_prediction_tokens > 0
    after = counts(eager)
    stood, guessed = (
        after[name] - before[name] for name in ("accepted_tokens_total", "drafted_tokens_total")
    )
    assert details.accepted_prediction_tokens <= stood < guessed


@pytest.mark.parametrize(
    "prediction",
    [
        {"type": "text", "content": "x"},
        {"type": "content"},
        {"type": "content", "content": 5},
        {"type": "content", "content": [{"type": "image_url", "image_url": {}}]},
        {"type": "content", "content": [{"type": "text", "text": 5}]},
    ],
)
def test_a_prediction_that_is_none_is_refused(server: Process, prediction: Any) -> None:
    answer = post(
        server,
        "/v1/chat/completions",
        {"messages": MESSAGES, "max_tokens": 1, "prediction": prediction},
    )

    assert answer.status == 400
    assert answer.error["param"] == "prediction"


def test_a_server_may_be_told_not_to_guess(model: Model) -> None:
    text = model.chat(MESSAGES, max_tokens=30, temperature=0.0)
    words = ("--backend", "numba", "--no-drafts")
    with running("nanochat-tiny", *words, first="tests.serve.eager") as one:
        body = {
            "messages": MESSAGES,
            "max_tokens": 30,
            "temperature": 0,
            "prediction": {"type": "content", "content": text},
        }
        answer = post(one, "/v1/chat/completions", body)
        found = counts(one)

    assert answer.json["choices"][0]["message"]["content"] == text
    assert found["drafted_tokens_total"] == 0
