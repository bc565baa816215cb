"""This file holds the completing of functions: many samples of many prompts at once, each until its function closes."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from nanochat.errors import ContextLengthError, InputError
from nanochat.generation.engine import Runner
from nanochat.generation.options import GenerationOptions, Piece
from nanochat.generation.prompts import encode_prompt
from nanochat.generation.session import Session
from nanochat.rust.completion import FunctionEnd
from nanochat.text.codec import TextCodec

__all__ = ["Completion", "Drawing", "Request", "complete", "seed_of"]

Finish = Literal["closed", "stop", "length"]

# Texts that are written at the same time.
_ROWS = 64
# Texts of one call of a session.
_MOST_AT_ONCE = 128


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How samples are drawn.

    Parameters
    ----------
    num_samples : int
        For each problem; 1 at temperature 0, where all would be equal.
    temperature, top_p : float
        See `nanochat.generation.sampling.Sampling`.
    max_tokens : int
        Most tokens of a sample; fewer where the context ends before.
    seed : int
        What all samples follow from. A sample depends on it, its problem and its number, and on no other sample.
    """

    num_samples: int = 10
    temperature: float = 0.8
    top_p: float = 0.95
    max_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise InputError(f"{self.num_samples} samples of a problem are none: take 1 or more")
        if self.temperature == 0 and self.num_samples > 1:
            raise InputError(
                f"{self.num_samples} samples at temperature 0 are all the same: take 1, or a temperature above 0"
            )


class Request(NamedTuple):
    """A prompt whose function shall be completed, and the numbers of the samples that are wanted of it.

    `before` is read by the model in front of the prompt, and belongs to no program: a function ends where it would
    without it.
    """

    id: str
    prompt: str
    samples: Sequence[int]
    before: str = ""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One sample.

    Parameters
    ----------
    id : str
        That of its request.
    sample : int
        Its number.
    text : str
        What the model wrote, to the end of the token in which the function closes, or to where it stopped.
    finish : "closed", "stop" or "length"
        Whether its function closed, or the model ended the text, or it was cut off.
    tokens : tuple of int
        What was chosen.
    logprobs : tuple of float
        The log-probability of each, in the softmax of the model's logits; none at a temperature of 0.
    """

    id: str
    sample: int
    text: str
    finish: Finish
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


def seed_of(*parts: object) -> int:
    """A seed that follows from all of `parts`, and is unlike those of others: neighbouring seeds share random numbers.

    >>> seed_of(0, "larger", 1) == seed_of(0, "larger", 2)
    False
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:7], "little")


def complete(
    engine: Runner[Any], tokenizer: TextCodec, requests: Sequence[Request], drawing: Drawing
) -> Iterator[Completion]:
    """Yield samples of all requests as they end, which is in no order.

    A prompt is read once for all of its samples, and a sample that has ended makes room for another.

    Raises
    ------
    ContextLengthError
        If a prompt leaves no room for an answer, before any is completed.
    """
    prompts = [encode_prompt(request.before + request.prompt, tokenizer) for request in requests]
    context = engine.config.context_length
    for request, ids in zip(requests, prompts, strict=True):
        if len(ids) >= context:
            raise ContextLengthError(
                f"the prompt of {request.id} has {len(ids)} tokens, and the model's context {context}: leave it out"
            )
    longest = max(map(len, prompts), default=0)
    capacity = min(longest + drawing.max_tokens, context)
    session = Session(engine, tokenizer, rows=_ROWS, capacity=capacity)
    texts: dict[int, _Growing] = {}
    for request, ids in zip(requests, prompts, strict=True):
        for first in range(0, len(request.samples), _MOST_AT_ONCE):
            numbers = request.samples[first : first + _MOST_AT_ONCE]
            options: GenerationOptions = {
                "n": len(numbers),
                "seed": [seed_of(drawing.seed, request.id, number) for number in numbers],
                "temperature": drawing.temperature,
                "top_p": drawing.top_p,
                "max_tokens": min(drawing.max_tokens, context - len(ids)),
                "logprobs": 0 if drawing.temperature else None,
            }
            for row, number in zip(session.add(ids, **options), numbers, strict=True):
                texts[row] = _Growing(request, number)
    while texts:
        for piece in session.step():
            if piece.error is not None:
                raise piece.error
            # A text may have two tokens of its first step, of which the first was the last that counts.
            text = texts.get(piece.row)
            if text is not None and text.push(piece):
                del texts[piece.row]
                if session.holds(piece.row):
                    session.cancel(piece.row, keep=False)
                yield text.completion(piece)


class _Growing:
    """A sample while it is written."""

    def __init__(self, request: Request, number: int) -> None:
        self._request = request
        self._number = number
        self._watch = FunctionEnd(request.prompt)
        self._texts: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[float] = []

    def push(self, piece: Piece) -> bool:
        """Take a token; whether it was the last."""
        self._tokens.append(piece.token)
        if piece.logprob is not None:
            self._logprobs.append(piece.logprob)
        self._texts.append(piece.text)
        return self._watch.feed(piece.text) is not None or piece.finish_reason is not None

    def completion(self, last: Piece) -> Completion:
        """What it has become."""
        finish: Finish = "length" if last.finish_reason == "length" else "stop"
        return Completion(
            id=self._request.id,
            sample=self._number,
            text="".join(self._texts),
            finish="closed" if self._watch.end is not None else finish,
            tokens=tuple(self._tokens),
            logprobs=tuple(self._logprobs),
        )
