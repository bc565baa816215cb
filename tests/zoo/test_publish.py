"""What is exported can be uploaded, by the real client, in one commit."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.errors import InputError
from nanochat.zoo.publish import upload
from tests.zoo.hub_server import Hub, hub_server

ROOT = Path(__file__).parents[2]
# The client reads its settings when it is imported, so it is run in a process of its own.
UPLOAD = """
import sys
from pathlib import Path
from nanochat.errors import SaveError
from nanochat.zoo.publish import upload
try:
    print(upload(Path(sys.argv[1]), sys.argv[2]))
except SaveError as error:
    print("refused:", error)
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server() as server:
        yield server


def run(hub: Hub, *arguments: object, token: str = "hf_secret", home: Path) -> str:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HOME": str(home)}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_folder_is_uploaded_whole(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    (folder / "inner").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"model")
    (folder / "inner" / "page.js").write_bytes(b"page")

    said = run(hub, "-c", UPLOAD, folder, "org/name", home=tmp_path)

    assert f"{hub.url}/org/name/commit/" in said
    assert hub.repos == {"org/name": {"model.onnx": b"model", "inner/page.js": b"page"}}
    assert len(hub.commits) == 1


def test_a_file_is_uploaded_with_its_report_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    for name in ("model.gguf", "model.gguf.parity.json", "secrets.txt"):
        (tmp_path / name).write_text(name)

    run(hub, "-c", UPLOAD, tmp_path / "model.gguf", "org/name", home=tmp_path / "home")

    assert sorted(hub.repos["org/name"]) == ["model.gguf", "model.gguf.parity.json"]


def test_an_existing_repository_gets_another_commit(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a").write_text("a")
    hub.repos["org/name"] = {"old": b"old"}

    run(hub, "-c", UPLOAD, tmp_path / "x", "org/name", home=tmp_path / "home")

    assert hub.repos["org/name"] == {"old": b"old", "a": b"a"}


@pytest.mark.parametrize(("token", "refuse"), [("hf_wrong", 0), ("hf_secret", 403)])
def test_a_refusal_says_what_to_do(hub: Hub, tmp_path: Path, token: str, refuse: int) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a").write_text("a")
    hub.refuse = refuse

    said = run(hub, "-c", UPLOAD, tmp_path / "x", "org/name", token=token, home=tmp_path / "home")

    assert said.startswith("refused: ")
    assert "hf auth login" in said


def test_a_name_is_no_pattern_and_files_beside_go_too(hub: Hub, tmp_path: Path) -> None:
    for name in ("x[1].gguf", "x[1].mhc", "x1.gguf"):
        (tmp_path / name).write_text(name)

    call = 'upload(Path(sys.argv[1]), "org/name", beside=["x[1].mhc"])'
    code = f"import sys; from pathlib import Path; from nanochat.zoo.publish import upload; {call}"
    run(hub, "-c", code, tmp_path / "x[1].gguf", home=tmp_path / "home")

    assert sorted(hub.repos["org/name"]) == ["x[1].gguf", "x[1].mhc"]


@pytest.mark.parametrize(
    "repo",
    ["name", "a/b/c", "https://huggingface.co/a/b", "../x", "a/b--c", "a/b.", f"a/{'b' * 96}"],
)
def test_what_is_no_repository_is_refused(repo: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pass OWNER/NAME"):
        upload(tmp_path, repo)
