"""This file holds the guard before the application: who may ask, how much may come, and what every response has.

It is an ASGI application around another. Pages of other sites can post to a server on this machine, and read what it
answers if their name leads here, too: so `Host` and `Origin` are checked, whoever asks.

References
----------
.. [1] RFC 9112, "HTTP/1.1", section 9.6, "Tear-down", on closing in stages.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat.serve.api.errors import ApiError, failure
from nanochat.serve.api.ids import new_id
from nanochat.serve.api.messages import error_body
from nanochat.serve.engine import Answer
from nanochat.serve.keys import Key, Keys
from nanochat.serve.settings import LOOPBACK, Settings

__all__ = ["Ended", "Guard"]

_LOGGER = logging.getLogger("nanochat.serve")
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
# What a browser lets the pages of sites send that were named: clients in them have headers of their own, such as
# x-stainless-os, so those that it asks for are allowed; these are, where it asks for none.
_METHODS = "GET, POST, OPTIONS"
_ALLOWED_HEADERS = "authorization, content-type, x-api-key, x-request-id"
_ASKED_HEADERS = "access-control-request-headers"
_NAMES = re.compile(r"[\w, -]{1,2000}", re.ASCII)
# What tells nothing, and whom balancers and browsers ask without a key.
_OPEN = ("/health", "/ready", "/version", "/")
_OPEN_FOLDER = "/page/"
# Of a number of bytes that somebody may send.
_MOST_DIGITS = 18
# Of a path, in the log.
_MOST_SHOWN = 200
# As nginx writes it where the client has left before the answer.
_LEFT = 499


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A request that has had its response, or was left.

    `told` is what the application has said of it: its model and its `Answer`, by these names; `path` is without what a
    proxy has put before it, and `began` of the monotonic clock.
    """

    id: str
    method: str
    path: str
    status: int
    began: float
    headers: Headers
    told: Mapping[str, Any]


class Guard:
    """See above.

    Parameters
    ----------
    keys : Keys, optional
        Absent, everybody may ask.
    refused : callable
        Told the status of each request that the guard refuses; others are the application's to count.
    ended : callable, optional
        Told of each request at its end.
    """

    def __init__(
        self,
        application: ASGIApp,
        settings: Settings,
        keys: Keys | None,
        *,
        refused: Callable[[int], None],
        ended: Callable[[Ended], None] | None = None,
    ) -> None:
        self._application = application
        self.settings = settings
        self._keys = keys
        self.refused = refused
        self.ended = ended
        names = (*LOOPBACK, settings.host, *settings.allow_host)
        self._hosts = {name.lower() for name in names}
        self._any_host = settings.host in ("0.0.0.0", "::") and not settings.allow_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI application."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        await _Call(self, scope, receive, send).run(self._application)

    def admit(self, scope: Scope, headers: Headers) -> Key | None:
        """Who asks.

        Raises
        ------
        ApiError
            If it may not.
        """
        self._check_host(headers)
        origin = headers.get("origin")
        if origin is not None and not self.allows(origin, headers):
            raise ApiError(
                403,
                f"pages of {origin!r:.200} may not ask this server: start it with --allow-origin {origin:.200}",
                type="permission_error",
                code="origin_not_allowed",
            )
        path = _own_path(scope)
        if self._keys is None or path in _OPEN or path.startswith(_OPEN_FOLDER):
            return None
        if scope["method"] == "OPTIONS":
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        key = self._keys.find(given) if given else None
        if key is None:
            raise ApiError(
                401,
                f"{'this is no key of' if given else 'a key is needed for'} this server: send one as "
                "'Authorization: Bearer KEY'",
                type="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if scope["method"] == "POST" and (wait := key.wait_seconds()):
            raise ApiError(
                429,
                f"more than {key.requests} requests in a minute: ask again in {wait:.0f} s",
                type="rate_limit_error",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(int(wait) + 1)},
            )
        return key

    def allows(self, origin: str, headers: Headers) -> bool:
        """Whether pages of a site may ask: those of this server, and of sites that were named."""
        allowed = self.settings.allow_origin
        if "*" in allowed or origin in allowed:
            return True
        site = _split(origin)
        return site is not None and site.netloc == headers.get("host")

    def _check_host(self, headers: Headers) -> None:
        host = headers.get("host", "")
        site = _split(f"//{host}") if _is_host(host) else None
        name = None if site is None else site.hostname
        if not self._any_host and (name is None or name not in self._hosts):
            raise ApiError(
                403,
                f"this server is not called {host!r:.200}: start it with --allow-host {name or 'NAME'}",
                type="permission_error",
                code="host_not_allowed",
            )


