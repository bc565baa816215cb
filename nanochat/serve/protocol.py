"""This file holds HTTP as the server speaks it: uvicorn's, with limits on connections, on headers, and on time.

Measured without them, uvicorn 0.54 read a header of 100 MB, and kept connections open for ever that send nothing, or
take nothing of what they asked for: closed, they wait until that is sent.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["LimitedProtocol", "limited_protocol"]

_MOST_HEADER_BYTES = 65_536
_HEADER_SECONDS = 30.0
# A client that has taken nothing between two looks is gone.
_LOOK_SECONDS = 30.0


class LimitedProtocol(HttpToolsProtocol):
    """A connection; it is closed if its headers are too long or come too slowly, or there are too many connections.

    It is broken off if its client takes nothing.
    """

    most_connections: int

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as there
        """See `asyncio.Protocol`."""
        self._header_bytes = 0
        self._is_in_headers = True
        self._timer: asyncio.TimerHandle | None = None
        is_full = len(self.connections) >= self.most_connections
        super().connection_made(transport)
        self._unsent = 0
        self._look()
        if is_full:
            self._refuse(b"503 Service Unavailable", "too many connections", "server_error")
        else:
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_waiting()
        self._looking.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self.transport.is_closing():
            return
        if self._is_in_headers:
            if not self._header_bytes and self._timer is None:
                self._await_headers()
            self._header_bytes += len(data)
        super().data_received(data)
        if self._is_in_headers and self._header_bytes > _MOST_HEADER_BYTES:
            self._refuse(
                b"431 Request Header Fields Too Large",
                f"headers are longer than {_MOST_HEADER_BYTES} bytes",
                "invalid_request_error",
            )

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._is_in_headers = False
        self._header_bytes = 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """See httptools."""
        super().on_message_complete()
        self._is_in_headers = True

    def _look(self) -> None:
        """Break off if bytes wait to be sent, and they are as many as last time."""
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent == self._unsent:
            self.transport.abort()
            return
        self._unsent = unsent
        self._looking = self.loop.call_later(_LOOK_SECONDS, self._look)

    def _await_headers(self) -> None:
        self._timer = self.loop.call_later(_HEADER_SECONDS, self._refuse_slow)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse_slow(self) -> None:
        self._timer = None
        message = f"the headers did not come within {_HEADER_SECONDS:g} s"
        self._refuse(b"408 Request Timeout", message, "invalid_request_error")

    def _refuse(self, status: bytes, message: str, kind: str) -> None:
        if self.transport.is_closing():
            return
        body = f'{{"error":{{"message":"{message}","type":"{kind}","param":null,"code":null}}}}'.encode()
        lines = [
            b"HTTP/1.1 " + status,
            b"content-type: application/json",
            b"content-length: %d" % len(body),
            b"connection: close",
        ]
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        self.transport.close()


def limited_protocol(most_connections: int) -> type[LimitedProtocol]:
    """The protocol of a server that takes so many connections."""
    return type("Protocol", (LimitedProtocol,), {"most_connections": most_connections})
