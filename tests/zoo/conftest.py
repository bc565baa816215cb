"""This file holds the client and the repository that the tests of downloads use."""

from pathlib import Path

import pytest

from tests.zoo.downloads import SEVERAL
from tests.zoo.hub_client import HubClient
from tests.zoo.hub_state import Hub


@pytest.fixture
def client(hub_client: HubClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubClient:
    """The real client, where there is no directory of any name."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return hub_client


@pytest.fixture
def repo(client: HubClient) -> Hub:
    """A Hub with one repository, of several formats."""
    client.hub.add("org/name", SEVERAL)
    return client.hub
