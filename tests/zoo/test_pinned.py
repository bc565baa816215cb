"""A model of the catalog is the commit and the files that the catalog means."""

import dataclasses
import logging
from pathlib import Path

import pytest

from nanochat.errors import FormatError, ModelNotFoundError
from nanochat.files import record_file
from nanochat.zoo import catalog
from nanochat.zoo import hub as names
from nanochat.zoo.entries import Entry
from nanochat.zoo.hub import locate
from tests.zoo.downloads import OWN, WEIGHTS
from tests.zoo.hub_client import HubClient
from tests.zoo.hub_state import Hub

pytestmark = pytest.mark.usefixtures("client")


@pytest.fixture
def published(repo: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Entry:
    """An entry of the catalog that is on the Hub."""
    (tmp_path / "pinned").mkdir()
    for name, data in OWN.items():
        (tmp_path / "pinned" / name).write_bytes(data)
    entry = Entry(
        name="nanochat-x",
        preset="tiny",
        licence="MIT",
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
    published: Entry, repo: Hub
) -> None:
    commit = repo.repos["org/name"].commits[published.revision]
    files = {**commit.files, "chat_template.jinja": b"{{ x }}"}
    repo.repos["org/name"].commits[published.revision] = dataclasses.replace(commit, files=files)

    with pytest.raises(FormatError, match=r"holds chat_template\.jinja, of which the catalog"):
        locate("nanochat-x")


def test_a_hub_that_lies_about_a_pinned_commit_is_found_out(published: Entry, repo: Hub) -> None:
    commit = repo.repos["org/name"].commits[published.revision]
    forged = dataclasses.replace(commit, files={**commit.files, "tokenizer.json": b"forged"})
    repo.repos["org/name"].commits[published.revision] = forged

    with pytest.raises(FormatError, match=r"tokenizer\.json: .* of the catalog"):
        locate("nanochat-x")


# Names of which the catalog knows no commit.

BONSAI = {
    **{f"B-{kind}.gguf": b"GGUF" + kind.encode() for kind in ("F16", "Q2_0", "Q2_0_g64", "PQ2_0")},
    "README.md": b"# A card\n",
}


@pytest.fixture
def unpinned(client: HubClient, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """An entry of which repository and part are known, and no commit."""
    client.hub.add("org/bonsai", BONSAI)
    entry = Entry(
        name="b", repo="org/bonsai", part="Q2_0", why="Q2_0: x", licence="MIT", description="x"
    )
    monkeypatch.setattr(names, "CATALOG", {"b": entry})
    monkeypatch.setattr(catalog, "CATALOG", {"b": entry})
    return entry


@pytest.mark.usefixtures("unpinned")
@pytest.mark.parametrize("name", ["b", "b@main", "b:F16"])
def test_a_name_without_a_commit_stands_for_nothing_until_one_says_so(
    client: HubClient, name: str
) -> None:
    with pytest.raises(ModelNotFoundError) as raised:
        locate(name)

    message = str(raised.value)
    assert "b is not pinned: the catalog knows no commit, sizes or hashes" in message
    assert "pass org/bonsai, or b with --unpinned (in Python, unpinned=True)" in message
    assert client.hub.requests == []


def test_what_is_there_today_is_taken_on_request_and_said(
    unpinned: Entry, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        location = locate("b", unpinned=True)

    assert location.path.name == "B-Q2_0.gguf"
    assert location.entry is unpinned
    assert "b is not pinned: B-Q2_0.gguf of commit" in caplog.text


def test_by_owner_and_name_it_needs_no_more(
    unpinned: Entry, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        location = locate("org/bonsai")

    assert location.path.name == "B-PQ2_0.gguf"
    assert location.entry is unpinned
    assert "B-PQ2_0.gguf is opened, because its type of tensors, as the names" in caplog.text


@pytest.mark.usefixtures("published")
def test_another_part_of_a_pinned_repository_is_opened_and_said_to_be_unknown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        location = locate("nanochat-x:TQ2_0")

    assert location.path.name == "x-TQ2_0.gguf"
    assert "the catalog knows the files of one model, not x-TQ2_0.gguf" in caplog.text
