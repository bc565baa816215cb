"""No request that anybody can write makes the server fail."""

import json
from http.client import HTTPConnection
from typing import Any

import numpy as np
import pytest

from tests.serve.processes import Process, ask, post

FEW, MANY = 400, 100_000
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [
            {"role": "system", "content": "x"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        ],
        "max_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 2,
        "seed": 1,
        "stop": ["a"],
        "logit_bias": {"5": 1},
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 2,
    },
    "/v1/completions": {
        "prompt": ["fn", "use"],
        "max_tokens": 2,
        "echo": True,
        "logprobs": 1,
        "n": 2,
        "min_tokens": 1,
        "stop_token_ids": [7],
        "presence_penalty": 1,
    },
    "/v1/responses": {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}],
        "instructions": "y",
        "max_output_tokens": 2,
    },
    "/v1/messages": {
        "model": "nanochat-tiny",
        "max_tokens": 2,
        "system": [{"type": "text", "text": "x"}],
        "messages": [{"role": "user", "content": "hi"}],
        "stop_sequences": ["a"],
    },
    "/v1/embeddings": {"input": ["fn", "use"], "encoding_format": "base64"},
    "/tokenize": {"prompt": "fn", "add_special_tokens": True},
    "/detokenize": {"tokens": [7, 8]},
}
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 1e308, -0.0, 0.5, 1e-320,
    "", "a", "🦀", "\0", "\ufeff", "<|end|>", "x" * 3000, [], [[]], [None], [0], [""], {}, {"": ""},
    {"type": "text"}, {"role": "user"}, {"5": 1e9}, [[1, 2], [3]], ["a", 1],
]  # fmt: skip


def changed(value: Any, generator: np.random.Generator) -> Any:
    """The same with one part that is another, or gone, or twice."""
    if generator.random() < 0.25 or not value or not isinstance(value, dict | list):
        return ODD[generator.integers(len(ODD))]
    if isinstance(value, dict):
        name = [*value][generator.integers(len(value))]
        if generator.random() < 0.1:
            return {key: one for key, one in value.items() if key != name}
        return {**value, name: changed(value[name], generator)}
    place = int(generator.integers(len(value)))
    if generator.random() < 0.1:
        return [*value, value[place]]
    return [*value[:place], changed(value[place], generator), *value[place + 1 :]]


@pytest.mark.parametrize("path", REQUESTS)
def test_changed_requests_are_answered_or_refused(
    server: Process, path: str, pytestconfig: pytest.Config
) -> None:
    count = (MANY if pytestconfig.getoption("--long") else FEW) // len(REQUESTS)
    generator = np.random.default_rng(1)
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    statuses: dict[int, int] = {}
    for _ in range(count):
        body: Any = REQUESTS[path]
        for _ in range(generator.integers(1, 4)):
            body = changed(body, generator)
        if isinstance(body, dict):
            # The context is longer than anybody waits here.
            body = {"max_tokens": 2, "max_output_tokens": 2, **body}
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        statuses[response.status] = statuses.get(response.status, 0) + 1
        assert response.status in (200, 400, 404), (response.status, body, content[:300])
        if response.status != 200:
            assert json.loads(content)["error"]["message"]
    connection.close()

    assert min(statuses.get(status, 0) for status in (200, 400)) > 0
    assert ask(server, "GET", "/health").status == 200


def test_the_description_names_every_path_and_field(server: Process) -> None:
    document = ask(server, "GET", "/openapi.json").json
    page = ask(server, "GET", "/docs")

    assert set(REQUESTS) <= document["paths"].keys()
    for path, methods in document["paths"].items():
        assert path in page.body.decode()
        for method in methods:
            status = ask(server, method.upper(), path.replace("{id}", "nanochat-tiny")).status
            assert status not in (404, 405, 500)
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"messages", "temperature", "min_p", "cache_salt"} <= fields.keys()
    assert page.headers["content-type"].startswith("text/html")


def test_a_request_as_the_description_says_is_answered(server: Process) -> None:
    for path, body in REQUESTS.items():
        assert post(server, path, body).status == 200, path
