"""What holds for all tests, and the Hub on loopback for those that ask for it."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hypothesis import settings

from tests.zoo.hub_client import HubClient
from tests.zoo.hub_server import hub_server
from tests.zoo.hub_state import Hub

# A busy machine may stop for longer than any deadline that means something; and what fails once must fail again.
settings.register_profile("unhurried", deadline=None, derandomize=True, database=None)
settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the client upload large files, for which it calls its HTTP library as that no longer likes."""
    for item in items:
        if "hub" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"))


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub without models."""
    with hub_server() as served:
        yield served


@pytest.fixture
def hub_client(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubClient]:
    """The client of this process, logged in to `hub`, with an empty cache."""
    yield HubClient(hub, tmp_path / "hf_home", monkeypatch)
    # Its connections lead to a server that ends; the next one is made as ever.
    huggingface_hub.close_session()
