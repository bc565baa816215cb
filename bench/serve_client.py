"""This file holds a client for many streams at once, which costs little: it counts events and reads no JSON."""

import asyncio
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

__all__ = ["Load", "Request", "Stream", "closed_loop", "open_loop", "stream"]

_EVENT, _END = b"data: {", b"data: [DONE]"
_READ = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt of tokens, and how many shall follow it."""

    ids: Sequence[int]
    num_tokens: int

    def body(self) -> bytes:
        """As JSON; greedy, and never ended by a token."""
        fields = {
            "prompt": list(self.ids),
            "max_tokens": self.num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "cache_prompt": False,
        }
        return json.dumps(fields).encode()


@dataclass(frozen=True, kw_only=True)
class Stream:
    """When a request was sent, in seconds of `time.perf_counter`, and when which number of events came."""

    asked: float
    arrivals: tuple[tuple[float, int], ...]

    @property
    def first(self) -> float:
        """Seconds to the first event."""
        return self.arrivals[0][0] - self.asked

    @property
    def gaps(self) -> list[float]:
        """Seconds between events; those that come together have none between them."""
        found: list[float] = []
        for (before, _), (now, count) in zip(self.arrivals, self.arrivals[1:], strict=False):
            found += [now - before, *[0.0] * (count - 1)]
        return found


@dataclass(kw_only=True)
class Load:
    """What came of many requests."""

    streams: list[Stream] = field(default_factory=list)

    def rate(self, start: float, end: float) -> float:
        """Events in a second, of all streams between two times."""
        count = sum(
            number for one in self.streams for at, number in one.arrivals if start <= at < end
        )
        return count / (end - start)


class Client:
    """A connection that is kept for one request after the other."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._path = parts.path.rstrip("/") + "/completions"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, request: Request, arrivals: list[tuple[float, int]] | None = None
    ) -> Stream:
        """Ask, and read to the end; what has come is in `arrivals` meanwhile."""
        is_new = self._streams is None
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        body = request.body()
        head = (
            f"POST {self._path} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        asked = time.perf_counter()
        writer.write(head.encode() + body)
        found = [] if arrivals is None else arrivals
        # What belongs to an event or to the end may come in two parts.
        rest = b""
        is_begun = False
        while True:
            data = await reader.read(_READ)
            if not data and not is_new and not found and not rest:
                # Some servers end a connection after an answer.
                self.close()
                return await self.ask(request, arrivals)
            if not data:
                raise ConnectionError(f"the server closed the connection: {rest[-200:]!r}")
            seen = rest + data
            count = seen.count(_EVENT) - rest.count(_EVENT)
            if count:
                found.append((time.perf_counter(), count))
            if _END in seen and seen.endswith(b"0\r\n\r\n"):
                return Stream(asked=asked, arrivals=tuple(found))
            if not is_begun and b"\r\n\r\n" in seen:
                if not seen.startswith(b"HTTP/1.1 200"):
                    raise ConnectionError(f"the server refused: {seen[:400]!r}")
                is_begun = True
            rest = seen[-64:] if is_begun else seen

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def stream(url: str, request: Request) -> Stream:
    """One request."""
    client = Client(url)
    try:
        return await client.ask(request)
    finally:
        client.close()


async def closed_loop(
    url: str, requests: Sequence[Request], *, clients: int, seconds: float
) -> tuple[Load, float, float]:
    """So many clients, each of which asks again as soon as it is answered; what came, and between which times.

    The seconds begin when all are in their stride: the first answer of each has ended, so that some read while others
    write.
    """
    load = Load()
    answered: set[int] = set()
    start = end = math.inf

    async def wait_for_all() -> None:
        nonlocal start, end
        while len(answered) < clients:
            await asyncio.sleep(0.02)
        start = time.perf_counter()
        end = start + seconds

    async def one(number: int) -> None:
        client, me = Client(url), number
        try:
            while time.perf_counter() < end:
                arrivals: list[tuple[float, int]] = []
                asked = time.perf_counter()
                request = requests[number % len(requests)]
                task = asyncio.create_task(client.ask(request, arrivals))
                done: set[asyncio.Task[Stream]] = set()
                while not done and time.perf_counter() < end:
                    left = min(end - time.perf_counter(), 1.0)
                    done, _ = await asyncio.wait((task,), timeout=max(left, 0))
                if not done:
                    task.cancel()
                    await asyncio.wait((task,))
                if arrivals:
                    load.streams.append(Stream(asked=asked, arrivals=tuple(arrivals)))
                if done:
                    task.result()
                    answered.add(me)
                number += clients
        finally:
            client.close()

    await asyncio.gather(wait_for_all(), *(one(number) for number in range(clients)))
    return load, start, end


async def open_loop(url: str, requests: Sequence[Request], *, rate: float, seconds: float) -> Load:
    """Requests that come at random, so many in a second on average, whether earlier ones are answered or not."""
    generator = random.Random(0)
    load = Load()

    async def one(request: Request) -> None:
        load.streams.append(await stream(url, request))

    tasks: list[asyncio.Task[None]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        await asyncio.sleep(generator.expovariate(rate))
        tasks.append(asyncio.create_task(one(requests[len(tasks) % len(requests)])))
    await asyncio.gather(*tasks)
    return load
