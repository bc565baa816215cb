"""This file holds requests as spans of OpenTelemetry: of the whole, in which are those of queue, prompt and decode.

Spans are made once a request has ended, from the times that were noted anyway: until then they cost nothing. Names and
attributes are those of the conventions [1]_; a caller's trace is continued [2]_.

References
----------
.. [1] OpenTelemetry, "Semantic conventions for generative client AI spans".
.. [2] W3C, Trace Context, "traceparent header".
"""

import threading
import time
from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from nanochat import __version__
from nanochat.serve.engine import Answer
from nanochat.serve.guard import Ended

__all__ = ["Spans"]

# What each path does, as the conventions name it; others are not traced.
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
}
_PROVIDER = "nanochat-ternary"
# How long an end may wait for whoever takes the spans.
_CLOSE_SECONDS = 3.0


class Spans:
    """Spans of requests; see `nanochat.serve.traces.Traces`.

    Parameters
    ----------
    provider : TracerProvider
        Who takes them.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("nanochat.serve", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def sent(cls) -> "Spans":
        """Spans that are sent by OTLP over HTTP, to where the environment says."""
        # What the environment says of any resource is stronger, and has two ways to name a service.
        told = Resource({"service.name": "nanochat"}).merge(OTELResourceDetector().detect())
        resource = Resource.create(told.attributes)
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def ended(self, request: Ended) -> None:
        """See `nanochat.serve.traces.Traces`."""
        operation = _OPERATIONS.get(request.path)
        if operation is None or request.method != "POST":
            return
        now = time.monotonic()
        # Spans have the time of day, which may jump; lengths are those of a clock that does not.
        shift = time.time() - now
        model = str(request.told.get("model", ""))
        answer: Answer | None = request.told.get("answer")
        whole = self._tracer.start_span(
            f"{operation} {model}".strip(),
            context=self._propagator.extract(request.headers),
            kind=SpanKind.SERVER,
            start_time=_nanoseconds(request.began + shift),
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": _PROVIDER,
                "http.request.method": request.method,
                "http.response.status_code": request.status,
                "http.route": request.path,
                "nanochat.request_id": request.id,
                **(
                    {"gen_ai.request.model": model, "gen_ai.response.model": model} if model else {}
                ),
            },
        )
        if answer is not None:
            whole.set_attributes(_attributes(answer))
            self._parts(whole, answer, now, shift)
        if request.status >= 500 or (answer is not None and answer.error is not None):
            whole.set_status(Status(StatusCode.ERROR))
        if request.status >= 400:
            whole.set_attribute("error.type", str(request.status))
        elif answer is not None and answer.error is not None:
            whole.set_attribute("error.type", type(answer.error).__name__)
        whole.end(_nanoseconds(now + shift))

    def close(self) -> None:
        """See `nanochat.serve.traces.Traces`."""
        # It tries for longer than an end should take.
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(_CLOSE_SECONDS)

    def _parts(self, whole: Span, answer: Answer, now: float, shift: float) -> None:
        """What an answer has waited for, as far as it has come."""
        ended = answer.over or now
        times = [("queue", answer.asked), ("prompt", answer.started), ("decode", answer.begun)]
        begun = [(name, began) for name, began in times if began is not None]
        ends = [*(began for _, began in begun[1:]), ended]
        for (name, began), end in zip(begun, ends, strict=True):
            part = self._tracer.start_span(
                name,
                context=set_span_in_context(whole),
                start_time=_nanoseconds(began + shift),
            )
            part.end(_nanoseconds(max(began, end) + shift))


def _attributes(answer: Answer) -> Mapping[str, str | int | float | list[str]]:
    found: dict[str, str | int | float | list[str]] = {
        "gen_ai.usage.input_tokens": answer.num_prompt_tokens,
        "gen_ai.usage.output_tokens": answer.num_tokens,
        "gen_ai.usage.cache_read.input_tokens": answer.cached,
    }
    if answer.finish_reason is not None:
        found["gen_ai.response.finish_reasons"] = [answer.finish_reason]
    if answer.begun is not None:
        found["gen_ai.response.time_to_first_chunk"] = answer.begun - answer.asked
    return found


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
