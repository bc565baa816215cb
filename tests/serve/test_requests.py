"""Whatever is wrong with a request is said with the name of the field, and the next request is answered."""

import json
import re
import socket
import time
from typing import Any

import pytest

from nanochat.serve.api.errors import ApiError
from nanochat.serve.api.schema import TokenizeRequest, read_request
from tests.serve.processes import Process, ask, post

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": MESSAGES, "max_tokens": 2, **fields}


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"temperature": "hot"}, "temperature", "Expected `float"),
        ({"temperature": 1e999}, "temperature", "is no number|not a number"),
        ({"top_p": 0}, "top_p", "top_p=0.0 keeps no token"),
        ({"top_k": 1.5}, "top_k", "Expected `int"),
        ({"n": 0}, "n", ">= 1"),
        ({"n": 1000}, "n", "<= 128"),
        ({"n": 100}, None, "100 texts in one request"),
        ({"seed": "x"}, "seed", "Expected `int"),
        ({"stop": [1]}, "stop", "Expected `str`"),
        ({"stop": ["x"] * 17}, "stop", "length <= 16"),
        ({"stop": [""]}, "stop", "stop holds an empty string"),
        ({"max_tokens": -1}, "max_tokens", ">= 0"),
        ({"max_tokens": 0}, "max_tokens", "1 token or more"),
        ({"max_tokens": True}, "max_tokens", "Expected `int"),
        ({"max_completion_tokens": 2000}, None, "maximum context length is 1024 tokens"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "keys are ids"),
        ({"logit_bias": {"70000": 1}}, "logit_bias", "logit_bias id 70000"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "logit_bias\\[5\\]=101"),
        ({"presence_penalty": 3}, "presence_penalty", "presence_penalty=3"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs", "pass 0 to 20"),
        ({"top_logprobs": 3}, "top_logprobs", "without logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "without stream"),
        ({"messages": []}, "messages", "messages is \\[\\]"),
        ({"messages": [{}]}, "messages", "message 0 is"),
        ({"messages": [{"role": 123, "content": "x"}]}, "messages", "role 123"),
        ({"messages": [{"role": "user", "content": 123}]}, "messages", "content of message 0"),
        ({"messages": [{"role": "user"}]}, "messages", "message 0 has no content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages",
            "read text only",
        ),
        ({"messages": "hi"}, "messages", "Expected `array`"),
        ({"messages": None}, "messages", "missing required field"),
        ({"model": "gpt-4"}, "model", "not served here: name one of nanochat-tiny"),
        ({"stop_token_ids": [-1]}, "stop_token_ids", "holds -1"),
        ({"continue_final_message": True}, "continue_final_message", "not the assistant's"),
    ],
    ids=str,
)
def test_a_wrong_field_is_named(
    server: Process, fields: dict[str, Any], param: str | None, message: str
) -> None:
    body = json.dumps(chat(**fields)).replace("Infinity", "1e999").encode()

    answer = post(server, CHAT, body)

    assert answer.status == (404 if param == "model" else 400)
    assert (answer.error["type"], answer.error["param"]) == ("invalid_request_error", param)
    assert re.search(message, answer.error["message"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no valid JSON"),
        (b"{", "no valid JSON"),
        (b"[]", "the body is list in JSON"),
        (b"\xff\xfe", "no valid JSON"),
        (b"\xef\xbb\xbf{}", "no valid JSON"),
        (b'{"prompt": "x", "prompt": "y"}', "'prompt' is there twice"),
        (b'{"prompt": "x", "temperature": NaN}', "NaN is no number"),
        (b"[" * 100_000, "no valid JSON"),
        (b'{"prompt": ' + b"[" * 100_000, "no valid JSON"),
        (b'{"prompt": "\\ud800"}', "lone surrogate"),
        (b'{"prompt": ""}', "prompt is empty"),
        (b'{"prompt": []}', "prompt is empty"),
        (b'{"prompt": [[]]}', "holds an empty text"),
        (b'{"prompt": [70000]}', "token 70000"),
        (b'{"prompt": [-1]}', "token -1"),
        (b'{"prompt": [1, "x"]}', "one kind"),
        (b'{"prompt": "x", "suffix": "y"}', "filling in"),
        (b'{"prompt": "x", "best_of": 2}', "best_of is 2"),
        (b'{"prompt": "x", "logprobs": 21}', "pass 0 to 20"),
        (b'{"prompt": "x", "max_tokens": 0}', "max_tokens is 0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_body_that_is_no_request_is_refused(server: Process, body: bytes, message: str) -> None:
    answer = post(server, COMPLETION, body)

    assert answer.status == 400
    assert message in answer.error["message"]


def test_a_key_that_is_there_twice_is_found_among_many_at_once() -> None:
    names = [f'"{number}":1' for number in range(20_000)]
    began = time.process_time()

    with pytest.raises(ApiError, match="the key '19999' is there twice"):
        read_request(f"{{{','.join([*names, names[-1]])}}}".encode(), TokenizeRequest)

    assert time.process_time() - began < 1


def test_a_number_that_is_longer_than_python_reads_is_no_id(server: Process) -> None:
    answer = post(server, CHAT, chat(logit_bias={"1" * 5000: 1}))

    assert (answer.status, answer.error["param"]) == (400, "logit_bias")


def test_a_length_with_zeros_before_it_is_a_length(server: Process) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        head = (
            f"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: {'0' * 5000}15\r\n\r\n"
        )
        connection.sendall(head.encode() + b'{"prompt": "x"}')
        answer = connection.recv(4096)

    assert answer.startswith(b"HTTP/1.1 200")


def test_no_answer_has_a_traceback_and_all_have_an_id(server: Process) -> None:
    for path in ("/nothing", "/v1/chat/completions/", "/v1/models/none"):
        answer = ask(server, "GET", path)
        assert answer.status == 404
        assert b"Traceback" not in answer.body
        assert answer.headers["x-request-id"].startswith("req_")
    assert (
        ask(server, "GET", "/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"]
        == "mine-1"
    )


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", CHAT, "POST"), ("DELETE", "/v1/models", "GET, HEAD"), ("PUT", "/tokenize", "POST")],
)
def test_another_method_is_told_which_is_allowed(
    server: Process, method: str, path: str, allowed: str
) -> None:
    answer = ask(server, method, path)

    assert answer.status == 405
    assert sorted(answer.headers["allow"].split(", ")) == allowed.split(", ")
    assert answer.error["type"] == "invalid_request_error"


def test_another_type_of_content_is_refused(server: Process) -> None:
    answer = post(server, CHAT, chat(), content_type="text/plain")

    assert answer.status == 415


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (CHAT, "metadata", {"a": "\ud800"}),
        (
            CHAT,
            "response_format",
            {"type": "json_schema", "json_schema": {"schema": {"const": "\udc00"}}},
        ),
        (CHAT, "stop", ["\ud83d"]),
        ("/v1/responses", "instructions", "\ud800"),
        ("/v1/responses", "metadata", {"\ud800": "a"}),
    ],
    ids=lambda value: str(value).encode("ascii", "replace").decode()[:20],
)
@pytest.mark.parametrize("stream", [False, True])
def test_half_a_character_is_refused_wherever_it_stands(
    server: Process, path: str, field: str, value: object, stream: bool
) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    if path != CHAT:
        body = {"input": "x", "max_output_tokens": 2}
    answer = post(server, path, {**body, "stream": stream, field: value})
    whole = post(server, path, {**body, "metadata": {"a": "\U0001f600"}})

    assert answer.status == 400
    assert answer.error["param"] == field
    assert "lone surrogate" in answer.error["message"]
    assert whole.status == 200


