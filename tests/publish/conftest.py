"""This file holds the Hub on loopback for tests that push exports to it."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from nanochat.bundle import Bundle
from nanochat.export.directory import save_model
from tests.parity.random_models import random_bundle
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


@pytest.fixture(scope="session")
def source() -> Bundle:
    """A model for short texts, because each push writes four of them on the reference."""
    return random_bundle(context_length=24)


@pytest.fixture
def model(source: Bundle, tmp_path: Path) -> Path:
    """Its directory."""
    save_model(tmp_path / "mine", source)
    return tmp_path / "mine"
