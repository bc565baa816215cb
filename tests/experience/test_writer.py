"""Who writes lessons: a model, a real server of models, and servers that fail in every way that servers do."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from nanochat.errors import ContextLengthError, InputError, WriterError
from nanochat.experience.writer import AddressWriter, ModelWriter
from nanochat.lm import Model
from nanochat.text.messages import Message
from tests.core.tool_models import NONE, parrot
from tests.serve.here import served_here

ASKED: list[Message] = [
    {"role": "user", "content": "Write a lesson."},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "Do."},
]
SAID = '{"lessons": ["Mind zero."]}'
Answer = tuple[int, bytes]


def completion(text: str | None) -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"index": 0, "message": message}]}).encode()


class Faulty:
    """A server that gives prepared answers, one after another, and then the last again."""

    def __init__(self, *answers: Answer) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked.append(json.loads(body))
                outer.headers.append({k.lower(): v for k, v in self.headers.items()})
                outer.paths.append(self.path)
                status, answer = answers[min(len(outer.asked), len(answers)) - 1]
                if not status:
                    # It hangs up.
                    self.close_connection = True
                    return
                self.send_response(status)
                if status in (302, 307):
                    self.send_header("Location", "http://127.0.0.1:1/v1")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def faulty() -> Iterator[Callable[..., Faulty]]:
    servers: list[Faulty] = []

    def start(*answers: Answer) -> Faulty:
        servers.append(Faulty(*answers))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def writer(server: Faulty, **options: Any) -> AddressWriter:
    return AddressWriter(server.url, "any", **{"pause": 0.001, "retries": 2, **options})


def test_a_model_that_chats_writes() -> None:
    assert ModelWriter(parrot(NONE, SAID), max_tokens=64).write(ASKED) == SAID


def test_a_model_that_only_continues_texts_says_that_it_cannot() -> None:
    model = Model.from_pretrained("nanochat-tiny", backend="reference")

    with pytest.raises(InputError, match=r"nanochat-tiny continues texts .* --method examples"):
        ModelWriter(model)


def test_a_model_without_a_template_says_that_it_cannot() -> None:
    with pytest.raises(InputError, match="so it cannot write lessons"):
        ModelWriter(parrot("", SAID))


def test_a_conversation_that_fills_the_context_asks_for_another_writer() -> None:
    long: list[Message] = [{"role": "user", "content": "word " * 3000}]

    with pytest.raises(ContextLengthError, match="pass another --writer, with a context of some"):
        ModelWriter(parrot(NONE, SAID)).write(long)


def test_a_real_server_writes_what_its_model_does() -> None:
    with served_here({"talker": parrot(NONE, SAID)}) as server:
        found = AddressWriter(server.url, "talker", max_tokens=64).write(ASKED)
        slash = AddressWriter(f"{server.url}/", "talker", max_tokens=64).write(ASKED)
        with pytest.raises(WriterError, match="no such page or model 'nobody'"):
            AddressWriter(server.url, "nobody").write(ASKED)

    assert found == slash == SAID


def test_the_conversation_is_sent_as_it_is(faulty: Callable[..., Faulty]) -> None:
    server = faulty((200, completion("yes")))

    assert writer(server, max_tokens=7).write(ASKED) == "yes"
    assert server.paths == ["/v1/chat/completions"]
    assert server.asked == [{"model": "any", "messages": ASKED, "max_tokens": 7, "temperature": 0}]


def test_the_key_is_that_of_the_environment(
    faulty: Callable[..., Faulty], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = faulty((200, completion("yes")), (401, b"no, not sk-1"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    writer(server).write(ASKED)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1\n")

    with pytest.raises(WriterError, match=r"wants another key .* OPENAI_API_KEY") as error:
        writer(server).write(ASKED)

    assert [headers.get("authorization") for headers in server.headers] == [None, "Bearer sk-1"]
    assert "sk-1" not in str(error.value)


@pytest.mark.parametrize("status", [429, 500, 503, 0], ids=str)
def test_what_may_go_well_later_is_asked_again(
    faulty: Callable[..., Faulty], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    server = faulty((status, b"busy"), (status, b"busy"), (200, completion("yes")))

    assert writer(server).write(ASKED) == "yes"
    assert len(server.asked) == 3
    assert caplog.text.count("trying again in") == 2


@pytest.mark.parametrize("status", [503, 0], ids=str)
def test_without_a_retry_left_it_says_why(faulty: Callable[..., Faulty], status: int) -> None:
    server = faulty((status, b"busy"))

    with pytest.raises(WriterError, match=r"answered with 503: busy|does not answer"):
        writer(server).write(ASKED)

    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((400, b"too long"), "answered with 400: too long"),
        ((404, b"nothing here"), "often ends in /v1"),
        ((302, b""), "sends on to http://127.0.0.1:1/v1: pass that address"),
        ((307, b""), "sends on to http://127.0.0.1:1/v1: pass that address"),
        ((200, b"<html>"), "'<html>', which is no chat completion"),
        ((200, b'{"choices": []}'), "which is no chat completion"),
        ((200, b"[1]"), "which is no chat completion"),
    ],
    ids=[
        "refused",
        "another page",
        "a redirect",
        "one that keeps the method",
        "a page",
        "no choice",
        "a list",
    ],
)
def test_what_no_retry_helps_is_told_at_once(
    faulty: Callable[..., Faulty], answer: Answer, said: str
) -> None:
    server = faulty(answer)

    with pytest.raises(WriterError) as error:
        writer(server).write(ASKED)

    assert said in str(error.value)
    assert len(server.asked) == 1


def test_a_model_that_said_nothing_has_said_nothing(faulty: Callable[..., Faulty]) -> None:
    assert writer(faulty((200, completion(None)))).write(ASKED) == ""


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        # It listens, and nobody serves.
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        with pytest.raises(WriterError, match=r"does not answer .*timed out"):
            AddressWriter(url, "any", timeout=0.1, retries=0).write(ASKED)


def test_nobody_at_an_address_is_told() -> None:
    with pytest.raises(WriterError, match=r"does not answer .*is it running"):
        AddressWriter("http://127.0.0.1:1/v1", "any", retries=0).write(ASKED)


@pytest.mark.parametrize(
    ("url", "model", "said"),
    [
        ("ftp://host/v1", "a", "is no address"),
        ("http://", "a", "is no address"),
        ("http://host name/v1", "a", "is no address"),
        ("http://[::1/v1", "a", "is no address"),
        ("http://host/v1", "", "pass one as --writer-model"),
    ],
    ids=["ftp", "no host", "a space", "a bracket", "no name"],
)
def test_an_address_and_a_name_are_needed(url: str, model: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        AddressWriter(url, model)
