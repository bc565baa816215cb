"""Behind a balancer, several servers are one: streams pass as they come, and no request is lost with a server."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import pytest

from nanochat.lm import Model
from tests.serve.processes import Process, ask, counts, free_port, post, running
from tests.serve.streams import Stream

pytestmark = pytest.mark.long

CONFIG = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"
TINY = ("nanochat-tiny", "--backend", "numba", "--max-rows", "8", "--drain-delay", "2.5")
# Servers see the name by which the balancer is called.
NAME = "llm.example.com"
JSON = {"content-type": "application/json"}
BODY = {"prompt": "fn main() {", "max_tokens": 12, "temperature": 0}


class Balanced:
    """A balancer, and the servers behind it that have not been ended."""

    def __init__(self, front: Process, servers: list[Process]) -> None:
        self.front = front
        self.servers = servers

    def busiest(self) -> Process:
        """That which writes texts; it is no longer among the servers."""
        found = max(self.servers, key=lambda server: counts(server)["rows"])
        self.servers.remove(found)
        return found


def haproxy(port: int, servers: list[Process], folder: Path) -> list[str]:
    text = CONFIG.read_text()
    named = re.findall(r"server \w+ (127.0.0.1:\d+)$", text, re.MULTILINE)
    assert named == ["127.0.0.1:8001", "127.0.0.1:8002"]
    lines = [f"    server s{one.port} 127.0.0.1:{one.port}" for one in servers]
    text = re.sub(r"    server one .*\n    server two .*", "\n".join(lines), text)
    path = folder / "haproxy.cfg"
    path.write_text(text.replace("bind 127.0.0.1:8000", f"bind 127.0.0.1:{port}"))
    return [shutil.which("haproxy") or "/usr/sbin/haproxy", "-db", "-f", str(path)]


def vllm_router(port: int, servers: list[Process], folder: Path) -> list[str]:
    del folder
    words = ["--policy", "cache_aware", "--health-check-endpoint", "/ready"]
    words += ["--health-check-interval-secs", "1", "--health-failure-threshold", "1"]
    words += ["--cb-failure-threshold", "1"]
    urls = [f"http://127.0.0.1:{one.port}" for one in servers]
    program = str(Path(sys.executable).parent / "vllm-router")
    return [program, "--host", "127.0.0.1", "--port", str(port), *words, "--worker-urls", *urls]


@pytest.fixture(
    scope="module",
    params=["haproxy", "vllm-router"],
)
def balanced(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Balanced]:
    with ExitStack() as stack:
        # One is killed, and one ended.
        servers = [stack.enter_context(running(*TINY, "--allow-host", NAME)) for _ in range(3)]
        command = haproxy if request.param == "haproxy" else vllm_router
        port = free_port()
        process = stack.enter_context(
            subprocess.Popen(
                command(port, servers, tmp_path_factory.mktemp("balancer")),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
        stack.callback(process.terminate)
        front = Process(process, port)
        began = time.monotonic()
        while not is_answering(front):
            assert time.monotonic() - began < 30
            time.sleep(0.1)
        yield Balanced(front, servers)


def is_answering(front: Process) -> bool:
    try:
        return post(front, "/v1/completions", BODY).status == 200
    except OSError:
        return False


def statuses(front: Process, seconds: float) -> set[int]:
    """What short requests get, one after the other."""
    found, end = set(), time.monotonic() + seconds
    while time.monotonic() < end:
        found.add(post(front, "/v1/completions", {"prompt": "x", "max_tokens": 2}).status)
    return found


def test_streams_pass_as_they_come(balanced: Balanced) -> None:
    stream = Stream(balanced.front.url, n=8).begun()

    # The server has not written half of it yet.
    assert stream.how == ""
    assert max(counts(server)["rows"] for server in balanced.servers) == 8
    assert stream.wait() == "end"
    assert stream.num_chunks > 500


def test_equal_fingerprints_are_equal_texts(balanced: Balanced, model: Model) -> None:
    asked = [post(one, "/v1/completions", BODY).json for one in (*balanced.servers, balanced.front)]

    assert len({answer["system_fingerprint"] for answer in asked}) == 1
    wanted = model.generate("fn main() {", max_tokens=12)
    assert {answer["choices"][0]["text"] for answer in asked} == {wanted}


def test_requests_that_are_wrong_are_told_so_and_no_server_is_blamed(balanced: Balanced) -> None:
    wrong = {"prompt": "fn main() {" * 1000}

    assert {post(balanced.front, "/v1/completions", wrong).status for _ in range(6)} == {400}
    assert statuses(balanced.front, 0.2) == {200}


def test_servers_answer_by_the_name_of_the_balancer(balanced: Balanced) -> None:
    assert post(balanced.front, "/v1/completions", BODY, host=NAME).status == 200


@pytest.mark.parametrize("is_stream", [True, False], ids=["stream", "plain"])
def test_who_leaves_is_gone_from_the_server_too(balanced: Balanced, is_stream: bool) -> None:
    before = num_cancelled(balanced)
    body = {"prompt": "fn", "max_tokens": 1000, "n": 8, "ignore_eos": True, "stream": is_stream}
    connection = HTTPConnection("127.0.0.1", balanced.front.port)
    connection.request("POST", "/v1/completions", json.dumps(body), JSON)
    while not any(counts(server)["rows"] for server in balanced.servers):
        time.sleep(0.01)
    connection.close()

    left = time.monotonic()
    while any(counts(server)["rows"] for server in balanced.servers):
        assert time.monotonic() - left < 1
    assert num_cancelled(balanced) == before + 1


def num_cancelled(balanced: Balanced) -> float:
    found = [each for server in balanced.servers for each in counts(server).items()]
    return sum(value for name, value in found if name.startswith("cancelled_total"))


def test_a_server_that_is_killed_breaks_its_streams_at_once_and_no_other_request(
    balanced: Balanced,
) -> None:
    stream = Stream(balanced.front.url, n=8).begun()

    balanced.busiest().signal(signal.SIGKILL)
    killed = time.monotonic()

    assert statuses(balanced.front, 2.5) == {200}
    assert stream.wait().partition(":")[0] == "broken"
    assert stream.ended - killed < 2


def test_a_server_that_is_ending_gets_no_more_and_its_streams_end(balanced: Balanced) -> None:
    stream = Stream(balanced.front.url, n=8).begun()
    server = balanced.busiest()

    server.signal(signal.SIGTERM)

    assert statuses(balanced.front, 4) == {200}
    assert stream.wait() == "end"
    assert server.wait() == 0
    assert ask(balanced.front, "GET", "/ready").status == 200
