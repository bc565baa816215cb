"""This file holds what the tests of the server share: one of nanochat-tiny, and the same model here."""

from collections.abc import Iterator

import openai
import pytest

from bench.peers.chromium import Chromium
from nanochat.lm import Model
from tests.serve.processes import Process, running
from tests.serve.stub import Stub


@pytest.fixture(scope="session")
def server() -> Iterator[Process]:
    """A server of nanochat-tiny, of eight texts at a time."""
    with running("nanochat-tiny", "--backend", "numba", "--max-rows", "8", "--queue", "64") as one:
        yield one


@pytest.fixture(scope="session")
def model() -> Model:
    """The model that it serves."""
    return Model.from_pretrained("nanochat-tiny", backend="numba")


@pytest.fixture
def client(server: Process) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, which shall not ask twice."""
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as one:
        yield one


@pytest.fixture(scope="session")
def browser() -> Iterator[Chromium]:
    """A browser for all pages."""
    with Chromium() as one:
        yield one


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    """A server whose answers are said by a test."""
    with Stub() as one:
        yield one
