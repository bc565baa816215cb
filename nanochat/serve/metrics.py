"""This file holds what the server counts, for Prometheus.

Label values are those of the server: nothing that a client sends becomes one.
"""

import time
from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from nanochat.generation.options import Piece
from nanochat.generation.places import Load
from nanochat.generation.session import Session
from nanochat.serve.engine import Answer

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_STEP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of a server; each has a registry of its own, so that a process may hold several."""

    def __init__(self, *, version: str) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"nanochat_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"nanochat_{name}", text, registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"nanochat_{name}", text, buckets=buckets, registry=registry)

        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts")
        self.cached_tokens = counter("cached_tokens", "Tokens of prompts that were known")
        self.generated_tokens = counter("generated_tokens", "Tokens that were chosen")
        self.drafted_tokens = counter("drafted_tokens", "Tokens that were guessed")
        self.accepted_tokens = counter("accepted_tokens", "Guessed tokens that stood")
        self.answers = counter("answers", "Answers that have ended", "finish")
        self.refused = counter("refused", "Requests that got an error", "status")
        self.cancelled = counter("cancelled", "Answers that their clients left", "where")
        self.preempted = counter("preempted", "Texts that were put aside for want of pages")
        self._put_aside = 0
        self.rows = gauge("rows", "Texts that are being written")
        self.queue = gauge("queue", "Texts that wait for a row")
        self.pages_used = gauge("pages_used", "Pages of keys and values that are in use or kept")
        self.pages_cached = gauge("pages_cached", "Pages that are kept for prompts to come")
        self.first_token = histogram("first_token_seconds", "Time to the first token", _SECONDS)
        self.answer = histogram("answer_seconds", "Time of whole answers", _SECONDS)
        self.token = histogram("token_seconds", "Time between tokens", _STEP_SECONDS)
        self.step = histogram("step_seconds", "Time of a step", _STEP_SECONDS)
        self.step_rows = histogram("step_rows", "Texts of a step", _ROWS)
        info = Gauge("nanochat_build_info", "What runs", ("version",), registry=registry)
        info.labels(version=version).set(1)

    def text(self, loads: Sequence[Load]) -> bytes:
        """All of it, as Prometheus reads it, with what the sessions of all models have to do now."""
        self.rows.set(sum(load.running for load in loads))
        self.queue.set(sum(load.waiting for load in loads))
        self.pages_used.set(sum(load.pages_used for load in loads))
        self.pages_cached.set(sum(load.pages_kept for load in loads))
        put_aside = sum(load.put_aside for load in loads)
        self.preempted.inc(put_aside - self._put_aside)
        self._put_aside = put_aside
        return generate_latest(self.registry)

    def was_refused(self, status: int) -> None:
        """Count a request that got an error."""
        self.refused.labels(status=str(status)).inc()

    def stepped(self, seconds: float, pieces: Sequence[Piece], session: Session[Any]) -> None:
        """See `nanochat.serve.engine.Watcher`."""
        self.step.observe(seconds)
        self.step_rows.observe(len(session.stepping))
        self.generated_tokens.inc(len(pieces))

    def began(self, answer: Answer) -> None:
        """See `nanochat.serve.engine.Watcher`."""
        assert answer.begun is not None
        self.first_token.observe(answer.begun - answer.asked)

    def ended(self, answer: Answer) -> None:
        """See `nanochat.serve.engine.Watcher`."""
        now = time.monotonic()
        self.prompt_tokens.inc(answer.num_prompt_tokens)
        self.cached_tokens.inc(answer.cached)
        self.drafted_tokens.inc(answer.num_drafted)
        self.accepted_tokens.inc(answer.num_accepted)
        finish = "cancelled" if answer.is_cancelled else answer.finish_reason or "error"
        self.answers.labels(finish=finish).inc()
        self.answer.observe(now - answer.asked)
        if answer.begun is not None and answer.num_tokens > answer.num_texts:
            steps = answer.num_tokens / answer.num_texts - 1
            self.token.observe((now - answer.begun) / steps)
        if answer.is_cancelled:
            where = "queue" if answer.begun is None else "stream"
            self.cancelled.labels(where=where).inc()
