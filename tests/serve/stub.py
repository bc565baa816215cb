"""This file holds a server that is none: it has the page, and says what a test wants it to say."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route

from nanochat.serve.chat_page import page_routes

__all__ = ["Stub"]

# As behind a proxy that has put it there.
PLACE = "/llm"
_PIECE = 7


class Stub:
    """See above; until the end of its context.

    Attributes
    ----------
    asked : list of dict
        The requests that came.
    num_left : int
        Clients that have left.
    """

    def __init__(self, *, models: Sequence[str] = ("one", "two")) -> None:
        self.asked: list[dict[str, Any]] = []
        self.num_left = 0
        self._models = models
        self.say("")
        api = [
            Route("/v1/models", self._list),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
        ]
        app = Starlette(routes=[Mount(PLACE, routes=[*page_routes(), *api])])
        config = uvicorn.Config(app, port=0, log_config=None, lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> "Stub":
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()

    @property
    def url(self) -> str:
        """Where its page is."""
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}{PLACE}/"

    def say(
        self,
        text: str,
        *,
        thoughts: str = "",
        logprobs: Sequence[dict[str, Any]] = (),
        is_endless: bool = False,
        breaks: bool = False,
    ) -> None:
        """Answer with a text in small pieces from here on.

        Parameters
        ----------
        is_endless : bool
            Whether silence follows until the client leaves.
        breaks : bool
            Whether the answer has no proper end.
        """
        self._deltas = [{"reasoning_content": piece} for piece in _pieces(thoughts)]
        self._deltas += [{"content": piece} for piece in _pieces(text)]
        self._logprobs = list(logprobs)
        self._is_endless, self._breaks = is_endless, breaks

    async def _list(self, request: Request) -> JSONResponse:
        del request
        return JSONResponse({"data": [{"id": name} for name in self._models]})

    async def _chat(self, request: Request) -> StreamingResponse:
        self.asked.append(await request.json())
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[str]:
        is_endless = self._is_endless
        for delta in self._deltas:
            yield _event({"choices": [{"delta": delta}]})
        if self._logprobs:
            yield _event({"choices": [{"delta": {}, "logprobs": {"content": self._logprobs}}]})
        try:
            while is_endless:
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.num_left += 1
            raise
        if self._breaks:
            return
        yield _event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        yield "data: [DONE]\n\n"


def _pieces(text: str) -> list[str]:
    """A text in small parts."""
    return [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)]


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"
