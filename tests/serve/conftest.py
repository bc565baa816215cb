"""This file holds what the tests of the server share: servers of nanochat-tiny, and of models that call tools."""

from collections.abc import Iterator

import openai
import pytest

from bench.peers.chromium import Chromium
from nanochat.lm import Model
from tests.core.tool_models import NONE, THINKER, THINKING, guesser, parrot
from tests.serve.here import Here, served_here
from tests.serve.processes import Process, running
from tests.serve.stub import Stub
from tests.serve.tools import TEMPLATES


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


@pytest.fixture(scope="session")
def talker() -> Model:
    """The model of that name below, which says what a test wants, and may think before."""
    return parrot(THINKER, "")


@pytest.fixture(scope="session")
def tool_server(talker: Model) -> Iterator[Here]:
    """A server of models whose chat templates write calls, each in its way."""
    models = {name: guesser(template) for name, template in TEMPLATES.items()}
    more = {"thinking": guesser(THINKING), "none": guesser(NONE), "talker": talker}
    with served_here({**models, **more}) as one:
        yield one


@pytest.fixture
def tool_client(tool_server: Here) -> Iterator[openai.OpenAI]:
    """OpenAI's client of that server."""
    with openai.OpenAI(base_url=tool_server.url, api_key="none", max_retries=0) as one:
        yield one