class _Call:
    """One request, and its response as far as it is."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self._guard = guard
        self._settings = guard.settings
        self._scope = scope
        self._receive = receive
        self._send = send
        self._headers = Headers(scope=scope)
        given = self._headers.get("x-request-id", "")
        self.id = given if _ID.fullmatch(given) else f"req_{new_id()}"
        # What the application tells of it, for the log.
        self.told: dict[str, Any] = {}
        scope.setdefault("state", {})["told"] = self.told
        scope["state"]["request_id"] = self.id
        self._status: int | None = None
        self._came = 0
        # Whether all of the request is there; and whether the response does not wait for that.
        self._is_whole = not self._has_body
        self._is_early = False
        self._limit = self._settings.max_body
        self._deadline = asyncio.get_running_loop().time() + self._settings.body_timeout

    async def run(self, application: ASGIApp) -> None:
        began = time.monotonic()
        try:
            key = self._guard.admit(self._scope, self._headers)
            self.told["key"] = None if key is None else key.name
            self._scope["state"]["key"] = key
            if self._is_preflight:
                await Response(status_code=204)(self._scope, self._receive, self.send)
                return
            await application(self._scope, self._limited(), self.send)
        except ApiError as error:
            await self._fail(error)
        except asyncio.CancelledError:
            raise
        except Exception:
            _LOGGER.exception("request %s failed", self.id)
            await self._fail(failure(self.id))
        finally:
            if self._guard.ended is not None:
                self._guard.ended(self._as_ended(began))
            self._log(time.monotonic() - began)

    @property
    def _is_preflight(self) -> bool:
        return (
            self._scope["method"] == "OPTIONS"
            and "origin" in self._headers
            and "access-control-request-method" in self._headers
        )

    async def _fail(self, error: ApiError) -> None:
        if self._status is None:
            self._guard.refused(error.status)
            body = error_body(error, self._scope["path"])
            response = JSONResponse(body, error.status, headers=error.headers)
            await response(self._scope, self._receive, self.send)

    @property
    def _has_body(self) -> bool:
        return (
            self._headers.get("content-length", "0").strip("0") != ""
            or "transfer-encoding" in self._headers
        )

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._is_early = not self._is_whole
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.id
            headers["x-content-type-options"] = "nosniff"
            origin = self._headers.get("origin")
            if origin is not None and self._guard.allows(origin, self._headers):
                headers["access-control-allow-origin"] = origin
                headers["access-control-allow-methods"] = _METHODS
                asked = self._headers.get(_ASKED_HEADERS, "")
                headers["access-control-allow-headers"] = (
                    asked if _NAMES.fullmatch(asked) else _ALLOWED_HEADERS
                )
                headers["access-control-expose-headers"] = "x-request-id, retry-after"
                headers.add_vary_header(f"Origin, {_ASKED_HEADERS}")
            if self._is_early:
                headers["connection"] = "close"
        elif self._is_early and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._take_rest()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _take_rest(self) -> None:
        """Let the client send what it has begun to, for as long as a request may take, and read none of it.

        A connection that is closed before is reset, and with it goes the response that the client has not read [1]_.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._deadline):
                while not self._is_whole:
                    message = await self._receive()
                    self._is_whole = not message.get("more_body", False)

    def _limited(self) -> Receive:
        """The request's body, if it is not too long and comes in time."""
        length = self._headers.get("content-length", "0").lstrip("0")
        # Longer numbers than 4300 digits are none to Python.
        if length.isdecimal() and (len(length) > _MOST_DIGITS or int(length) > self._limit):
            raise _too_long(self._limit)

        async def limited() -> Message:
            if self._is_whole:
                return await self._receive()
            try:
                async with asyncio.timeout_at(self._deadline):
                    message = await self._receive()
            except TimeoutError as error:
                raise ApiError(
                    408, f"the body did not come within {self._settings.body_timeout:g} s"
                ) from error
            if message["type"] == "http.request":
                self._came += len(message.get("body", b""))
                self._is_whole = not message.get("more_body", False)
                if self._came > self._limit:
                    raise _too_long(self._limit)
            return message

        return limited

    def _as_ended(self, began: float) -> Ended:
        return Ended(
            id=self.id,
            method=self._scope["method"],
            path=_own_path(self._scope),
            status=self._status or _LEFT,
            began=began,
            headers=self._headers,
            told=self.told,
        )

    def _log(self, seconds: float) -> None:
        scope = self._scope
        fields = {
            "id": self.id,
            "method": scope["method"],
            # As it came: what it stands for may be new lines, and words that look like another request's.
            "path": quote(scope["path"], safe=_PLAIN, errors="replace")[:_MOST_SHOWN],
            "status": self._status or _LEFT,
            "seconds": round(seconds, 4),
            **{name: value for name, value in self.told.items() if value is not None},
        }
        answer: Answer | None = fields.pop("answer", None)
        if answer is not None:
            fields |= {
                "prompt": answer.num_prompt_tokens,
                "cached": answer.cached,
                "tokens": answer.num_tokens,
                "finish": "cancelled" if answer.is_cancelled else answer.finish_reason,
            }
        if self._settings.json_log:
            _LOGGER.info("%s", json.dumps(fields))
        else:
            words = [f"{name}={value}" for name, value in fields.items() if name not in _FIRST]
            _LOGGER.info(
                "%s %s %s %s", fields["method"], fields["path"], fields["status"], " ".join(words)
            )


_FIRST = ("method", "path", "status")
# What paths have besides letters and digits.
_PLAIN = "/-._~!$&'()*+,;=:@"


def _own_path(scope: Scope) -> str:
    """The path without what a proxy has put before each."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _too_long(limit: int) -> ApiError:
    return ApiError(
        413, f"the body is longer than {limit} bytes: send less, or start with --max-body"
    )


def _split(url: str) -> SplitResult | None:
    """The parts of a URL that a client has made up, if it is one."""
    try:
        return urlsplit(url)
    except ValueError:
        return None


def _is_host(host: str) -> bool:
    return bool(re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d+)?", host, re.ASCII))
