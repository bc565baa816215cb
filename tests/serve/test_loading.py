"""A server that has loaded its models has served nobody yet."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx2

from nanochat.serve.app import Server, application
from nanochat.serve.loading import load_models
from nanochat.serve.metrics import Metrics
from nanochat.serve.options import serve_options

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
