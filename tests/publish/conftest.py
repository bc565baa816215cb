"""This file holds the Hub on loopback for tests that push exports to it."""

from collections.abc import Iterator

import huggingface_hub
import pytest

from tests.zoo.hub_client import HubClient
from tests.zoo.hub_server import hub_server
from tests.zoo.hub_state import Hub


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub without models, which the client of this process knows; what runs elsewhere compiles nothing."""
    monkeypatch.setenv("NANOCHAT_BACKEND", "reference")
    with hub_server() as served:
        HubClient(served, tmp_path_factory.mktemp("home"), monkeypatch)
        yield served
        huggingface_hub.close_session()