def test_unknown_fields_and_null_are_as_if_they_were_not_there(server: Process) -> None:
    plain = post(server, CHAT, chat(seed=1)).json
    odd = post(server, CHAT, chat(seed=1, temperature=None, foo={"a": 1}, tools=None)).json

    assert odd["choices"] == plain["choices"]


@pytest.mark.parametrize("path", [CHAT, COMPLETION, "/v1/embeddings", "/tokenize", "/detokenize"])
def test_a_large_body_is_refused_before_it_is_read(server: Process, path: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}content-length: 50000000\r\n\r\n{{".encode())
        answer = connection.recv(4096)

    assert answer.startswith(b"HTTP/1.1 413")


def test_a_body_without_a_length_is_cut_off(server: Process) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        answer = b""
        try:
            for _ in range(100):
                connection.sendall(chunk)
        except OSError:
            pass
        try:
            answer = connection.recv(4096)
        except OSError:
            pytest.skip("the connection was reset before the answer could be read")

    assert answer.startswith(b"HTTP/1.1 413")


def test_an_endless_header_is_cut_off(server: Process) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n")
        sent = 0
        try:
            while sent < 10_000_000:
                sent += connection.send(b"x-a: " + b"y" * 4000 + b"\r\n")
        except OSError:
            pass

    # What the system buffers is sent in any case.
    assert sent < 10_000_000
    assert ask(server, "GET", "/health").status == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{}",
    ],
)
def test_what_is_no_http_harms_nobody(server: Process, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(raw)
        connection.settimeout(1)
        try:
            answer = connection.recv(4096)
        except TimeoutError:
            answer = b""

    assert not answer or answer.startswith(b"HTTP/1.1 4")
    assert ask(server, "GET", "/health").status == 200
