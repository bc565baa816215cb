"""What is exported can be uploaded, by the real client, in one commit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.errors import InputError
from nanochat.zoo.publish import upload
from tests.zoo.hub_server import environment
from tests.zoo.hub_state import Hub

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


def run(hub: Hub, *arguments: object, token: str = "hf_secret", home: Path) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment(hub, home), "HF_TOKEN": token},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def uploaded(hub: Hub) -> dict[str, bytes]:
    """All files but the one with which a repository begins."""
    files = hub.files("org/name")
    del files[".gitattributes"]
    return files


def test_a_folder_is_uploaded_whole(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    (folder / "inner").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"model")
    (folder / "inner" / "page.js").write_bytes(b"page")

    said = run(hub, "-c", UPLOAD, folder, "org/name", home=tmp_path)

    assert f"{hub.url}/org/name/commit/" in said
    assert uploaded(hub) == {"model.onnx": b"model", "inner/page.js": b"page"}
    assert len(hub.asked("*/commit/*")) == 1


def test_a_file_is_uploaded_with_its_report_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    for name in ("model.gguf", "model.gguf.parity.json", "secrets.txt"):
        (tmp_path / name).write_text(name)

    run(hub, "-c", UPLOAD, tmp_path / "model.gguf", "org/name", home=tmp_path / "home")

    assert sorted(uploaded(hub)) == ["model.gguf", "model.gguf.parity.json"]


def test_an_existing_repository_gets_another_commit(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a").write_text("a")
    hub.add("org/name", {"old": b"old"})

    run(hub, "-c", UPLOAD, tmp_path / "x", "org/name", home=tmp_path / "home")

    assert hub.files("org/name") == {"old": b"old", "a": b"a"}


@pytest.mark.parametrize(("token", "refuse"), [("hf_wrong", 0), ("hf_secret", 403)])
def test_a_refusal_says_what_to_do(hub: Hub, tmp_path: Path, token: str, refuse: int) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a").write_text("a")
    hub.fault("*/commit/*", method="POST", status=refuse)

    said = run(hub, "-c", UPLOAD, tmp_path / "x", "org/name", token=token, home=tmp_path / "home")

    assert said.startswith("refused: ")
    assert "hf auth login" in said


def test_a_name_is_no_pattern_and_files_beside_go_too(hub: Hub, tmp_path: Path) -> None:
    for name in ("x[1].gguf", "x[1].mhc", "x1.gguf"):
        (tmp_path / name).write_text(name)

    call = 'upload(Path(sys.argv[1]), "org/name", beside=["x[1].mhc"])'
    code = f"import sys; from pathlib import Path; from nanochat.zoo.publish import upload; {call}"
    run(hub, "-c", code, tmp_path / "x[1].gguf", home=tmp_path / "home")

    assert sorted(uploaded(hub)) == ["x[1].gguf", "x[1].mhc"]


@pytest.mark.parametrize(
    "repo",
    ["name", "a/b/c", "https://huggingface.co/a/b", "../x", "a/b--c", "a/b.", f"a/{'b' * 96}"],
)
def test_what_is_no_repository_is_refused(repo: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pass OWNER/NAME"):
        upload(tmp_path, repo)
