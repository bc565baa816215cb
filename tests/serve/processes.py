"""This file holds servers in processes of their own, as people start them, and requests without any client's help."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any, Protocol

__all__ = [
    "Answered",
    "Asked",
    "Process",
    "ask",
    "counts",
    "free_port",
    "post",
    "running",
    "started",
    "wait_until",
]

_READY = re.compile(r"ready: (https?)://([^:]+|\[[^]]+\]):(\d+)/v1")
_SECONDS = 120
# Longer than answers may take to end, and what is left after them.
_END_SECONDS = 60


@dataclass(frozen=True)
class Answered:
    """What came of a request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        return found


@dataclass
class Process:
    """A server that is ready, and what it says."""

    process: subprocess.Popen[str]
    port: int = 0
    is_ready: threading.Event = field(default_factory=threading.Event)
    lines: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def page(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 30) -> int:
        return self.process.wait(seconds)

    @property
    def said(self) -> str:
        return "".join(self.lines)


@contextmanager
def running(*words: object, first: str = "", **environment: str) -> Iterator[Process]:
    """`nanochat serve` of these words, once it is ready; see `started`."""
    with started(*words, first=first, **environment) as server:
        assert server.is_ready.wait(_SECONDS), server.said
        assert server.port, server.said
        yield server


@contextmanager
def started(*words: object, first: str = "", **environment: str) -> Iterator[Process]:
    """`nanochat serve` of these words, ready or not; it is ended if it has not ended by itself.

    The module named by `first` is imported before.
    """
    has_port = "--port" in words or "NANOCHAT_SERVE_PORT" in environment
    port = () if has_port else ("--port", "0")
    program = ("-m", "nanochat")
    if first:
        program = ("-c", f"import {first}\nfrom nanochat.cli import main\nmain()")
    process = subprocess.Popen(
        [sys.executable, *program, "serve", *map(str, words), *port],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    server = Process(process)
    reader = threading.Thread(target=_read, args=(server,), daemon=True)
    reader.start()
    try:
        yield server
    finally:
        try:
            if process.poll() is None:
                process.terminate()
                process.wait(_END_SECONDS)
        finally:
            # A server that does not end fails its test, and is in the way of no other.
            process.kill()
            process.wait()
            reader.join(10)
            assert process.stderr is not None
            process.stderr.close()


def _read(server: Process) -> None:
    assert server.process.stderr is not None
    for line in server.process.stderr:
        server.lines.append(line)
        if found := _READY.search(line):
            server.port = int(found[3])
            server.is_ready.set()
    # It has ended, ready or not.
    server.is_ready.set()


class Asked(Protocol):
    """A server that can be asked."""

    @property
    def port(self) -> int: ...


def ask(
    server: Asked,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Answered:
    """The answer to one request."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answered(response.status, names, response.read())
    finally:
        connection.close()


def post(server: Asked, path: str, content: object, **headers: str) -> Answered:
    """The answer to JSON, or to bytes that say they are."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(server, "POST", path, body, {"content-type": "application/json", **given})


def counts(server: Process, **headers: str) -> dict[str, float]:
    """What the server counts, by the names that Prometheus reads."""
    lines = ask(server, "GET", "/metrics", headers=headers).body.decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name.removeprefix("nanochat_"): float(value) for name, value in pairs}


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Look again and again, and fail if it takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def free_port(*, count: int = 1) -> int:
    """The first of so many ports, one after the other, at which nobody listens."""
    while True:
        with ExitStack() as stack:
            first = 0
            try:
                for number in range(count):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", first and first + number))
                    first = first or probe.getsockname()[1]
            # Somebody has the next one, or there is none.
            except (OSError, OverflowError):
                continue
            return first
