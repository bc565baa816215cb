"""What was fetched is listed, shown and removed; the verbs run in a process of their own, against a Hub on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.errors import ModelNotFoundError, SaveError
from nanochat.export.directory import save_model
from nanochat.zoo.cache import cached, remove
from nanochat.zoo.hub import locate
from tests.core.command_line import Result
from tests.parity.random_models import random_bundle
from tests.zoo.hub_server import environment
from tests.zoo.hub_state import Hub

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, random_bundle())
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def repo(hub: Hub, files: dict[str, bytes]) -> Hub:
    hub.add("org/name", {**files, "x-TQ2_0.gguf": b"GGUF"})
    return hub


def verb(hub: Hub, home: Path, *words: str, **variables: str) -> Result:
    done = subprocess.run(
        [sys.executable, "-m", "nanochat", "models", *words],
        env=os.environ | environment(hub, home) | {"PYTHONPATH": str(ROOT)} | variables,
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    return Result(code=done.returncode, out=done.stdout, err=done.stderr)


@pytest.mark.usefixtures("hub_client")
def test_nothing_is_here_before_anything_is_fetched() -> None:
    assert cached() == []


@pytest.mark.usefixtures("hub_client")
def test_what_was_fetched_is_here_with_its_formats_and_revisions(repo: Hub) -> None:
    first = locate("org/name").fetched
    assert first is not None
    repo.commit("org/name", {"README.md": b"new"})
    locate("org/name:gguf")

    (model,) = cached()

    assert model.repo == "org/name"
    assert set(model.paths) == {"safetensors", "x-TQ2_0.gguf"}
    assert model.revisions[first.commit] == ()
    assert ("main",) in model.revisions.values()
    assert model.bytes > first.bytes


@pytest.mark.usefixtures("hub_client")
def test_a_repository_without_a_model_is_not_ours_to_list(repo: Hub) -> None:
    repo.add("org/text", {"config.json": b"{}", "x.gguf": b"GGUF"})
    path = locate("org/text").path
    path.rename(path.with_name("x.txt"))

    assert cached() == []


@pytest.mark.usefixtures("hub_client")
def test_one_revision_is_removed_or_all(repo: Hub) -> None:
    first = locate("org/name").fetched
    repo.commit("org/name", {"README.md": b"new"})
    second = locate("org/name").fetched
    assert first is not None
    assert second is not None

    freed = remove("org/name", revision=first.commit[:12])

    assert freed < 1000
    assert not first.snapshot.exists()
    assert locate("org/name", local_files_only=True).fetched == second
    assert remove("org/name") > first.bytes / 2
    assert cached() == []
    with pytest.raises(ModelNotFoundError, match="nothing of org/name was fetched"):
        remove("org/name")


@pytest.mark.usefixtures("hub_client", "repo")
def test_what_is_incomplete_is_removed_too() -> None:
    location = locate("org/name")
    (location.path / "config.json").unlink()

    assert cached() == []
    assert remove("org/name") > 1000
    assert location.fetched is not None
    assert not location.fetched.snapshot.parents[1].exists()


@pytest.mark.usefixtures("hub_client", "repo")
def test_a_commit_is_not_named_by_a_few_letters() -> None:
    fetched = locate("org/name").fetched
    assert fetched is not None

    with pytest.raises(ModelNotFoundError, match="nothing of org/name@"):
        remove("org/name", revision=fetched.commit[:3])
    assert remove("org/name", revision="main") > 0


def test_a_cache_that_is_a_file_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(SaveError, match=r"file is no folder: set HF_HUB_CACHE"):
        cached(tmp_path / "file")


def test_the_verbs_fetch_list_show_verify_and_remove(repo: Hub, tmp_path: Path) -> None:
    pulled = verb(repo, tmp_path, "pull", "org/name", "--json")
    listed = verb(repo, tmp_path, "list", "--json", HF_HUB_OFFLINE="1")
    shown = verb(repo, tmp_path, "show", "org/name", "--json", HF_HUB_OFFLINE="1")
    verified = verb(repo, tmp_path, "verify", "org/name", "--json", HF_HUB_OFFLINE="1")
    removed = verb(repo, tmp_path, "rm", "org/name", "--json")
    again = verb(repo, tmp_path, "show", "org/name", "--json")
    offline = verb(repo, tmp_path, "show", "org/name", HF_HUB_OFFLINE="1")

    assert pulled.last_json["format"] == "safetensors", pulled.err
    assert "x-TQ2_0.gguf" not in str(pulled.last_json["files"])
    models = {model["name"]: model for model in json.loads(listed.out)["models"]}
    assert models["org/name"]["weights"] == "cached"
    assert models["org/name"]["licence"] == "MIT"
    assert models["nanochat-tiny"]["weights"] == "included"
    assert shown.last_json["golden_record"] == "of 8 tokens"
    golden = verified.last_json["golden"]
    assert isinstance(golden, float)
    assert golden < 6e-2
    assert int(str(removed.last_json["freed_bytes"])) >= int(str(pulled.last_json["bytes"]))
    assert again.last_json["cached"] is False
    assert again.last_json["bytes"] == pulled.last_json["bytes"]
    assert offline.code == 1
    assert "HF_HUB_OFFLINE" in offline.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rm", "nanochat-tiny"], "comes with the package"),
        (["rm", "nanochat-7b"], "is not published"),
        (["rm", "../x"], "pass OWNER/NAME"),
        (["pull", "nanochat-7b"], "no published weights yet"),
        (["pull", "org/nothing"], "check the name"),
        (["show", "org/nothing"], "check the name"),
        (["verify", "org/name:onnx"], "it holds"),
    ],
)
def test_a_verb_that_cannot_be_done_says_so(
    words: list[str], message: str, repo: Hub, tmp_path: Path
) -> None:
    result = verb(repo, tmp_path, *words)

    assert result.code in (1, 2)
    assert result.err.startswith("error: ")
    assert message in result.err
    assert "Traceback" not in result.err
