"""This file holds log-probabilities as OpenAI's API shows them: of chats, and of completions."""

from collections.abc import Sequence
from typing import Any

from nanochat.generation.options import Piece
from nanochat.text.codec import TextCodec

__all__ = ["CompletionLogprobs", "chat_logprob"]

Top = Sequence[tuple[int, float]]


def chat_logprob(piece: Piece, codec: TextCodec) -> dict[str, Any]:
    """One token of an answer, with the most probable ones at its place."""
    top = [{**_shown(token, codec), "logprob": logprob} for token, logprob in piece.top_logprobs]
    return {**_shown(piece.token, codec), "logprob": piece.logprob, "top_logprobs": top}


def _shown(token: int, codec: TextCodec) -> dict[str, Any]:
    """A token's text, with U+FFFD for what is none by itself, and its bytes."""
    content = codec.token_bytes(token)
    return {"token": content.decode("utf-8", "replace"), "bytes": [*content]}


class CompletionLogprobs:
    """The log-probabilities of a completion, whose tokens come one after the other.

    Parameters
    ----------
    alternatives : int
        Most probable tokens to tell of at each place; the token that is there is told in any case.
    """

    def __init__(self, codec: TextCodec, *, alternatives: int) -> None:
        self._codec = codec
        self._offset = 0
        self._alternatives = alternatives
        self._names = {token: name for name, token in codec.specials.items()}
        self._clear()

    def add(self, token: int, logprob: float | None, top: Top, *, length: int) -> None:
        """Count a token that has so many characters; a prompt's first one has no log-probability."""
        self._tokens.append(self._name(token))
        self._logprobs.append(logprob)
        self._offsets.append(self._offset)
        self._offset += length
        if logprob is None:
            self._top.append(None)
            return
        told: dict[str, float] = {}
        for other, value in top[: self._alternatives]:
            told.setdefault(self._name(other), value)
        # With the very same number: programs compare them.
        told[self._name(token)] = logprob
        self._top.append(told)

    def take(self) -> dict[str, Any]:
        """What was counted since the last time."""
        found = {
            "tokens": self._tokens,
            "token_logprobs": self._logprobs,
            "top_logprobs": self._top,
            "text_offset": self._offsets,
        }
        self._clear()
        return found

    def _clear(self) -> None:
        self._tokens: list[str] = []
        self._logprobs: list[float | None] = []
        self._top: list[dict[str, float] | None] = []
        self._offsets: list[int] = []

    def _name(self, token: int) -> str:
        """The text of a token; of one that has none by itself, its bytes or its name, so that no two are alike."""
        content = self._codec.token_bytes(token)
        try:
            text = content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
        return text or self._names.get(token, f"token:{token}")
