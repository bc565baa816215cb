"""This file holds who writes lessons: a model that is loaded here, or one behind an API like OpenAI's."""

import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any, Protocol
from urllib.parse import urlsplit

from nanochat.errors import ContextLengthError, InputError, WriterError
from nanochat.evaluation.evaluate import model_record
from nanochat.lm import Model
from nanochat.text.messages import Message

__all__ = ["AddressWriter", "ModelWriter", "Writer"]

_LOGGER = logging.getLogger(__name__)

_KEY = "OPENAI_API_KEY"
_TOKENS = 1024
_MAX_BYTES = 4 * 2**20
_SHOWN = 200
# What may go well the next time: too many requests, and a server that is busy or starting.
_LATER = {408, 409, 429, 500, 502, 503, 504}


class Writer(Protocol):
    """Whoever answers messages with a text."""

    def write(self, messages: Sequence[Message]) -> str:
        """The answer to a conversation, whose last message is a user's."""

    def describe(self) -> Mapping[str, object]:
        """Who writes; answers are compared with those of the same one only."""


class ModelWriter:
    """A model that is loaded here; it answers with its most probable tokens.

    Parameters
    ----------
    model : Model
        One that was trained to chat.
    max_tokens : int
        Most tokens of an answer.

    Raises
    ------
    InputError
        If it cannot: it was not trained to chat, or brings no template of conversations.
    """

    def __init__(self, model: Model, *, max_tokens: int = _TOKENS) -> None:
        if model.usage.chats is False or not model.tokenizer.chat_template:
            raise InputError(
                f"{model.name} continues texts and follows no instructions, so it cannot write lessons: pass another "
                "--writer, a model that was trained to chat or the address of one, or take --method examples, which "
                "needs no writer"
            )
        self._model = model
        self._max_tokens = max_tokens

    def write(self, messages: Sequence[Message]) -> str:
        """See `Writer`.

        Raises
        ------
        ContextLengthError
            If the conversation leaves no room for an answer.
        """
        try:
            return self._model.chat(messages, max_tokens=self._max_tokens)
        except ContextLengthError as error:
            raise ContextLengthError(
                f"{self._model.name} cannot read what lessons are written from: {error}; pass another --writer, with a "
                "context of some thousand tokens"
            ) from error

    def describe(self) -> Mapping[str, object]:
        """See `Writer`."""
        return model_record(self._model)


class AddressWriter:
    """A model at an address with ``/chat/completions``, as `nanochat serve` and many services have it.

    The key is taken from the environment, ``OPENAI_API_KEY``, and sent nowhere else than to this address.

    Parameters
    ----------
    url : str
        Such as ``http://127.0.0.1:8000/v1``.
    model : str
        Its name there.
    max_tokens : int
        Most tokens of an answer.
    timeout : float
        Seconds that an answer may take.
    retries : int
        How often a request is sent again that was not served.
    pause : float
        Seconds before the first of those, and twice as many before each next one.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        max_tokens: int = _TOKENS,
        timeout: float = 120.0,
        retries: int = 4,
        pause: float = 1.0,
    ) -> None:
        if not _is_address(url):
            raise InputError(f"{url} is no address: pass one such as http://127.0.0.1:8000/v1")
        if not model:
            raise InputError(f"{url} serves models by their names: pass one as --writer-model")
        self._url = url.rstrip("/")
        self._model = model
        self._max_tokens = max_tokens
        self._timeout = timeout
        self._retries = retries
        self._pause = pause
        self._opener = urllib.request.build_opener(_NoRedirects)

    def write(self, messages: Sequence[Message]) -> str:
        """See `Writer`.

        Raises
        ------
        WriterError
            If no answer comes, or none that can be read.
        """
        body = {
            "model": self._model,
            "messages": [dict(message) for message in messages],
            "max_tokens": self._max_tokens,
            "temperature": 0,
        }
        answer = self._asked(json.dumps(body).encode())
        try:
            text = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise WriterError(
                f"{self._url} answered with {_text(answer)!r}, which is no chat completion: pass the address of an API "
                "like OpenAI's, which often ends in /v1"
            ) from error
        # A model that only thought has said nothing.
        return text if isinstance(text, str) else ""

    def describe(self) -> Mapping[str, object]:
        """See `Writer`."""
        return {"url": self._url, "name": self._model}

    def _asked(self, body: bytes) -> bytes:
        for number in range(self._retries + 1):
            try:
                return self._sent(body)
            except (OSError, HTTPException) as error:
                why = self._why(error)
                # An `HTTPError` is an `OSError`, too.
                is_final = isinstance(error, urllib.error.HTTPError) and error.code not in _LATER
                if is_final or number == self._retries:
                    raise WriterError(why) from error
                seconds = self._pause * 2**number
                _LOGGER.warning("%s; trying again in %g s", why, seconds)
                time.sleep(seconds)
        raise AssertionError

    def _sent(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(_KEY, "").strip():
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self._url}/chat/completions", body, headers)
        with self._opener.open(request, timeout=self._timeout) as response:
            found: bytes = response.read(_MAX_BYTES)
            return found

    def _why(self, error: Exception) -> str:
        if not isinstance(error, urllib.error.HTTPError):
            reason = getattr(error, "reason", None) or error
            return (
                f"{self._url} does not answer ({reason}): is the address right, and is it running?"
            )
        with error:
            said = _text(error.read(_MAX_BYTES))
        if error.code in (401, 403):
            return f"{self._url} wants another key ({error.code}): set {_KEY} to one that it takes"
        if error.code == 404:
            return (
                f"{self._url} has no such page or model {self._model!r} (404: {said}): pass an address that often ends "
                "in /v1, and as --writer-model a name that it serves"
            )
        if error.code in (301, 302, 303, 307, 308):
            return f"{self._url} sends on to {error.headers.get('Location')}: pass that address"
        return f"{self._url} answered with {error.code}: {said}"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves redirects as errors: the key would follow them to another's server."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """See `urllib.request.HTTPRedirectHandler`."""


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and url.isprintable()
            and " " not in url
        )
    except ValueError:
        return False


def _text(answer: bytes) -> str:
    return answer.decode(errors="replace")[:_SHOWN]
