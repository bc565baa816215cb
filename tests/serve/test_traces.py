"""Each request is a trace, in which are its wait, its prompt and its answer, if somebody wants to know."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from nanochat.serve.app import Server, application
from nanochat.serve.loading import load_models
from nanochat.serve.metrics import Metrics
from nanochat.serve.options import serve_options
from nanochat.serve.spans import Spans
from nanochat.serve.traces import open_traces
from tests.serve.processes import post, running

CHAT = {"messages": [{"role": "user", "content": "fn"}], "max_tokens": 3, "temperature": 0}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def traced(*requests: tuple[str, dict[str, object]], **headers: str) -> Sequence[ReadableSpan]:
    """The spans of requests to a server in this process."""
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    options = serve_options({"backend": "reference", "max_rows": 2}, ignored=())

    async def run() -> None:
        server = Server(
            settings=options.settings, metrics=Metrics(version="x"), traces=Spans(provider)
        )
        await load_models(server, options.models, lambda _: None)
        server.phase = "ready"
        transport = httpx2.ASGITransport(application(server))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for path, body in requests:
                await client.post(path, json=body, headers=headers)
            await client.get("/health")
        await server.models["nanochat-tiny"].engine.stop()

    asyncio.run(run())
    return memory.get_finished_spans()


def test_a_request_is_a_span_in_which_are_those_of_its_parts_one_after_the_other() -> None:
    *parts, whole = traced(("/v1/chat/completions", CHAT))

    assert [part.name for part in parts] == ["queue", "prompt", "decode"]
    assert whole.name == "chat nanochat-tiny"
    parents = {None if part.parent is None else part.parent.span_id for part in parts}
    assert parents == {whole.context.span_id}
    times = [time for part in parts for time in (part.start_time, part.end_time)]
    assert times == sorted(times)  # type: ignore[type-var]  # they have ended
    assert times[1] == times[2]
    assert times[3] == times[4]
    # The wait begins after the request, and nothing ends after it.
    assert whole.start_time <= times[0]  # type: ignore[operator]  # the same
    assert times[-1] <= whole.end_time  # type: ignore[operator]  # the same


def test_a_request_s_attributes_are_those_of_the_conventions() -> None:
    whole = traced(("/v1/chat/completions", {**CHAT, "model": "nanochat-tiny"}))[-1]

    found = dict(whole.attributes or {})
    assert found.pop("nanochat.request_id")
    assert float(str(found.pop("gen_ai.response.time_to_first_chunk"))) > 0
    assert int(str(found.pop("gen_ai.usage.input_tokens"))) > 3
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "nanochat-ternary",
        "gen_ai.request.model": "nanochat-tiny",
        "gen_ai.response.model": "nanochat-tiny",
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.output_tokens": 3,
        # What opens each prompt.
        "gen_ai.usage.cache_read.input_tokens": 1,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v1/chat/completions",
    }


def test_a_caller_s_trace_goes_on() -> None:
    spans = traced(("/v1/completions", {"prompt": "fn", "max_tokens": 2}), traceparent=PARENT)

    assert {f"{span.context.trace_id:032x}" for span in spans} == {PARENT.split("-")[1]}
    assert spans[-1].parent is not None
    assert f"{spans[-1].parent.span_id:016x}" == PARENT.split("-")[2]


def test_what_is_refused_is_a_span_with_its_error_and_other_paths_are_none() -> None:
    (whole,) = traced(("/v1/completions", {"prompt": "fn", "n": 0}), ("/tokenize", {"prompt": "x"}))

    assert whole.name.startswith("text_completion")
    assert (whole.attributes or {})["error.type"] == "400"


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """Whoever takes spans by OTLP over HTTP, and what came."""
    found: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            found.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", found
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("named", "service"),
    [
        ({}, "nanochat"),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=ours,service.version=1"}, "ours"),
    ],
    ids=["no name", "name", "attribute"],
)
def test_a_server_sends_its_spans_to_a_collector_before_it_ends(
    named: dict[str, str], service: str
) -> None:
    with collector() as (address, found):
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, **named}
        with running("nanochat-tiny", "--backend", "reference", **environment) as server:
            post(server, "/v1/completions", {"prompt": "fn", "max_tokens": 2})
            server.signal()
            assert server.wait() == 0

    (resource,) = [each for request in found for each in request.resource_spans]
    attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert attributes["service.name"] == service
    names = [span.name for scope in resource.scope_spans for span in scope.spans]
    assert names == ["queue", "prompt", "decode", "text_completion nanochat-tiny"]


def test_without_an_address_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)

    assert open_traces() is None


def test_an_address_without_the_packages_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    monkeypatch.setattr("nanochat.serve.traces._PACKAGES", ("absent_package.sdk",))

    assert open_traces() is None
    assert "no traces are sent: OpenTelemetry must be installed: pip install" in caplog.text
