"""A client that takes nothing of its response is gone, and one that takes it slowly is not."""

import asyncio
import time

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from nanochat.serve import protocol

# More than the system takes for a client that does not read.
BYTES = 20_000_000
LOOK_SECONDS = 0.2


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    del scope, receive
    headers = [(b"content-length", b"%d" % BYTES)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(BYTES)})


async def received(*, pause: float) -> tuple[int, int]:
    """Bytes of a response, each part of which is read after a pause; and the connections that are left."""
    config = uvicorn.Config(
        large, port=0, http=protocol.limited_protocol(8), lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    count, end = 0, time.monotonic() + 30
    try:
        while time.monotonic() < end and server.server_state.connections:
            await asyncio.sleep(pause)
            count += len(await reader.read(2_000_000))
        while part := await reader.read(2_000_000):
            count += len(part)
    except ConnectionResetError:
        pass
    left = len(server.server_state.connections)
    writer.close()
    server.should_exit = server.force_exit = True
    await serving
    return count, left


def test_who_takes_nothing_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_LOOK_SECONDS", LOOK_SECONDS)

    count, left = asyncio.run(received(pause=5 * LOOK_SECONDS))

    assert count < BYTES
    assert left == 0


def test_who_takes_a_little_each_time_gets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_LOOK_SECONDS", LOOK_SECONDS)

    count, left = asyncio.run(received(pause=LOOK_SECONDS / 8))

    assert count > BYTES
    assert left == 0
