"""Who has no key, calls the server by another's name, or asks from another's page, gets nothing."""

import math
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from nanochat.errors import ConfigError, InputError
from nanochat.serve.keys import Keys
from nanochat.serve.settings import Settings
from tests.serve.here import asked_here
from tests.serve.processes import Process, ask, counts, post, running

BODY = {"prompt": "fn", "max_tokens": 2}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text("# who\nalice sk-alice\n\nbob sk-bob requests=2 rows=1\nsk-nameless\n")
    words = ("--api-key-file", path, "--allow-origin", "https://friend.example", "--json-log")
    # What a proxy has put before the paths changes nothing.
    tiny = ("nanochat-tiny", "--backend", "numba", "--max-rows", "4", "--root-path", "/llm")
    with running(*tiny, *words) as server:
        yield server


@pytest.mark.parametrize("header", [{}, {"authorization": "Bearer sk-no"}, {"authorization": "x"}])
@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize", "/v1/embeddings"])
def test_without_a_key_nothing_is_said(guarded: Process, path: str, header: dict[str, str]) -> None:
    answer = post(guarded, path, BODY, **header)

    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert (answer.error["type"], answer.error["code"]) == (
        "authentication_error",
        "invalid_api_key",
    )
    assert ask(guarded, "GET", "/metrics").status == ask(guarded, "GET", "/v1/models").status == 401


def test_health_needs_no_key(guarded: Process) -> None:
    assert [ask(guarded, "GET", path).status for path in ("/health", "/ready", "/version")] == [
        200,
        200,
        200,
    ]


@pytest.mark.parametrize("key", ["sk-alice", "sk-nameless"])
def test_each_key_opens(guarded: Process, key: str) -> None:
    assert post(guarded, "/v1/completions", BODY, authorization=f"Bearer {key}").status == 200
    assert post(guarded, "/v1/completions", BODY, x_api_key=key).status == 200


def test_a_wrong_key_is_an_authentication_error_to_openai_s_client(guarded: Process) -> None:
    client = openai.OpenAI(base_url=guarded.url, api_key="sk-no", max_retries=0)

    with client, pytest.raises(openai.AuthenticationError, match="this is no key of this server"):
        client.completions.create(model="nanochat-tiny", prompt="fn")


def test_a_key_has_its_limits(guarded: Process) -> None:
    def ask_as_bob(**fields: int) -> int:
        return post(
            guarded, "/v1/completions", {**BODY, **fields}, authorization="Bearer sk-bob"
        ).status

    # Two texts at once are too many, and count as a request.
    assert (ask_as_bob(n=2), ask_as_bob()) == (429, 200)
    refused = post(guarded, "/v1/completions", BODY, authorization="Bearer sk-bob")

    assert refused.status == 429
    assert refused.error["code"] == "rate_limit_exceeded"
    assert 0 < int(refused.headers["retry-after"]) <= 61


def test_logs_name_the_key_and_hold_neither_it_nor_the_prompt(guarded: Process) -> None:
    post(
        guarded,
        "/v1/completions",
        {**BODY, "prompt": "secret words"},
        authorization="Bearer sk-alice",
    )

    assert '"key": "alice"' in guarded.said
    assert "sk-alice" not in guarded.said
    assert "secret words" not in guarded.said


