"""The Hub on loopback takes what the real client writes as the Hub does, and refuses what the Hub refuses."""

import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors

from tests.zoo.hub_client import HubClient
from tests.zoo.hub_files import FILES, LARGE, REPO, SHA256, ask, read, write
from tests.zoo.hub_state import Hub


def test_what_is_uploaded_comes_back(hub: Hub, hub_client: HubClient, tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", FILES)

    huggingface_hub.create_repo(REPO)
    commit = huggingface_hub.upload_folder(repo_id=REPO, folder_path=folder, commit_message="files")
    snapshot = huggingface_hub.snapshot_download(REPO)

    assert {**read(snapshot), ".gitattributes": b""} == {**FILES, ".gitattributes": b""}
    assert hub.subjects(REPO) == ["files", "initial commit"]
    assert Path(snapshot).name == commit.oid
    assert Path(snapshot).is_relative_to(hub_client.cache)


def test_only_large_files_are_uploaded_apart(
    hub: Hub, hub_client: HubClient, tmp_path: Path
) -> None:
    del hub_client
    huggingface_hub.create_repo(REPO)

    huggingface_hub.upload_folder(repo_id=REPO, folder_path=write(tmp_path / "folder", FILES))

    (upload,) = hub.asked(method="PUT")
    assert upload.path == f"/upload/{REPO}/{SHA256}"
    assert (upload.host, upload.token) == ("cdn", "")


def test_a_commit_can_succeed_without_its_sender_knowing(hub: Hub, hub_client: HubClient) -> None:
    del hub_client
    hub.add(REPO, FILES)
    hub.fault("*/commit/*", method="POST", cut=0)

    with pytest.raises(Exception, match="peer closed connection"):
        huggingface_hub.upload_file(path_or_fileobj=b"a", path_in_repo="a", repo_id=REPO)

    assert hub.files(REPO) == {**FILES, "a": b"a"}


def test_a_broken_upload_is_repeated(hub: Hub, hub_client: HubClient, tmp_path: Path) -> None:
    del hub_client
    hub.add(REPO, {})
    hub.fault("/upload/*", method="PUT", status=503, times=2)
    folder = write(tmp_path / "folder", FILES)

    huggingface_hub.upload_folder(repo_id=REPO, folder_path=folder)

    assert [request.status for request in hub.asked("/upload/*")] == [503, 503, 200]
    assert hub.files(REPO) == FILES


def test_a_pull_request_leaves_main_alone(hub: Hub, hub_client: HubClient, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    # Whoever may not write may ask.
    hub_client.set_token(hub.reader)

    files = {"new.txt": b"new", "new.gguf": LARGE}
    folder = write(tmp_path / "folder", files)
    commit = huggingface_hub.upload_folder(repo_id=REPO, folder_path=folder, create_pr=True)

    assert (commit.pr_revision, commit.pr_url) == ("refs/pr/1", f"{hub.url}/{REPO}/discussions/1")
    assert hub.files(REPO) == FILES
    assert hub.files(REPO, "refs/pr/1") == {**FILES, **files}
    refs = huggingface_hub.list_repo_refs(REPO, include_pull_requests=True)
    assert [(r.ref, r.target_commit) for r in refs.pull_requests or ()] == [
        ("refs/pr/1", commit.oid)
    ]
    huggingface_hub.snapshot_download(REPO, revision="refs/pr/1")


def test_a_commit_on_what_is_no_longer_the_head_is_refused(
    hub: Hub, hub_client: HubClient, tmp_path: Path
) -> None:
    del hub_client
    old = hub.add(REPO, FILES)
    hub.commit(REPO, {"README.md": b"newer"})
    (tmp_path / "a").write_bytes(b"a")

    with pytest.raises(errors.HfHubHTTPError, match="A commit has happened since"):
        huggingface_hub.upload_file(
            path_or_fileobj=tmp_path / "a", path_in_repo="a", repo_id=REPO, parent_commit=old
        )

    assert "a" not in hub.files(REPO)


def test_unchanged_files_are_not_committed(hub: Hub, hub_client: HubClient, tmp_path: Path) -> None:
    del hub_client
    oid = hub.add(REPO, FILES)

    commit = huggingface_hub.upload_folder(
        repo_id=REPO, folder_path=write(tmp_path / "folder", FILES)
    )

    assert commit.oid == oid
    assert not hub.asked("*/commit/*")


def test_files_are_deleted_by_pattern(hub: Hub, hub_client: HubClient, tmp_path: Path) -> None:
    del hub_client
    hub.add(REPO, FILES)

    huggingface_hub.upload_folder(
        repo_id=REPO, folder_path=write(tmp_path / "x", {"a": b"a"}), delete_patterns="*.js"
    )

    assert set(hub.files(REPO)) == {"README.md", "a", "model.safetensors"}


@pytest.mark.parametrize("oid", ["0" * 64, SHA256], ids=["other bytes", "these bytes"])
def test_an_upload_is_hashed(hub: Hub, oid: str) -> None:
    hub.add(REPO, FILES | {"model.safetensors": b"old"})
    size = json.dumps({"oid": oid, "size": len(LARGE)})

    status, _ = ask(hub.cdn, "PUT", f"/upload/{REPO}/{oid}", iter([LARGE[:7], LARGE[7:]]))
    verified, _ = ask(hub.url, "POST", f"/{REPO}.git/info/lfs/objects/verify", size, hub.token)

    assert (status, verified) == ((200, 200) if oid == SHA256 else (400, 404))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("file", {"path": "a.gguf", "content": "YQ=="}),
        ("lfsFile", {"path": "a.gguf", "oid": "0" * 64}),
        ("file", {"path": "a", "content": "A"}),
        ("copiedFile", {"path": "a"}),
        ("deletedFile", {"path": "a"}),
    ],
    ids=["large as regular", "not uploaded", "no base64", "unknown", "no such file"],
)
def test_a_wrong_commit_changes_nothing(hub: Hub, key: str, value: dict[str, str]) -> None:
    hub.add(REPO, FILES)
    lines = [
        {"key": "header", "value": {"summary": "commit"}},
        {"key": "deletedFile", "value": {"path": "README.md"}},
        {"key": key, "value": value},
    ]
    body = "\n".join(map(json.dumps, lines))

    status, _ = ask(hub.url, "POST", f"/api/models/{REPO}/commit/main", body, hub.token)

    assert 400 <= status < 500
    assert hub.files(REPO) == FILES


def test_who_may_read_may_not_write(hub: Hub, hub_client: HubClient) -> None:
    hub.add(REPO, FILES)
    hub_client.set_token(hub.reader)

    with pytest.raises(errors.HfHubHTTPError, match="403 Forbidden"):
        huggingface_hub.upload_file(path_or_fileobj=b"a", path_in_repo="a", repo_id=REPO)
    with pytest.raises(errors.HfHubHTTPError, match="don't have the rights"):
        huggingface_hub.create_repo("org/other")


def test_branches_and_tags_name_commits(hub: Hub, hub_client: HubClient) -> None:
    del hub_client
    first = hub.add(REPO, FILES)
    huggingface_hub.create_branch(REPO, branch="old")
    huggingface_hub.create_tag(REPO, tag="v1", revision=first)
    second = hub.commit(REPO, {"README.md": b"new"})

    shas = [huggingface_hub.model_info(REPO, revision=r).sha for r in ("old", "v1", "main")]

    assert shas == [first, first, second]
    assert [c.commit_id for c in huggingface_hub.list_repo_commits(REPO)] == [second, first]
    huggingface_hub.delete_repo(REPO)
    assert not huggingface_hub.repo_exists(REPO)
