"""This file holds servers in this process: of models that are here already, or of none."""

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
import uvicorn

from nanochat import __version__
from nanochat.lm import Model
from nanochat.serve.app import Server, application
from nanochat.serve.metrics import Metrics
from nanochat.serve.served import load_served
from nanochat.serve.settings import Settings

__all__ = ["Here", "asked_here", "served_here"]

# That a server may take to end.
_SECONDS = 60


@dataclass
class Here:
    """A server, which can be asked as a `tests.serve.processes.Process` is."""

    port: int = 0

    @property
    def url(self) -> str:
        """Where OpenAI's clients look for it."""
        return f"http://127.0.0.1:{self.port}/v1"


@contextmanager
def served_here(models: Mapping[str, Model]) -> Iterator[Here]:
    """Serve models by their names."""
    settings = Settings(prefix_cache=False, max_rows=4)
    server = Server(settings=settings, metrics=Metrics(version=__version__))
    config = uvicorn.Config(application(server), port=0, log_config=None, lifespan="off")
    runner = uvicorn.Server(config)

    async def run() -> None:
        for name, model in models.items():
            served = await load_served(lambda model=model: model, names=[name], settings=settings)  # type: ignore[misc]
            server.models = {**server.models, name: served}
        server.phase = "ready"
        await runner.serve()
        for served in server.models.values():
            await served.engine.stop()

    # One that does not end must not keep the tests from ending.
    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    try:
        while not runner.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Here(runner.servers[0].sockets[0].getsockname()[1])
    finally:
        runner.should_exit = runner.force_exit = True
        thread.join(timeout=_SECONDS)
        assert not thread.is_alive(), "the server does not end"


def asked_here(
    settings: Settings, method: str, path: str, body: object = None, **headers: str
) -> httpx2.Response:
    """The answer of a server without models."""
    server = Server(settings=settings, metrics=Metrics(version=__version__), phase="ready")
    transport = httpx2.ASGITransport(application(server))

    async def run() -> httpx2.Response:
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, json=body, headers=headers)

    return asyncio.run(run())
