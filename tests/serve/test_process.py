"""A server says what runs, ends without losing an answer, and tells its user in one line what cannot be."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serve.processes import ask, post, running, started, wait_until
from tests.serve.streams import Stream

TINY = ("nanochat-tiny", "--backend", "numba", "--max-rows", "4")


def refused(*words: object) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "nanochat", "serve", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stderr


def test_it_says_what_runs_and_where() -> None:
    with running(*TINY, "--served-name", "mine", "--served-name", "other") as server:
        assert "mine: 5.8M parameters on numba" in server.said
        assert "4 texts at a time of up to 1,024 tokens" in server.said
        assert "Started server process" not in server.said
        names = [model["id"] for model in ask(server, "GET", "/v1/models").json["data"]]
        assert names == ["mine", "other"]
        assert post(server, "/v1/completions", {"model": "other", "prompt": "x"}).status == 200


def test_with_a_signal_streams_end_first_and_new_requests_are_refused() -> None:
    with running(*TINY) as server:
        stream = Stream(server.url, n=4).begun()
        server.signal(signal.SIGTERM)
        while ask(server, "GET", "/ready").status == 200:
            time.sleep(0.01)
        late = post(server, "/v1/completions", {"prompt": "x"})

        assert (late.status, late.error["code"]) == (503, "shutting_down")
        assert "retry-after" in late.headers
        assert stream.wait() == "end"
        assert server.wait() == 0
        assert "ending, once 1 answer have ended" in server.said


@pytest.mark.parametrize("how", ["second signal", "no time"])
def test_who_cannot_wait_ends_at_once_and_streams_are_told(how: str) -> None:
    words = ("--drain-timeout", "0") if how == "no time" else ()
    with running(*TINY, *words) as server:
        stream = Stream(server.url, n=4).begun()
        server.signal(signal.SIGTERM)
        if how == "second signal":
            # Two signals at the same time may be one.
            wait_until(lambda: "ending, once" in server.said)
            server.signal(signal.SIGTERM)

        assert server.wait(5) == 0
        assert stream.wait(10).startswith("error: the server is ending")


def test_until_balancers_have_noticed_requests_are_answered() -> None:
    with running(*TINY, "--drain-delay", "60") as server:
        server.signal(signal.SIGTERM)
        wait_until(lambda: ask(server, "GET", "/ready").status == 503)

        assert post(server, "/v1/completions", {"prompt": "x"}).status == 200
        server.signal(signal.SIGTERM)
        assert server.wait(5) == 0


@pytest.mark.parametrize("signals", [1, 2])
def test_a_client_that_takes_nothing_does_not_hold_the_end_up(signals: int) -> None:
    requests = b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n" * 1000
    with running(*TINY, "--drain-timeout", "0") as server, socket.socket() as connection:
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(requests)
        # The system has taken what it takes, and the rest waits in the server.
        wait_until(lambda: is_still(lambda: server.said.count("GET /openapi.json")))
        assert 0 < server.said.count("GET /openapi.json") < 1000
        server.signal(signal.SIGTERM)
        wait_until(lambda: "ending" in server.said)
        if signals == 2:
            server.signal(signal.SIGTERM)

        assert server.wait(15 if signals == 1 else 3) == 0


def is_still(look: Callable[[], object]) -> bool:
    """Whether something stays what it is for a moment."""
    before = look()
    time.sleep(0.5)
    return look() == before


@pytest.mark.parametrize("signals", [1, 2])
def test_a_model_that_is_being_loaded_does_not_hold_the_end_up(signals: int) -> None:
    with started(*TINY, first="tests.serve.stuck") as server:
        wait_until(lambda: "loading nanochat-tiny" in server.said)
        server.signal(signal.SIGTERM)
        wait_until(lambda: "ending" in server.said)
        if signals == 2:
            server.signal(signal.SIGTERM)

        assert server.wait(15 if signals == 1 else 3) == 0
        assert "an engine that is still busy" in server.said
        assert "Traceback" not in server.said


def test_a_client_that_leaves_frees_its_row_at_once() -> None:
    with running(*TINY) as server:
        body = b'{"prompt": "fn", "max_tokens": 1000, "ignore_eos": true}'
        head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        for stage in range(3):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(head.encode() + body)
                # In the queue, or in the middle of the text.
                time.sleep(0.15 * stage)
            for _ in range(40):
                rows = [
                    line
                    for line in ask(server, "GET", "/metrics").body.decode().splitlines()
                    if line.startswith(("nanochat_rows ", "nanochat_queue "))
                ]
                if rows == ["nanochat_rows 0.0", "nanochat_queue 0.0"]:
                    break
                time.sleep(0.02)
            assert rows == ["nanochat_rows 0.0", "nanochat_queue 0.0"]


def test_a_full_queue_says_when_to_ask_again() -> None:
    with running(*TINY, "--queue", "0") as server:
        stream = Stream(server.url, n=4).begun()

        late = post(server, "/v1/completions", {"prompt": "x"})

        assert (late.status, late.error["code"]) == (429, "queue_full")
        assert late.headers["retry-after"] == "1"
        assert stream.wait() == "end"
        assert post(server, "/v1/completions", {"prompt": "x"}).status == 200


def test_an_answer_that_takes_too_long_ends_with_an_error() -> None:
    # Long enough for the first token, and too short for as many as slow code shall write.
    with running(*TINY, "--backend", "reference", "--request-timeout", "1") as server:
        late = post(
            server, "/v1/completions", {"prompt": "x", "max_tokens": 1000, "ignore_eos": True}
        )
        stream = Stream(server.url, n=4)

        assert (late.status, late.error["code"]) == (504, "timeout")
        assert stream.wait() == "error: the answer took more than 1 s"


def test_a_port_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        code, said = refused(*TINY, "--port", port)

    assert code == 2
    assert said.startswith(f"error: cannot listen on 127.0.0.1, port {port}")
    assert "pass another --port" in said


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "192.0.2.1", "fe80::zz"])
def test_a_host_that_is_not_this_machine_s_is_said(host: str) -> None:
    code, said = refused(*TINY, "--host", host, "--port", "0", "--insecure")

    assert code == 2
    assert said.startswith(f"error: cannot listen on {host}, port 0 (")
    assert "pass a --host that is an address of this machine" in said
    assert "loading" not in said


@pytest.mark.parametrize(
    ("cert", "key", "message"),
    [
        ("absent.pem", "key.pem", "--ssl-cert absent.pem: No such file or directory: pass a file"),
        ("cert.pem", "absent.pem", "--ssl-key absent.pem: No such file or directory: pass a file"),
        ("key.pem", "key.pem", "--ssl-cert key.pem with --ssl-key key.pem: "),
        ("cert.pem", "other.pem", "and the private key that belongs to it"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_said_before_a_model_is_loaded(
    cert: str, key: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    for files in (("key.pem", "cert.pem"), ("other.pem", "other_cert.pem")):
        names = ["-keyout", files[0], "-out", files[1]]
        subprocess.run([*make, *names], check=True, capture_output=True)

    code, said = refused(*TINY, "--ssl-cert", cert, "--ssl-key", key)

    assert (code, message in said) == (2, True)
    assert "loading" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--host", "0.0.0.0"), "there is no key: pass --api-key-file FILE, or --insecure"),
        (("--kv-memory", "1kB"), "are the least for keys and values of so many texts"),
        (("--kv-memory", "much"), "'much' is no size: pass one such as 4GB"),
        (("--api-key-file", "/nowhere"), "/nowhere"),
        (("--max-row", "4"), "No such option"),
    ],
)
def test_what_cannot_be_is_one_line(words: tuple[str, ...], message: str) -> None:
    code, said = refused(*TINY, *words)

    assert code in (1, 2)
    assert message in said
    assert "Traceback" not in said


def test_settings_come_from_a_file_and_the_environment_too(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text('max-rows = 3\nserved-name = ["filed"]\n')

    with running("nanochat-tiny", "--config", path, NANOCHAT_SERVE_BACKEND="reference") as server:
        assert "filed: 5.8M parameters on reference" in server.said
        assert "3 texts at a time" in server.said
    path.write_text("max-rowz = 3\n")
    code, said = refused("nanochat-tiny", "--config", path)
    assert (code, "max_rowz' (did you mean max_rows?)" in said) == (2, True)
