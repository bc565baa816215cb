"""nanochat.json says what a folder's files must be, and no file of it can be changed unnoticed."""

import json
from pathlib import Path
from typing import Any

import pytest

from nanochat.errors import ConfigError, FormatError
from nanochat.proof.manifest import NAME, check_files, read_manifest, write_manifest
from tests.parity.random_models import random_bundle

SOURCE = random_bundle()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "model.bin").write_bytes(b"weights")
    (tmp_path / "inner" / "page.js").write_bytes(b"code")
    (tmp_path / "README.md").write_bytes(b"card")
    write_manifest(tmp_path, SOURCE, kind="web")
    return tmp_path


def rewrite(folder: Path, change: dict[str, Any]) -> None:
    fields = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps(fields | change))


def test_a_manifest_is_read_as_it_was_written(folder: Path) -> None:
    manifest = read_manifest(folder)

    assert manifest is not None
    assert (manifest.name, manifest.licence, manifest.kind) == ("random", "MIT", "web")
    assert manifest.config == SOURCE.config
    assert manifest.golden == SOURCE.golden
    assert sorted(manifest.files) == ["inner/page.js", "model.bin"]
    check_files(folder, manifest)


def test_a_folder_may_have_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None


def test_the_card_may_be_edited(folder: Path) -> None:
    (folder / "README.md").write_text("a better card")

    manifest = read_manifest(folder)

    assert manifest is not None
    check_files(folder, manifest)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"weightz", "7 bytes that are not the 7"), (b"weigh", "truncated"), (None, "No such file")],
)
def test_a_changed_file_is_named(folder: Path, content: bytes | None, message: str) -> None:
    manifest = read_manifest(folder)
    assert manifest is not None
    if content is None:
        (folder / "model.bin").unlink()
    else:
        (folder / "model.bin").write_bytes(content)

    with pytest.raises(FormatError, match=rf"model\.bin: .*{message}"):
        check_files(folder, manifest)


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "inner/../../x", "", "a\\..\\b"], ids=repr
)
def test_a_name_that_leads_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    rewrite(folder, {"files": {name: {"bytes": 1, "sha256": "0" * 64}}})

    with pytest.raises(FormatError, match="not in the folder"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"name": 1},
        {"files": []},
        {"files": {"x": {"bytes": -1, "sha256": "0" * 64}}},
        {"files": {"x": {"bytes": 1, "sha256": "00"}}},
        {"golden": {}},
        {"kind": None},
    ],
    ids=str,
)
def test_a_damaged_manifest_is_refused(folder: Path, change: dict[str, Any]) -> None:
    rewrite(folder, change)

    with pytest.raises(FormatError, match=NAME):
        read_manifest(folder)


def test_a_configuration_that_cannot_work_is_refused(folder: Path) -> None:
    rewrite(folder, {"config": {"width": 1}})

    with pytest.raises(ConfigError, match=NAME):
        read_manifest(folder)
