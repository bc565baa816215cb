"""What is fetched from the Hub is what is needed, of one commit; the real client, a Hub on loopback."""

import json
import logging
from pathlib import Path

import pytest

from nanochat.errors import ModelNotFoundError
from nanochat.zoo.hub import locate
from tests.zoo.downloads import OWN, WEIGHTS, fetched_names
from tests.zoo.hub_client import HubClient
from tests.zoo.hub_state import FOREVER, Hub

pytestmark = pytest.mark.usefixtures("client")


@pytest.mark.usefixtures("repo")
def test_a_model_is_fetched_with_what_it_needs_and_nothing_else() -> None:
    location = locate("org/name")

    assert fetched_names(location) == set(OWN)
    assert (location.path / "model.safetensors").read_bytes() == WEIGHTS
    assert location.name == "name"


@pytest.mark.usefixtures("repo")
@pytest.mark.parametrize(
    ("name", "backend", "names"),
    [
        ("org/name", "onnx", {"onnx/model.onnx", "onnx/tokenizer.json"}),
        ("org/name:TQ2_0", "numba", {"x-TQ2_0.gguf"}),
        ("org/name@main:gguf", "numba", {"x-TQ2_0.gguf"}),
    ],
)
def test_of_several_formats_one_is_fetched(name: str, backend: str, names: set[str]) -> None:
    location = locate(name, backend=backend)

    assert fetched_names(location) == names
    assert location.path.exists()


def test_shards_are_fetched_all(hub: Hub) -> None:
    shards = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    index = {"weight_map": {str(n): name for n, name in enumerate(shards)}}
    files = {name: name.encode() * 99 for name in shards}
    files |= {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode()}
    hub.add("org/name", files)

    assert fetched_names(locate("org/name")) == set(files)


def test_what_is_here_is_not_fetched_again(repo: Hub) -> None:
    locate("org/name")
    repo.requests.clear()

    locate("org/name")

    assert [request.path for request in repo.requests] == ["/api/models/org/name"]


def test_a_commit_that_is_here_needs_no_hub_at_all(repo: Hub) -> None:
    first = locate("org/name")
    assert first.fetched is not None
    repo.requests.clear()

    locate(f"org/name@{first.fetched.commit}")

    assert repo.requests == []


def test_force_download_fetches_again(repo: Hub) -> None:
    locate("org/name")
    repo.requests.clear()

    locate("org/name", force_download=True)

    assert len(repo.asked("/cdn/*", "GET")) == 1


def test_a_branch_a_tag_and_a_commit_are_revisions(repo: Hub) -> None:
    old = repo.files("org/name")
    commit = repo.commit("org/name", {"config.json": b'{"new": 1}'})

    assert (locate("org/name").path / "config.json").read_bytes() == b'{"new": 1}'
    assert (locate("org/name", revision=commit).path / "config.json").read_bytes() != b"{}"
    with pytest.raises(ModelNotFoundError, match=r"no revision 'v9': .*/org/name/tree/main"):
        locate("org/name@v9")
    assert old["config.json"] == b"{}"


def test_cache_dir_and_token_are_obeyed(hub: Hub, client: HubClient, tmp_path: Path) -> None:
    hub.add("org/name", OWN, private=True)
    client.set_token("")

    location = locate("org/name", cache_dir=tmp_path / "elsewhere", token=hub.token)

    assert location.path.is_relative_to(tmp_path / "elsewhere")
    assert not client.cache.exists()


def test_offline_a_model_is_what_was_fetched(repo: Hub, client: HubClient) -> None:
    online = locate("org/name")
    client.set_offline()
    repo.requests.clear()

    assert locate("org/name") == online
    assert repo.requests == []


def test_local_files_only_asks_nobody(repo: Hub) -> None:
    online = locate("org/name")
    repo.commit("org/name", {"config.json": b"new"})
    repo.requests.clear()

    assert locate("org/name", local_files_only=True) == online
    assert repo.requests == []


@pytest.mark.usefixtures("repo")
def test_offline_the_format_that_is_here_is_opened() -> None:
    locate("org/name:gguf")

    location = locate("org/name", local_files_only=True)

    assert location.path.name == "x-TQ2_0.gguf"


@pytest.mark.usefixtures("repo")
@pytest.mark.parametrize("offline", [True, False])
def test_what_was_never_fetched_is_not_here(offline: bool, client: HubClient) -> None:
    client.set_offline(offline)

    with pytest.raises(ModelNotFoundError, match=r"not fetched before.*(connect|models pull)"):
        locate("org/name", local_files_only=not offline)


def test_out_of_reach_the_copy_is_used_and_that_is_said(
    repo: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    online = locate("org/name")
    repo.fault("/api/models/*", times=FOREVER, status=503)

    with caplog.at_level(logging.WARNING):
        location = locate("org/name")

    assert location == online
    assert "the Hub is out of reach: org/name is the copy of commit" in caplog.text
