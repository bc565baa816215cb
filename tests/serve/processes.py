"""This file holds servers in processes of their own, as people start them, and requests without any client's help."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any, Protocol

__all__ = ["Answered", "Asked", "Process", "ask", "counts", "free_port", "post", "running"]

_READY = re.compile(r"ready: (https?)://([^:]+|\[[^]]+\]):(\d+)/v1")
_SECONDS = 120


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
    """`nanochat serve` of these words, once it is ready; it is ended if it has not ended by itself.

    The module named by `first` is imported before.
    """
    port = () if "--port" in words else ("--port", "0")
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
    server, is_ready = Process(process), threading.Event()
    reader = threading.Thread(target=_read, args=(server, is_ready), daemon=True)
    reader.start()
    try:
        assert is_ready.wait(_SECONDS), server.said
        assert server.port, server.said
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join(10)
        assert process.stderr is not None
        process.stderr.close()


def _read(server: Process, is_ready: threading.Event) -> None:
    assert server.process.stderr is not None
    for line in server.process.stderr:
        server.lines.append(line)
        if found := _READY.search(line):
            server.port = int(found[3])
            is_ready.set()
    # It has ended, ready or not.
    is_ready.set()


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
