"""What goes wrong around a server, such as a full disk or too few files, ends no answer that need not end."""

import ast
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.serve.processes import Process, ask, free_port, post, running
from tests.serve.streams import Stream

ROOT = Path(__file__).parents[2]
TINY = ("nanochat-tiny", "--backend", "reference", "--max-rows", "4")
BODY = {"prompt": "fn", "max_tokens": 2}
# Where the time of day is told to others, and no length is measured with it.
TIMES_OF_DAY = {"int(time.time())", "time.time() - now"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits another process")
def test_with_too_few_files_connections_are_closed_and_others_go_on() -> None:
    with running(*TINY) as server, ExitStack() as stack:
        process = psutil.Process(server.process.pid)
        process.rlimit(psutil.RLIMIT_NOFILE, (64, 64))
        stream = Stream(server.url, tokens=150).begun()
        address = ("127.0.0.1", server.port)
        connections = [
            stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(100)
        ]

        assert stream.wait() == "end"
        assert process.num_fds() <= 64
        assert sum(map(is_closed, connections)) > 36

        stack.close()
        assert post(server, "/v1/completions", BODY).status == 200


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_a_full_disk_for_logs_is_no_reason_to_end() -> None:
    port = free_port()
    command = [sys.executable, "-m", "nanochat", "serve", *TINY, "--port", str(port)]
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(command, stderr=full, stdout=full)
    server = Process(process, port)  # type: ignore[arg-type]  # what it says is lost
    try:
        wait_until_ready(server)

        assert post(server, "/v1/completions", BODY).status == 200
        server.signal()
        assert server.wait() == 0
    finally:
        process.kill()


def wait_until_ready(server: Process) -> None:
    end = time.monotonic() + 60
    while True:
        assert server.process.poll() is None
        assert time.monotonic() < end
        try:
            if ask(server, "GET", "/ready").status == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)


def test_a_reader_of_logs_that_leaves_is_no_reason_to_end() -> None:
    port = free_port()
    command = [sys.executable, "-m", "nanochat", "serve", *TINY, "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    server = Process(process, port)
    try:
        wait_until_ready(server)
        assert process.stderr is not None
        process.stderr.close()

        assert post(server, "/v1/completions", BODY).status == 200
        server.signal()
        assert server.wait() == 0
    finally:
        process.kill()


def test_a_server_is_one_process_and_its_streams_break_at_once_with_it() -> None:
    with running(*TINY) as server:
        stream = Stream(server.url).begun()
        assert psutil.Process(server.process.pid).children() == []

        server.signal(signal.SIGKILL)
        killed = time.monotonic()

        assert stream.wait(10).startswith("broken")
        assert stream.ended - killed < 2
        assert server.wait() == -signal.SIGKILL


def around_time(source: str) -> Iterator[str]:
    """What the time of day is used in."""
    tree = ast.parse(source)
    outer = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.time":
            yield ast.unparse(outer[node])


@pytest.mark.parametrize("folder", ["nanochat/serve", "nanochat/generation"])
def test_a_clock_that_jumps_changes_no_length(folder: str) -> None:
    found = [
        (path.name, text)
        for path in (ROOT / folder).rglob("*.py")
        for text in around_time(path.read_text(encoding="utf-8"))
    ]

    assert [(name, text) for name, text in found if text not in TIMES_OF_DAY] == []
    assert found or folder.endswith("generation")
