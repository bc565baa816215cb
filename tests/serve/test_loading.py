"""A server that has loaded its models has served nobody yet, and one whose engine has died serves nobody more."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx2
import pytest

from nanochat.serve.api.errors import ApiError
from nanochat.serve.app import Server, application
from nanochat.serve.loading import load_models
from nanochat.serve.metrics import Metrics
from nanochat.serve.options import serve_options
from tests.serve.processes import post, running

BODY = {"prompt": "fn", "max_tokens": 2, "temperature": 0, "ignore_eos": True}


def with_server(test: Callable[[Server, httpx2.AsyncClient], Awaitable[None]]) -> None:
    """A server in this process, which is ready, and its client."""
    options = serve_options({"backend": "reference", "max_rows": 2}, ignored=())

    async def run() -> None:
        server = Server(settings=options.settings, metrics=Metrics(version="x"))
        await load_models(server, options.models, lambda _: None)
        server.phase = "ready"
        transport = httpx2.ASGITransport(application(server))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await test(server, client)
        await server.models["nanochat-tiny"].engine.stop()

    asyncio.run(run())


def test_what_is_written_before_the_first_request_is_not_counted() -> None:
    async def test(_: Server, client: httpx2.AsyncClient) -> None:
        async def counts() -> dict[str, float]:
            lines = (await client.get("/metrics")).text.splitlines()
            pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
            return {name: float(value) for name, value in pairs if "_created" not in name}

        before = await counts()
        assert {name for name, value in before.items() if value} == {
            'nanochat_build_info{version="x"}',
            # Kept for prompts to come, which the first one may know.
            *(name for name in before if "pages" in name),
        }
        await client.post("/v1/completions", json=BODY)
        after = await counts()
        assert after["nanochat_generated_tokens_total"] == 2
        assert after['nanochat_answers_total{finish="length"}'] == 1
        assert after["nanochat_first_token_seconds_count"] == 1

    with_server(test)


def test_a_server_whose_engine_has_ended_is_neither_healthy_nor_ready() -> None:
    async def test(server: Server, client: httpx2.AsyncClient) -> None:
        server.require_health()
        await server.models["nanochat-tiny"].engine.stop()
        with pytest.raises(ApiError, match="an engine has died"):
            server.require_health()
        answers = [
            await client.get("/ready"),
            await client.get("/health"),
            await client.post("/v1/completions", json=BODY),
            await client.post("/v1/embeddings", json={"input": "x"}),
        ]
        found = [(answer.status_code, answer.json()["error"]["code"]) for answer in answers]
        assert found == [(503, "engine_failed")] * 4

    with_server(test)


def test_a_server_whose_engine_dies_ends_with_an_error() -> None:
    with running("nanochat-tiny", "--backend", "reference", first="tests.serve.mortal") as server:
        answer = post(server, "/v1/completions", BODY)

        assert (answer.status, answer.error["code"]) == (503, "engine_failed")
        assert server.wait() == 1
    assert "a watcher failed" in server.said
    assert "error: an engine has died, as the log says: start the server again" in server.said
