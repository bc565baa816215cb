"""This file holds the case `drafts`: what it is worth to guess what texts say, and what forms of texts cost.

A model of 125 million random weights writes each text with guesses and without, in turns, in one session each; the
texts are the same, and the benchmark ends if they are not. What the text is decides how many guesses stand: one that
repeats itself, as a greedy text of random weights does; an edit, of which every tenth token differs from what was
predicted; and any, which is drawn at temperature 1 and seldom repeats.
"""

import json
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.cpu_models import plain
from bench.result import Result, table
from nanochat.backends.host import num_cores
from nanochat.backends.numba.ops import NumbaOps
from nanochat.errors import counted
from nanochat.generation.engine import Engine
from nanochat.generation.session import Session
from nanochat.text.grammar import Vocabulary, json_grammar
from nanochat.text.tokenizer import Tokenizer
from tests.parity.random_models import random_packed_weights

__all__ = ["run", "table"]

_PROMPT = [7 + i * i % 250 for i in range(64)]
_TOKENS = 200
_GREEDY: dict[str, Any] = {"temperature": 0.0}
_DRAWN: dict[str, Any] = {"temperature": 1.0, "seed": 1}
_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
        "note": {"type": "string"},
    },
    "required": ["name", "age", "tags", "note"],
    "additionalProperties": False,
}
_DOCUMENT = {
    "name": "Ada Lovelace",
    "age": 36,
    "tags": ["red", "blue"],
    "note": "She wrote a program for a machine that nobody had built.",
}


def run(quick: bool) -> Iterator[Result]:
    """Texts of three kinds on one thread and on all, and the masks of a form."""
    config = plain("nano-125m")
    weights = random_packed_weights(config, seed=0)
    for threads in dict.fromkeys((1, num_cores())):
        ops = NumbaOps(num_threads=threads)
        engine = Engine(config, ops.prepare(weights), ops, kv_cache="float16")
        case = _Texts(engine, f"nano-125m, {counted(threads, 'thread')}", turns=5 if quick else 25)
        yield from case.results()
    yield from _masks(case.step_seconds)


class _Texts:
    """A session of one text, and how long it writes."""

    def __init__(self, engine: Engine[Any, Any, Any], name: str, *, turns: int) -> None:
        self.name = name
        self._turns = turns
        tokenizer = Tokenizer.train(["a"], vocab_size=263)
        capacity = len(_PROMPT) + _TOKENS
        self._session = Session(engine, tokenizer, rows=1, capacity=capacity, prefix_cache=False)
        # What a token takes without guesses.
        self.step_seconds = 0.0

    def results(self) -> Iterator[Result]:
        """Tokens a second with guesses, beside those without."""
        drawn, _ = self._written(**_DRAWN)
        # As many tokens, of which some are others.
        edit = [token if i % 10 else token // 2 + 5 for i, token in enumerate(drawn)]
        texts = {
            "a text that repeats itself": (_GREEDY, {}, None),
            "an edit": (_DRAWN, {"prediction": edit}, 1.5),
            "any text": (_DRAWN, {}, 0.98),
        }
        for what, (options, guessed, target) in texts.items():
            yield self._beside(what, options, {"draft": True, **guessed}, target)

    def _beside(
        self, what: str, options: dict[str, Any], guessed: dict[str, Any], target: float | None
    ) -> Result:
        with_guesses: list[float] = []
        without: list[float] = []
        for turn in range(self._turns + 2):
            for found, more in ((with_guesses, guessed), (without, {})):
                tokens, seconds = self._written(**options, **more)
                if found is with_guesses:
                    expected = tokens
                elif tokens != expected:
                    raise AssertionError(f"{what}: guesses have changed the text")
                # In the first turns, what steps take is learned.
                if turn >= 2:
                    found.append(seconds)
        self.step_seconds = median(without) / _TOKENS
        times = median(without) / median(with_guesses)
        return Result(
            case="drafts",
            what=f"{what}, {self.name}",
            unit="tokens/s",
            ours=_TOKENS / median(with_guesses),
            low=_TOKENS / max(with_guesses),
            high=_TOKENS / min(with_guesses),
            peer=_TOKENS / median(without),
            peer_name="without",
            ratio=times,
            target=target,
            ok=target is None or times >= target,
        )

    def _written(self, **options: Any) -> tuple[list[int], float]:
        begin = time.perf_counter()
        pieces = self._session.pieces([_PROMPT], max_tokens=_TOKENS, ignore_eos=True, **options)
        tokens = [next(pieces).token]
        # The prompt is the same work for all.
        begin = time.perf_counter()
        tokens += [piece.token for piece in pieces]
        return tokens, time.perf_counter() - begin


def _masks(step_seconds: float) -> Iterator[Result]:
    """Which of 32,768 tokens may follow, at each token of a document, beside the step that chooses one."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    tokenizer = Tokenizer.train((file.read_text() for file in files), vocab_size=32_768)
    form = json_grammar(Vocabulary(tokenizer), _SCHEMA)
    tokens = tokenizer.encode(json.dumps(_DOCUMENT, separators=(",", ":")))
    allowed = np.zeros(-(-tokenizer.vocab_size // 32), np.uint32)
    seconds = []
    for _ in range(20):
        matcher = form.matcher()
        for token in tokens:
            begin = time.perf_counter()
            matcher.fill(allowed)
            matcher.push(token)
            seconds.append(time.perf_counter() - begin)
    mean = float(np.mean(seconds))
    yield Result(
        case="drafts",
        what=f"mask of a schema, {tokenizer.vocab_size} tokens",
        unit="us",
        ours=1e6 * mean,
        low=1e6 * float(np.percentile(seconds, 99)),
        high=1e6 * min(seconds),
        peer=1e6 * step_seconds,
        peer_name="step",
        ratio=mean / step_seconds,
        target=0.05,
        ok=mean <= 0.05 * step_seconds,
    )
