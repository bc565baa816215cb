"""This file holds a Hub on loopback, served over HTTP for the real client, with faults that tests ask for.

Modelled: two origins, as of the Hub and of its store of large files, with connections that are kept; the requests of
`hub_api`, on what `hub_state` knows; answers that fail, stop early, are cut or damaged. Not modelled: encryption,
compression, signed addresses, limits of rate.
"""

import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.zoo.hub_api import Answer, Call, answer, refusal
from tests.zoo.hub_state import Fault, Hub, Request

__all__ = ["environment", "hub_server"]

_HOST = "127.0.0.1"


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """Variables for a process whose client is to know `hub` only, and keep everything in `home`."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub.token,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_XET_CACHE": str(home / "xet"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
        "HF_OIDC_RESOURCE": "",
        "TRANSFORMERS_OFFLINE": "0",
        "NO_PROXY": _HOST,
        "no_proxy": _HOST,
    }


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve a new Hub while the block runs."""
    hub = Hub()
    with _origin(hub, "hub") as hub.url, _origin(hub, "cdn") as hub.cdn:
        yield hub


@contextmanager
def _origin(hub: Hub, name: str) -> Iterator[str]:
    """A server of one origin, and its address."""

    class Handler(_Handler):
        state = hub
        origin = name

    server = _Server((_HOST, 0), Handler)
    server.open = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://{_HOST}:{server.server_port}"
    finally:
        server.shutdown()
        server.hang_up()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    """A server that can end connections that its clients keep."""

    daemon_threads = False
    request_queue_size = 64
    open: list[socket.socket]

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that went away."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def hang_up(self) -> None:
        for connection in self.open:
            # A client may have been faster.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    origin: str
    protocol_version = "HTTP/1.1"
    # Or every answer waits 40 ms for the client.
    disable_nagle_algorithm = True

    def setup(self) -> None:
        """Note the connection, which may be kept."""
        super().setup()
        assert isinstance(self.server, _Server)
        self.server.open.append(self.connection)

    def _serve(self) -> None:
        address = urlsplit(self.path)
        call = Call(
            method=self.command,
            path=address.path,
            query=dict(parse_qsl(address.query)),
            headers={name.title(): value for name, value in self.headers.items()},
            body=self._body(),
            token=self.headers.get("Authorization", "").removeprefix("Bearer "),
        )
        path = unquote(address.path)
        fault = self.state.next_fault(self.command, path)
        reply = self._reply(call, fault)
        # Noted before it is sent, so that whoever has the answer finds the request.
        asked = call.headers.get("Range", "")
        request = Request(self.command, path, asked, call.token, reply.status, self.origin)
        self.state.requests.append(request)
        self._send(reply, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _reply(self, call: Call, fault: Fault | None) -> Answer:
        try:
            if fault is not None and fault.before is not None:
                fault.before()
            if fault is not None and fault.status:
                return refusal(fault.status, fault.message, fault.code)
            reply = answer(self.state, call)
            return reply if fault is None else _damaged(reply, fault)
        except Exception as error:
            # A bug here or a request that the client never makes: the test is told what it was.
            return refusal(500, f"{type(error).__name__}: {error}")

    def _send(self, reply: Answer, fault: Fault | None) -> None:
        body = b"" if self.command == "HEAD" else reply.body
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if fault is None or fault.cut is None:
            self.wfile.write(body)
            return
        self.wfile.write(body[: fault.cut])
        self.close_connection = True
        if fault.reset:
            # What was sent has to arrive first: a reset takes with it what the client has not read.
            time.sleep(0.1)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        del format, args


def _damaged(reply: Answer, fault: Fault) -> Answer:
    """The answer as `fault` changes it; a redirection has no body to damage."""
    body, headers = bytearray(reply.body), dict(reply.headers)
    if fault.flip is not None and body:
        body[fault.flip] ^= 0xFF
    if fault.truncate is not None:
        body = body[: fault.truncate]
    if fault.etag:
        headers |= {"ETag": f'"{fault.etag}"'}
        if "X-Linked-Etag" in headers:
            headers |= {"X-Linked-Etag": f'"{fault.etag}"'}
    return replace(reply, body=bytes(body), headers=headers)
