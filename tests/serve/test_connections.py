"""Clients that send or take nothing, too much or too many at once, delay nobody."""

import json
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.lm import Model
from tests.serve.processes import Process, ask, post, running

TINY = ("nanochat-tiny", "--backend", "numba", "--max-rows", "4")
BODY = {"prompt": "fn", "max_tokens": 2}


@pytest.fixture(scope="module")
def strict() -> Iterator[Process]:
    words = ("--body-timeout", "0.5", "--max-body", "2kB", "--max-connections", "8")
    with running(*TINY, *words) as server:
        yield server


def connected(server: Process) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def test_half_a_body_is_given_up_in_time(strict: Process) -> None:
    with connected(strict) as connection:
        head = b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 500\r\n\r\n"
        began = time.monotonic()
        connection.sendall(head + b'{"prompt": ')
        answer = received(connection)

    assert answer.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in answer
    assert time.monotonic() - began < 5


def received(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    found = b""
    while data := connection.recv(4096):
        found += data
    return found


def test_who_is_refused_in_the_middle_of_a_body_cannot_hold_the_connection(strict: Process) -> None:
    with connected(strict) as connection:
        head = b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5000\r\n\r\n"
        connection.sendall(head)
        began = time.monotonic()
        answer = connection.recv(4096)
        # It would go on for minutes.
        try:
            while time.monotonic() - began < 5:
                connection.sendall(b"x")
                time.sleep(0.05)
        except OSError:
            pass

    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer
    assert time.monotonic() - began < 5


def test_who_is_refused_reads_why_though_much_of_the_body_is_still_to_come(strict: Process) -> None:
    answer = post(strict, "/tokenize", {"prompt": "x" * 3_000_000})

    assert (answer.status, answer.headers["connection"]) == (413, "close")


def test_a_connection_is_kept_where_the_request_is_whole(strict: Process) -> None:
    assert "connection" not in ask(strict, "GET", "/health").headers
    assert "connection" not in ask(strict, "GET", "/nothing").headers
    assert "connection" not in post(strict, "/tokenize", {"prompt": 5}).headers


def test_a_body_that_comes_byte_by_byte_is_read_if_it_is_there_in_time(strict: Process) -> None:
    body = json.dumps({"prompt": "fn"}).encode()
    with connected(strict) as connection:
        head = f"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode())
        for byte in body:
            connection.sendall(bytes([byte]))
            time.sleep(0.005)
        answer = connection.recv(4096)

    assert answer.startswith(b"HTTP/1.1 200")


def test_a_body_that_is_too_long_is_refused(strict: Process) -> None:
    assert post(strict, "/tokenize", {"prompt": "x" * 3000}).status == 413


def test_more_connections_than_there_may_be_are_refused_and_the_others_served(
    strict: Process,
) -> None:
    idle = [connected(strict) for _ in range(8)]
    try:
        time.sleep(0.1)
        with connected(strict) as late:
            late.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            answer = late.recv(4096)
        assert answer.startswith(b"HTTP/1.1 503")
        idle[0].sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert idle[0].recv(4096).startswith(b"HTTP/1.1 200")
    finally:
        for connection in idle:
            connection.close()
    for _ in range(50):
        time.sleep(0.02)
        try:
            if ask(strict, "GET", "/health").status == 200:
                break
        except OSError:
            continue
    assert ask(strict, "GET", "/health").status == 200


def test_a_client_that_resets_its_connection_harms_nobody(strict: Process) -> None:
    for _ in range(5):
        connection = connected(strict)
        # Closed by a reset, and in the middle of what is streamed.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        body = json.dumps({**BODY, "max_tokens": 900, "stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        connection.recv(100)
        connection.close()

    assert post(strict, "/v1/completions", BODY).status == 200
    assert "Traceback" not in strict.said


def test_a_reader_that_does_not_read_delays_nobody(strict: Process) -> None:
    body = json.dumps(
        {**BODY, "n": 3, "max_tokens": 1000, "ignore_eos": True, "stream": True, "logprobs": 5}
    )
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with connected(strict) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(head.encode() + body.encode())
        began = time.monotonic()
        for _ in range(5):
            assert post(strict, "/v1/completions", BODY).status == 200
        assert time.monotonic() - began < 5


def test_https_is_served_with_a_certificate(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run(
        [*made, "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )

    with running(*TINY, "--ssl-cert", certificate, "--ssl-key", key) as server:
        assert f"ready: https://127.0.0.1:{server.port}/v1" in server.said
        context = ssl.create_default_context(cafile=str(certificate))
        address = f"https://localhost:{server.port}/health"
        with urllib.request.urlopen(address, context=context) as answer:
            assert json.load(answer) == {"status": "ok"}


def test_a_graph_says_that_it_writes_one_text_after_the_other_and_writes_the_same(
    model: Model,
) -> None:
    with running("nanochat-tiny", "--backend", "onnx", "--max-rows", "2") as server:
        assert "a graph writes its texts one after the other" in server.said
        answer = post(
            server,
            "/v1/completions",
            {"prompt": "fn main() {", "max_tokens": 8, "n": 2, "temperature": 0},
        )

    texts = [choice["text"] for choice in answer.json["choices"]]
    assert texts == [model.generate("fn main() {", max_tokens=8)] * 2


def test_two_models_are_served_by_their_names(model: Model, tmp_path: Path) -> None:
    other = tmp_path / "other"
    model.save_pretrained(other, licence="MIT")

    with running("nanochat-tiny", other, "--backend", "numba", "--max-rows", "2") as server:
        names = [one["id"] for one in ask(server, "GET", "/v1/models").json["data"]]
        assert names == ["nanochat-tiny", str(other)]
        for name in names:
            answer = post(server, "/v1/completions", {**BODY, "model": name, "temperature": 0})
            assert answer.json["model"] == name
            assert answer.json["choices"][0]["text"] == model.generate("fn", max_tokens=2)
        nameless = post(server, "/v1/completions", BODY)
        assert (nameless.status, nameless.error["param"]) == (400, "model")
