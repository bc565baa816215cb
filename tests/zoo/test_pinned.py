"""A model of the catalog is the commit and the files that the catalog means."""

import dataclasses
import logging
from pathlib import Path

import pytest

from nanochat.errors import FormatError
from nanochat.files import record_file
from nanochat.zoo import catalog
from nanochat.zoo import hub as names
from nanochat.zoo.hub import locate
from tests.zoo.downloads import OWN, WEIGHTS
from tests.zoo.hub_state import Hub

pytestmark = pytest.mark.usefixtures("client")


@pytest.fixture
def published(repo: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> catalog.Entry:
    """An entry of the catalog that is on the Hub."""
    (tmp_path / "pinned").mkdir()
    for name, data in OWN.items():
        (tmp_path / "pinned" / name).write_bytes(data)
    entry = catalog.Entry(
        name="nanochat-x",
        preset="tiny",
        repo="org/name",
        revision=repo.repos["org/name"].branches["main"],
        files={n: record_file(tmp_path / "pinned" / n) for n in OWN if n != "README.md"},
        description="x",
    )
    monkeypatch.setattr(names, "CATALOG", {"nanochat-x": entry})
    return entry


@pytest.mark.usefixtures("published")
def test_a_published_model_is_the_commit_that_the_catalog_means(repo: Hub) -> None:
    repo.commit("org/name", {"model.safetensors": b"other weights"})

    location = locate("nanochat-x")

    assert (location.path / "model.safetensors").read_bytes() == WEIGHTS
    assert location.name == "nanochat-x"


@pytest.mark.usefixtures("published")
def test_another_revision_of_a_published_model_is_said_to_be_unknown(
    repo: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    repo.commit("org/name", {"config.json": b"new"})

    with caplog.at_level(logging.WARNING):
        location = locate("nanochat-x@main")

    assert (location.path / "config.json").read_bytes() == b"new"
    assert "the catalog knows the files of" in caplog.text


def test_a_file_of_which_the_catalog_does_not_know_is_not_opened(
    published: catalog.Entry, repo: Hub
) -> None:
    commit = repo.repos["org/name"].commits[published.revision]
    files = {**commit.files, "chat_template.jinja": b"{{ x }}"}
    repo.repos["org/name"].commits[published.revision] = dataclasses.replace(commit, files=files)

    with pytest.raises(FormatError, match=r"holds chat_template\.jinja, of which the catalog"):
        locate("nanochat-x")


def test_a_hub_that_lies_about_a_pinned_commit_is_found_out(
    published: catalog.Entry, repo: Hub
) -> None:
    commit = repo.repos["org/name"].commits[published.revision]
    forged = dataclasses.replace(commit, files={**commit.files, "tokenizer.json": b"forged"})
    repo.repos["org/name"].commits[published.revision] = forged

    with pytest.raises(FormatError, match=r"tokenizer\.json: .* of the catalog"):
        locate("nanochat-x")
