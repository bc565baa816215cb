"""This file holds server-sent events: how they are written, and a response that ends with its client.

References
----------
.. [1] WHATWG, HTML, section 9.2, "Server-sent events".
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nanochat.errors import NanochatError
from nanochat.generation.options import Piece
from nanochat.serve.api.errors import ApiError, as_api_error
from nanochat.serve.engine import Answer

__all__ = ["DONE", "Chunks", "EventStream", "Translator", "error_event", "event", "until_gone"]

DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"
# While nothing is said: balancers and clients give up on silent connections.
_PING_SECONDS = 15.0
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_LOGGER = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


class Translator(Protocol):
    """What events an answer becomes in some API."""

    def begin(self) -> bytes:
        """Events before the first token."""
        ...

    def more(self, pieces: Sequence[Piece]) -> bytes:
        """Events of pieces that came together; empty if they release no text."""
        ...

    def end(self) -> bytes:
        """Events after the last token."""
        ...

    def failed(self, error: Exception) -> bytes:
        """The last event of an answer that cannot go on."""
        ...


def event(content: object, *, kind: str | None = None) -> bytes:
    """One event: JSON on a line of its own.

    >>> event({"a": [1, None]}).decode().splitlines()
    ['data: {"a":[1,null]}', '']
    """
    name = b"" if kind is None else b"event: " + kind.encode() + b"\n"
    return name + b"data: " + _encode(content) + b"\n\n"


class Chunks:
    """Events that differ in their choices only, of which all else is written once.

    >>> Chunks({"id": "x"}, has_usage=True).event([1]).decode().splitlines()
    ['data: {"id":"x","choices":[1],"usage":null}', '']
    """

    def __init__(self, body: Mapping[str, object], *, has_usage: bool) -> None:
        self._before = b"data: " + _encode(body)[:-1] + b',"choices":'
        self._after = (b',"usage":null' if has_usage else b"") + b"}\n\n"

    def event(self, choices: Sequence[object]) -> bytes:
        """One event."""
        return self._before + _encode(choices) + self._after


def error_event(error: Exception, *, context: int) -> bytes:
    """The last event of an answer that cannot go on: no ``[DONE]`` follows."""
    return event(as_api_error(error, context=context).body)


async def until_gone(receive: Receive) -> None:
    """Wait until the client has left; what else it sends is not read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """An answer as events, in which all tokens that have come go out together; it ends when the client leaves.

    Parameters
    ----------
    answer : Answer
        Cancelled if the response ends before it.
    """

    def __init__(self, answer: Answer, translator: Translator) -> None:
        self._answer = answer
        self._translator = translator
        self._send: Send
        self._wrote = 0.0
        self._is_sending = False
        self.status_code = 200
        self.background = None
        self.raw_headers = list(_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI application."""
        del scope
        self._send = send
        writer = asyncio.create_task(self._write())
        others = [asyncio.create_task(until_gone(receive)), asyncio.create_task(self._ping())]
        try:
            await asyncio.wait((writer, *others), return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                await writer
        finally:
            self._answer.cancel()
            for task in (writer, *others):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    async def _write(self) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await self._send(start)
        await self._out(self._translator.begin())
        try:
            # As `Answer.pieces`, without what a generator costs for each step.
            while True:
                if pieces := self._answer.take_pieces():
                    await self._out(self._translator.more(pieces))
                elif self._answer.is_over:
                    break
                else:
                    await self._answer.changed()
        # Whatever it is, the client has a status already.
        except Exception as error:
            if not isinstance(error, ApiError | NanochatError):
                _LOGGER.exception("a stream failed")
            await self._out(self._translator.failed(error))
        else:
            await self._out(self._translator.end())
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _out(self, body: bytes) -> None:
        if body:
            self._is_sending = True
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            self._wrote, self._is_sending = time.monotonic(), False

    async def _ping(self) -> None:
        """Say something now and then; whether the client takes it is for `nanochat.serve.protocol` to see."""
        self._wrote = time.monotonic()
        while True:
            await asyncio.sleep(_PING_SECONDS / 3)
            if not self._is_sending and time.monotonic() - self._wrote > _PING_SECONDS:
                await self._out(_PING)
