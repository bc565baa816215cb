"""`nanochat models push` and `nanochat-export --upload-repo` say what they upload, and refuse before any work."""

import json
from dataclasses import replace
from pathlib import Path

import click
import pytest

from nanochat import backends
from nanochat.bundle import Bundle
from nanochat.cli.export import export
from nanochat.cli.models import push
from nanochat.cli.run import run
from nanochat.export.directory import save_model
from tests.zoo.hub_state import Hub

QUICK = ("--backend", "reference", "--prompt", "fn main() {")


def call(command: click.Command, *words: object) -> int:
    return run(command, "nanochat", [str(word) for word in words])


def test_a_push_tells_the_files_and_the_address(
    hub: Hub, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call(push, model, "org/name", *QUICK, "--private", "--message", "Mine")

    out = capsys.readouterr().out
    assert code == 0
    assert "model.safetensors" in out
    assert f": {hub.url}/org/name/commit/" in out
    assert hub.repos["org/name"].private
    assert hub.subjects("org/name")[0] == "Mine"


def test_a_dry_run_as_json_has_the_card_and_uploads_nothing(
    hub: Hub, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--dataset", "a/b", "--dataset", "c/d", "--language", "en", "--token", hub.token)
    code = call(push, model, "org/name", *QUICK, *words, "--dry-run", "--json")

    said = capsys.readouterr()
    (repository,) = json.loads(said.out)["repositories"]
    assert code == 0
    assert not hub.repos
    assert repository["files"]["model.safetensors"] == (model / "model.safetensors").stat().st_size
    assert "datasets:\n- a/b\n- c/d\n" in repository["card"]
    assert hub.token not in said.out + said.err


def test_a_refusal_is_one_line(hub: Hub, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = call(push, model, "org/name", *QUICK, "--licence", "Apache-2.0", "--token", hub.token)

    said = capsys.readouterr()
    assert code == 2
    assert said.err.startswith("error: licence='Apache-2.0', but the files say MIT")
    assert said.err.count("\n") == 1
    assert not hub.repos


@pytest.mark.parametrize("option", ["--branch", "--base-model", "--licence", "--message"])
def test_an_option_that_is_empty_is_refused(
    hub: Hub, model: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    code = call(push, model, "org/name", *QUICK, option, " ")

    said = capsys.readouterr()
    assert code == 2
    assert f"Invalid value for '{option}': it is empty" in said.err
    assert not hub.requests


@pytest.mark.parametrize("token", ["", "hf_se\ncret"], ids=["empty", "two lines"])
def test_a_token_that_is_none_is_refused_in_one_line(
    hub: Hub, model: Path, capsys: pytest.CaptureFixture[str], token: str
) -> None:
    code = call(push, model, "org/name", *QUICK, "--token", token)

    said = capsys.readouterr()
    assert code == 2
    assert said.err.startswith("error: the token is empty, or holds")
    assert said.err.count("\n") == 1
    assert "cret" not in said.err
    assert not hub.requests


def test_an_export_is_uploaded_with_a_card_and_its_report(
    hub: Hub,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    only = {"reference": backends.BACKENDS["reference"]}
    monkeypatch.setattr("nanochat.backends.BACKENDS", only)

    words = ("--format", "gguf", "--runtime", "nanochat", "--out", tmp_path / "x.gguf")
    code = call(export, model, *words, "--upload-repo", "org/name", "--json")

    said = capsys.readouterr()
    assert code == 0, said.err
    (line,) = said.out.splitlines()
    assert json.loads(line)["uploaded"].startswith(f"{hub.url}/org/name/commit/")
    assert json.loads(line)["digests"]
    assert sorted(set(hub.files("org/name")) - {".gitattributes"}) == [
        "README.md",
        "nanochat.json",
        "x.gguf",
        "x.gguf.parity.json",
    ]
    assert b"library_name: nanochat-ternary\n" in hub.files("org/name")["README.md"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing says which licence"),
        (("--licence", "House-1.0"), "LICENSE"),
    ],
)
def test_an_export_without_a_licence_is_refused_before_the_work(
    hub: Hub,
    source: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    save_model(tmp_path / "m", replace(source, licence="unknown"))
    out = tmp_path / "x.gguf"

    code = call(
        export,
        tmp_path / "m",
        "--format",
        "gguf",
        "--out",
        out,
        "--upload-repo",
        "org/name",
        *words,
    )

    assert code == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
    assert not hub.requests


@pytest.mark.parametrize("step", ["login", "card"])
def test_an_export_that_could_not_be_uploaded_is_refused_before_the_work(
    hub: Hub,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: str,
) -> None:
    hub.add("org/name", {"README.md": b"---\nlicense: apache-2.0\n---\n"})
    if step == "login":
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    out = tmp_path / "x.gguf"

    code = call(
        export, model, "--format", "gguf", "--out", out, "--upload-repo", "org/name", "--json"
    )

    said = capsys.readouterr()
    assert code != 0
    assert {"login": "hf auth login", "card": "correct the one that is wrong"}[step] in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not out.exists()


def test_an_export_takes_the_licence_beside_the_model(
    hub: Hub,
    source: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only = {"reference": backends.BACKENDS["reference"]}
    monkeypatch.setattr("nanochat.backends.BACKENDS", only)
    save_model(tmp_path / "m", replace(source, licence="unknown"))
    (tmp_path / "m" / "LICENSE").write_text("Be nice.")

    words = ("--format", "hf", "--runtime", "nanochat", "--out", tmp_path / "x", "--no-verify")
    code = call(
        export, tmp_path / "m", *words, "--licence", "House-1.0", "--upload-repo", "org/name"
    )

    assert code == 0
    assert hub.files("org/name")["LICENSE"] == b"Be nice."
    assert b"license_link: LICENSE\n" in hub.files("org/name")["README.md"]