def test_what_the_guard_refuses_is_counted_once(guarded: Process) -> None:
    def refused() -> dict[str, float]:
        found = counts(guarded, authorization="Bearer sk-alice")
        return {
            status: found.get(f'refused_total{{status="{status}"}}', 0)
            for status in ["401", "403", "404"]
        }

    before = refused()
    post(guarded, "/v1/completions", BODY)
    ask(guarded, "GET", "/health", headers={"host": "evil.example"})
    ask(guarded, "GET", "/nothing", headers={"authorization": "Bearer sk-alice"})

    assert refused() == {status: count + 1 for status, count in before.items()}


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost:8000", True),
        ("127.0.0.1", True),
        ("[::1]:80", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("[:::]", False),
        ("evil.example@localhost", False),
        ("", False),
    ],
)
def test_a_server_has_no_other_names(guarded: Process, host: str, allowed: bool) -> None:
    answer = ask(guarded, "GET", "/health", headers={"host": host})

    assert answer.status == (200 if allowed else 403)
    if not allowed:
        assert answer.error["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["[", "[:::]", "a b"])
def test_a_host_that_is_none_is_no_error_of_a_server_with_any_name(host: str) -> None:
    settings = Settings(host="0.0.0.0", insecure=True)

    answer = asked_here(settings, "GET", "/nothing", host=host)

    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")


def test_a_host_s_name_may_be_written_in_capitals() -> None:
    settings = Settings(allow_host=("My.Box",))

    assert asked_here(settings, "GET", "/health", host="my.box:8000").status_code == 200
    assert asked_here(settings, "GET", "/health", host="MY.BOX").status_code == 200


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://friend.example", True),
        ("http://127.0.0.1:{port}", True),
        ("https://evil.example", False),
        ("null", False),
        ("http://127.0.0.1:1", False),
        ("https://friend.example.evil.example", False),
        ("http://[", False),
    ],
)
def test_pages_of_other_sites_may_not_ask(guarded: Process, origin: str, allowed: bool) -> None:
    origin = origin.format(port=guarded.port)
    # As openai's and Anthropic's clients in pages ask, which send such headers.
    names = {"access-control-request-headers": "x-stainless-os, x-api-key"}
    headers = {"origin": origin, "access-control-request-method": "POST", **names}

    asked = post(guarded, "/v1/completions", BODY, origin=origin, authorization="Bearer sk-alice")
    before = ask(guarded, "OPTIONS", "/v1/completions", headers=headers)

    assert asked.status == (200 if allowed else 403)
    assert before.status == (204 if allowed else 403)
    if allowed:
        assert asked.headers["access-control-allow-origin"] == origin
        assert before.headers["access-control-allow-headers"] == "x-stainless-os, x-api-key"
    else:
        assert "access-control-allow-origin" not in asked.headers
        assert asked.error["code"] == "origin_not_allowed"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no key"),
        ("a b c\n", "line 1: write a key"),
        ("x requests=many", "requests='many' is no number"),
        ("sk-secret #bob", "line 1: put what begins with # on a line of its own"),
        ("alice sk-1\nsk-2\nbob sk-1", "line 3: this key is that of line 1"),
    ],
)
def test_a_file_of_keys_that_is_none_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)

    with pytest.raises(InputError, match=message):
        Keys.read(path)


def test_a_mark_before_the_first_line_is_no_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# keys\nsk-1\n", encoding="utf-8-sig")

    keys = Keys.read(path)

    assert keys.find("sk-1") is not None
    assert keys.find("keys") is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"host": "0.0.0.0"}, "there is no key: pass --api-key-file FILE, or --insecure"),
        ({"max_rows": -1}, "max_rows=-1: pass 0 or more"),
        ({"queue": -1}, "queue=-1: pass 0 or more"),
        ({"request_timeout": 0}, "request_timeout=0: pass more than 0"),
        ({"port": 70000}, "port=70000"),
        ({"ssl_cert": Path("x")}, "belong together"),
        ({"allow_origin": ("example.com",)}, "pass a scheme and a host"),
        ({"allow_host": ("box:8000",)}, "allow_host='box:8000': pass a name or an address alone"),
        ({"allow_host": ("[::1]",)}, "without scheme, port or brackets"),
        ({"allow_host": ("http://box",)}, "without scheme, port or brackets"),
        ({"root_path": "llm/"}, "root_path='llm/': begin with / and end without"),
        ({"root_path": "/llm/"}, "root_path='/llm/': begin with / and end without"),
        ({"drain_timeout": math.nan}, "drain_timeout=nan: pass 0 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**fields)  # type: ignore[arg-type]  # that is what is tried
