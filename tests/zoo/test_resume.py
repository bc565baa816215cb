"""Large files go on where they were, after any cut."""

import hashlib
import logging

import pytest

from nanochat.errors import ModelNotFoundError
from nanochat.zoo import cache, download
from nanochat.zoo.hub import locate
from tests.zoo.downloads import WEIGHTS
from tests.zoo.hub_client import HubClient
from tests.zoo.hub_state import FOREVER, Hub

pytestmark = pytest.mark.usefixtures("client")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every file in large storage for one that is worth going on with."""
    monkeypatch.setattr(download, "LARGE_BYTES", 1)
    monkeypatch.setattr(download, "_PAUSE", 0.01)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_large_file_goes_on_after_any_cut(reset: bool, repo: Hub) -> None:
    repo.fault("/cdn/*", times=3, cut=9000, reset=reset)

    location = locate("org/name")

    assert (location.path / "model.safetensors").read_bytes() == WEIGHTS
    assert [r.range for r in repo.asked("/cdn/*", "GET")][:2] == ["", "bytes=8192-"]


@pytest.mark.usefixtures("large")
def test_a_large_file_goes_on_in_the_next_call(repo: Hub, client: HubClient) -> None:
    fault = repo.fault("/cdn/*", times=FOREVER, cut=5000, reset=True)
    repo.fault("/cdn/*", times=FOREVER, cut=0)
    fault.times = 1

    with pytest.raises(ModelNotFoundError, match="what is complete stays, so try again"):
        locate("org/name")
    with pytest.raises(ModelNotFoundError, match="not fetched"):
        locate("org/name", local_files_only=True)
    repo.faults.clear()
    repo.requests.clear()
    location = locate("org/name")

    assert (location.path / "model.safetensors").read_bytes() == WEIGHTS
    assert [r.range for r in repo.asked("/cdn/*", "GET")] == ["bytes=4096-"]
    assert not list(client.cache.rglob(f"*{download.PARTIAL}"))


@pytest.mark.usefixtures("large")
def test_a_large_file_goes_on_when_another_format_was_fetched_before(repo: Hub) -> None:
    locate("org/name:gguf")
    repo.fault("/cdn/*", cut=9000)
    repo.requests.clear()

    location = locate("org/name")

    assert (location.path / "model.safetensors").read_bytes() == WEIGHTS
    assert [r.range for r in repo.asked("/cdn/*", "GET")] == ["", "bytes=8192-"]


@pytest.mark.usefixtures("large")
def test_more_than_one_attempt_to_take_another_format_goes_on(repo: Hub) -> None:
    locate("org/name:gguf")
    repo.fault("/cdn/*", cut=9000, reset=True)
    repo.fault("/cdn/*", times=FOREVER, cut=0)
    with pytest.raises(ModelNotFoundError, match="try again"):
        locate("org/name")
    repo.faults.clear()
    repo.requests.clear()

    locate("org/name")

    assert [r.range for r in repo.asked("/cdn/*", "GET")] == ["bytes=8192-"]


@pytest.mark.usefixtures("large")
def test_what_came_of_a_file_and_is_not_part_of_it_is_thrown_away(
    repo: Hub, client: HubClient, caplog: pytest.LogCaptureFixture
) -> None:
    blobs = client.cache / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(WEIGHTS).hexdigest()}{download.PARTIAL}").write_bytes(b"x" * 5000)

    with caplog.at_level(logging.WARNING):
        location = locate("org/name")

    assert (location.path / "model.safetensors").read_bytes() == WEIGHTS
    assert "was damaged on its way: fetched again" in caplog.text
    assert repo.asked("/cdn/*", "GET")[0].range == "bytes=5000-"


@pytest.mark.usefixtures("large")
def test_more_than_there_is_of_a_file_is_thrown_away(repo: Hub, client: HubClient) -> None:
    blobs = client.cache / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(WEIGHTS).hexdigest()}{download.PARTIAL}").write_bytes(WEIGHTS * 2)

    location = locate("org/name")

    assert (location.path / "model.safetensors").read_bytes() == WEIGHTS
    assert [request.range for request in repo.asked("/cdn/*", "GET")] == [""]


@pytest.mark.usefixtures("large")
def test_what_came_of_a_file_can_be_removed(repo: Hub) -> None:
    repo.fault("/cdn/*", times=1, cut=9000)
    repo.fault("/cdn/*", times=FOREVER, cut=0)
    with pytest.raises(ModelNotFoundError):
        locate("org/name")

    assert cache.remove("org/name") >= 8192
    with pytest.raises(ModelNotFoundError, match="nothing of org/name was fetched"):
        cache.remove("org/name")
