"""This file holds the application: what is asked at which path, and who answers.

It is an ASGI application for any server of such; `nanochat.serve.run` is ours.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from nanochat import __version__
from nanochat.errors import NanochatError
from nanochat.generation.options import GenerationOptions
from nanochat.serve.api.chat import ChatEvents, ask_chat, chat_answer
from nanochat.serve.api.completions import CompletionEvents, ask_completion, completion_answer
from nanochat.serve.api.embeddings import embeddings_answer
from nanochat.serve.api.errors import ApiError, as_api_error, failure
from nanochat.serve.api.messages import (
    MessageEvents,
    MessageRequest,
    ask_message,
    error_body,
    message_answer,
)
from nanochat.serve.api.openapi import as_page, document
from nanochat.serve.api.responses import (
    ResponseEvents,
    ResponseRequest,
    ask_response,
    response_answer,
)
from nanochat.serve.api.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
    read_request,
)
from nanochat.serve.api.sse import EventStream, Translator, until_gone
from nanochat.serve.api.tokens import detokenized, tokenized, tokenizer_info
from nanochat.serve.chat_page import page_routes
from nanochat.serve.engine import Answer
from nanochat.serve.guard import Guard
from nanochat.serve.keys import Key, Keys
from nanochat.serve.metrics import Metrics
from nanochat.serve.served import Served, find_model
from nanochat.serve.settings import Settings
from nanochat.serve.traces import Traces

__all__ = ["Server", "application"]

Result = TypeVar("Result")

_LOGGER = logging.getLogger("nanochat.serve")

# A step that takes so many seconds will not end.
_STUCK_SECONDS = 30.0
# Bodies from which on reading and encoding take so long that streams would wait for it.
_LARGE_BODY = 20_000
# Unknown fields of a request that are named in the log.
_NAMED = 5


@dataclass(kw_only=True)
class Server:
    """What the paths share."""

    settings: Settings
    metrics: Metrics
    # By each of their names.
    models: Mapping[str, Served] = field(default_factory=dict)
    # While it leaves, it answers, but says that it is not ready: balancers shall look for another.
    phase: Literal["loading", "ready", "leaving", "draining"] = "loading"
    keys: Keys | None = None
    traces: Traces | None = None
    # Set once an engine has ended by itself, for whoever runs the server.
    engine_died: asyncio.Event = field(default_factory=asyncio.Event)

    def require_ready(self, *, for_long: bool = False) -> None:
        """Refuse what comes too early or too late; `for_long`, while it leaves, too, since more shall follow."""
        if self.phase != "ready" and (for_long or self.phase != "leaving"):
            is_early = self.phase == "loading"
            raise ApiError(
                503,
                "the model is being loaded" if is_early else "the server is ending",
                type="server_error",
                code="not_ready" if is_early else "shutting_down",
                headers={"Retry-After": "2"},
            )
        self._require_engines()

    def require_health(self) -> None:
        """Raise what ails it, if anything does."""
        self._require_engines()
        for served in self.models.values():
            if served.engine.step_seconds > _STUCK_SECONDS:
                raise ApiError(503, "an engine is stuck", type="server_error", code="engine_failed")

    def _require_engines(self) -> None:
        if not all(served.engine.is_alive for served in self.models.values()):
            raise ApiError(503, "an engine has died", type="server_error", code="engine_failed")


class _Asked(Protocol):
    """A request for texts that was read."""

    @property
    def served(self) -> Served: ...

    @property
    def prompts(self) -> list[list[int]]: ...

    @property
    def n(self) -> int: ...

    @property
    def options(self) -> GenerationOptions: ...


class _Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def application(server: Server) -> ASGIApp:
    """The paths of a server, behind its guard."""

    def bound(
        answer: Callable[[Server, Request], Awaitable[Response]],
    ) -> Callable[[Request], Awaitable[Response]]:
        return partial(answer, server)

    posts: dict[str, Callable[[Server, Request], Awaitable[Response]]] = {
        **{path: partial(_generate, api) for path, api in _APIS.items()},
        "/v1/embeddings": _embeddings,
        "/tokenize": _tokenize,
        "/detokenize": _detokenize,
    }
    gets = {
        "/v1/models": _models,
        "/v1/models/{id:path}": _model,
        "/tokenizer_info": _tokenizer_info,
        "/health": _health,
        "/ready": _ready,
        "/metrics": _metrics,
        "/version": _version,
        "/openapi.json": _openapi,
        "/docs": _docs,
    }
    routes = [
        *(Route(path, bound(answer), methods=["POST"]) for path, answer in posts.items()),
        *(Route(path, bound(answer), methods=["GET"]) for path, answer in gets.items()),
        *(page_routes() if server.settings.page else ()),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            kind: partial(_refuse, server) for kind in (ApiError, HTTPException, Exception)
        },
    )
    app.router.redirect_slashes = False
    return Guard(
        app,
        server.settings,
        server.keys,
        refused=server.metrics.was_refused,
        ended=None if server.traces is None else server.traces.ended,
    )


async def _refuse(server: Server, request: Request, error: Exception) -> Response:
    """The answer to a request that gets none, in the words of the API that it asked."""
    # Its URL would be read with the client's `Host`, which may be none.
    path: str = request.scope["path"]
    match error:
        case ApiError():
            told = error
        case HTTPException():
            words = {
                404: f"there is nothing at {path!r:.200}",
                405: f"{request.method} is not for {path!r:.200}",
            }
            text = words.get(error.status_code, error.detail)
            told = ApiError(error.status_code, text, headers=dict(error.headers or {}))
        case _:
            told = failure(request.state.request_id)
    server.metrics.was_refused(told.status)
    return _Json(error_body(told, path), told.status, headers=told.headers)


async def _read(server: Server, request: Request, kind: type[Any]) -> tuple[Any, Served, int]:
    """A request, the model that it asks, and the bytes of its body."""
    server.require_ready()
    media = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if media.lower() != "application/json":
        raise ApiError(415, f"the body is {media!r:.80}: send application/json")
    body = await request.body()
    if len(body) > _LARGE_BODY:
        asked, unknown = await asyncio.to_thread(read_request, body, kind)
    else:
        asked, unknown = read_request(body, kind)
    if unknown:
        _LOGGER.info("%s: fields %s are not known", request.scope["path"], _named(unknown))
    served = find_model(server.models, asked.model)
    request.state.told["model"] = served.id
    return asked, served, len(body)


def _named(fields: Sequence[str]) -> str:
    """Names that a client has made up, for the log: some of them, and not all of what they may hold."""
    few = ", ".join(f"{name!r:.40}" for name in fields[:_NAMED])
    return few if len(fields) <= _NAMED else f"{few} and {len(fields) - _NAMED} more"


async def _translated(
    function: Callable[[], Result], served: Served, kind: type[Any], *, size: int
) -> Result:
    """What a function gives, beside the loop if it has much to do, or what a client is told of its error."""
    try:
        return await asyncio.to_thread(function) if size > _LARGE_BODY else function()
    except NanochatError as error:
        fields = frozenset(kind.__struct_fields__)
        raise as_api_error(error, context=served.context, fields=fields) from error


@dataclass(frozen=True, kw_only=True)
class _Api:
    """One way to ask for texts: the fields of its requests, and how they are read and answered."""

    kind: type[msgspec.Struct]
    ask: Callable[[Any, Served], _Asked]
    whole: Callable[[Any, Answer], Awaitable[dict[str, Any]]]
    events: Callable[[Any], Translator]


_APIS = {
    "/v1/chat/completions": _Api(
        kind=ChatRequest, ask=ask_chat, whole=chat_answer, events=ChatEvents
    ),
    "/v1/completions": _Api(
        kind=CompletionRequest,
        ask=ask_completion,
        whole=completion_answer,
        events=CompletionEvents,
    ),
    "/v1/responses": _Api(
        kind=ResponseRequest, ask=ask_response, whole=response_answer, events=ResponseEvents
    ),
    "/v1/messages": _Api(
        kind=MessageRequest, ask=ask_message, whole=message_answer, events=MessageEvents
    ),
}


async def _generate(api: _Api, server: Server, request: Request) -> Response:
    """An answer, as a whole or as events."""
    read, served, size = await _read(server, request, api.kind)
    # A form takes up to a second to compile.
    if any(
        getattr(read, name, None)
        for name in ("response_format", "structured_outputs", "grammar", "text", "tools")
    ):
        size += _LARGE_BODY
    asked = await _translated(partial(api.ask, read, served), served, api.kind, size=size)
    answer = await _translated(partial(_submit, request, asked), served, api.kind, size=0)
    seconds = server.settings.request_timeout
    answer.limit(
        seconds,
        ApiError(
            504, f"the answer took more than {seconds:g} s", type="server_error", code="timeout"
        ),
    )
    request.state.told["answer"] = answer
    try:
        if read.stream:
            await _unless_gone(request, answer.accepted())
            return EventStream(answer, api.events(asked))
        return _Json(await _unless_gone(request, api.whole(asked, answer)))
    except NanochatError as error:
        answer.cancel()
        fields = frozenset(api.kind.__struct_fields__)
        raise as_api_error(error, context=served.context, fields=fields) from error
    except BaseException:
        answer.cancel()
        raise


def _give_back(key: Key, count: int) -> None:
    key.num_texts -= count


async def _unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """What the work gives; it is given up if the client leaves."""
    task: asyncio.Future[Result] = asyncio.ensure_future(work)
    gone = asyncio.create_task(until_gone(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client has left")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


def _submit(request: Request, asked: _Asked) -> Answer:
    key: Key | None = request.state.key
    engine, count = asked.served.engine, len(asked.prompts) * asked.n
    if count > engine.most_texts:
        raise ApiError(
            400, f"{count} texts in one request, and this server takes {engine.most_texts}"
        )
    if key is not None and key.rows and key.num_texts + count > key.rows:
        raise ApiError(
            429,
            f"more than {key.rows} texts at once for this key: wait until some have ended",
            type="rate_limit_error",
            code="rate_limit_exceeded",
            headers={"Retry-After": "1"},
        )
    answer = engine.submit(asked.prompts, asked.options, n=asked.n)
    if key is not None:
        key.num_texts += count
        answer.when_over(partial(_give_back, key, count))
    return answer


async def _embeddings(server: Server, request: Request) -> Response:
    asked, served, _ = await _read(server, request, EmbeddingRequest)
    try:
        return _Json(await _unless_gone(request, embeddings_answer(asked, served)))
    except NanochatError as error:
        fields = frozenset(EmbeddingRequest.__struct_fields__)
        raise as_api_error(error, context=served.context, fields=fields) from error


async def _tokenize(server: Server, request: Request) -> Response:
    asked, served, size = await _read(server, request, TokenizeRequest)
    found = partial(tokenized, asked, served)
    return _Json(await _translated(found, served, TokenizeRequest, size=size))


async def _detokenize(server: Server, request: Request) -> Response:
    asked, served, size = await _read(server, request, DetokenizeRequest)
    found = partial(detokenized, asked, served)
    return _Json(await _translated(found, served, DetokenizeRequest, size=size))


async def _tokenizer_info(server: Server, request: Request) -> Response:
    server.require_ready()
    served = find_model(server.models, request.query_params.get("model"))
    return _Json(tokenizer_info(served))


async def _models(server: Server, request: Request) -> Response:
    del request
    server.require_ready()
    cards = [served.card(name) for name, served in server.models.items()]
    return _Json({"object": "list", "data": cards})


async def _model(server: Server, request: Request) -> Response:
    server.require_ready()
    name = request.path_params["id"]
    return _Json(find_model(server.models, name).card(name))


async def _health(server: Server, request: Request) -> Response:
    del request
    server.require_health()
    return _Json({"status": "ok"})


async def _ready(server: Server, request: Request) -> Response:
    del request
    server.require_ready(for_long=True)
    return _Json({"status": "ready"})


async def _metrics(server: Server, request: Request) -> Response:
    del request
    text = server.metrics.text([served.engine.load for served in set(server.models.values())])
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _version(server: Server, request: Request) -> Response:
    del server, request
    return _Json({"version": __version__})


_POSTED: dict[str, type[msgspec.Struct]] = {
    **{path: api.kind for path, api in _APIS.items()},
    "/v1/embeddings": EmbeddingRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
_TOLD = {
    "/v1/models": "The models that are served.",
    "/v1/models/{id}": "One of them.",
    "/tokenizer_info": "What a client must know to encode by itself.",
    "/health": "Whether the server works.",
    "/ready": "Whether it takes requests.",
    "/metrics": "What it counts, for Prometheus.",
    "/version": "Its version.",
}


async def _openapi(server: Server, request: Request) -> Response:
    del request
    return _Json(document(_POSTED, _TOLD, root_path=server.settings.root_path))


async def _docs(server: Server, request: Request) -> Response:
    del request
    page = as_page(document(_POSTED, _TOLD, root_path=server.settings.root_path))
    policy = "default-src 'none'; frame-ancestors 'none'"
    return HTMLResponse(page, headers={"content-security-policy": policy})
