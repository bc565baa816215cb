"""The Hub on loopback answers the real client as the Hub does, and goes wrong as it is told to."""

import hashlib
import http.client
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors

from tests.zoo.hub_client import CHUNK, HubClient
from tests.zoo.hub_server import environment, hub_server
from tests.zoo.hub_state import FOREVER, Hub

REPO = "org/name"
LARGE = np.random.default_rng(0).bytes(100_000)
SHA256 = hashlib.sha256(LARGE).hexdigest()
FILES = {"README.md": b"# A model\n", "inner/page.js": b"page", "model.safetensors": LARGE}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def ask(
    origin: str,
    method: str,
    path: str,
    body: str | Iterator[bytes] | None = None,
    token: str = "",
    range: str = "",
) -> tuple[int, bytes]:
    """Status and body of what a client that is not the real one asks, its path sent as it is."""
    headers = {"Authorization": f"Bearer {token}" if token else "", "Range": range}
    connection = http.client.HTTPConnection(origin.removeprefix("http://"))
    connection.request(method, path, body, {name: text for name, text in headers.items() if text})
    answer = connection.getresponse()
    status, got = answer.status, answer.read()
    connection.close()
    return status, got


def read(folder: str | Path) -> dict[str, bytes]:
    paths = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", ["model.safetensors", "model.txt"])
def test_a_cut_connection_is_resumed(hub: Hub, hub_client: HubClient, name: str) -> None:
    del hub_client
    text = b"text " * 20_000
    hub.add(REPO, {name: text})
    hub.fault(f"*/{name}", cut=5 * CHUNK + 7)

    path = huggingface_hub.hf_hub_download(REPO, name)

    asked = [(request.range, request.status) for request in hub.asked(f"*/{name}", "GET")]
    assert asked[-2:] == [("", 200), (f"bytes={5 * CHUNK}-", 206)]
    assert Path(path).read_bytes() == text


def test_a_reset_connection_is_an_error(hub: Hub, hub_client: HubClient) -> None:
    hub.add(REPO, FILES)
    hub.fault("/cdn/*", cut=CHUNK, reset=True)

    with pytest.raises(Exception, match="reset by peer"):
        huggingface_hub.hf_hub_download(REPO, "model.safetensors")

    assert not list(hub_client.cache.rglob("*.incomplete"))


def test_large_files_are_asked_for_without_the_token(hub: Hub, hub_client: HubClient) -> None:
    del hub_client
    hub.add(REPO, FILES, private=True)

    huggingface_hub.snapshot_download(REPO)

    tokens = {(request.host, request.token) for request in hub.requests}
    assert tokens == {("hub", hub.token), ("cdn", "")}


def test_a_busy_hub_is_asked_again(hub: Hub, hub_client: HubClient) -> None:
    hub.add(REPO, FILES)
    hub.fault(f"/{REPO}/resolve/*", status=429, times=2)

    huggingface_hub.hf_hub_download(REPO, "README.md")

    assert [r.status for r in hub.asked("*/README.md", "GET")] == [429, 429, 200]
    assert hub_client.slept == [1, 1]


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
def test_a_status_is_answered_as_often_as_asked(
    hub: Hub, hub_client: HubClient, status: int
) -> None:
    del hub_client
    hub.add(REPO, FILES)
    fault = hub.fault(f"/api/models/{REPO}", status=status, message="not today")

    with pytest.raises(errors.HfHubHTTPError, match="not today") as caught:
        huggingface_hub.model_info(REPO)

    assert caught.value.response.status_code == status
    assert huggingface_hub.model_info(REPO).id == REPO
    assert fault.hits == 1


def test_a_short_body_is_short(hub: Hub, hub_client: HubClient) -> None:
    del hub_client
    hub.add(REPO, FILES)
    hub.fault("/cdn/*", truncate=10, times=FOREVER)

    with pytest.raises(OSError, match="should be of size 100000 but has size 10"):
        huggingface_hub.hf_hub_download(REPO, "model.safetensors")


def test_a_turned_byte_arrives(hub: Hub, hub_client: HubClient) -> None:
    del hub_client
    hub.add(REPO, FILES)
    hub.fault("/cdn/*", flip=7)

    got = Path(huggingface_hub.hf_hub_download(REPO, "model.safetensors")).read_bytes()

    assert [place for place in range(len(LARGE)) if got[place] != LARGE[place]] == [7]


@pytest.mark.parametrize("name", ["README.md", "model.safetensors"])
def test_a_file_can_get_another_name(hub: Hub, hub_client: HubClient, name: str) -> None:
    del hub_client
    hub.add(REPO, FILES)
    hub.fault(f"/{REPO}/resolve/*", method="HEAD", etag="f" * 64)

    path = Path(huggingface_hub.hf_hub_download(REPO, name))

    assert path.resolve().name == "f" * 64


def test_the_hub_can_change_between_two_requests(hub: Hub, hub_client: HubClient) -> None:
    del hub_client
    first = hub.add(REPO, FILES)
    hub.fault(
        f"/{REPO}/resolve/*",
        method="HEAD",
        before=lambda: hub.commit(REPO, {"README.md": b"new", "inner/page.js": None}),
    )

    snapshot = huggingface_hub.snapshot_download(REPO)

    assert Path(snapshot).name == first
    assert read(snapshot) == FILES
    assert hub.files(REPO) == {"README.md": b"new", "model.safetensors": LARGE}


def test_the_store_of_large_files_wants_no_token_and_knows_its_sizes(hub: Hub) -> None:
    hub.add(REPO, FILES)
    path, size = f"/cdn/{REPO}/{SHA256}/model.safetensors", len(LARGE)

    answers = [
        ask(hub.cdn, "GET", path, token=hub.token),
        ask(hub.cdn, "GET", path, range=f"bytes={size}-"),
        ask(hub.cdn, "GET", path, range=f"bytes={size - 2}-"),
        ask(hub.cdn, "GET", path, range="bytes=1-2"),
    ]

    assert [status for status, _ in answers] == [400, 416, 206, 206]
    assert [body for _, body in answers[2:]] == [LARGE[-2:], LARGE[1:3]]


@pytest.mark.parametrize("token", ["", "hf_reader"])
def test_a_private_model_is_as_good_as_missing(hub: Hub, hub_client: HubClient, token: str) -> None:
    huggingface_hub.create_repo(REPO, private=True)
    assert hub.repos[REPO].private
    hub_client.set_token(token)

    for repo in (REPO, "org/missing"):
        with pytest.raises(errors.RepositoryNotFoundError):
            huggingface_hub.snapshot_download(repo)


@pytest.mark.parametrize(("token", "status"), [("", 401), ("hf_reader", 403)])
def test_a_gated_model_lists_its_files_only(
    hub: Hub, hub_client: HubClient, token: str, status: int
) -> None:
    hub.add(REPO, FILES, gated=True)
    hub_client.set_token(token)

    with pytest.raises(errors.GatedRepoError) as caught:
        huggingface_hub.snapshot_download(REPO)

    assert caught.value.response.status_code == status
    assert huggingface_hub.list_repo_files(REPO) == sorted(FILES)


def test_a_token_of_nobody_is_refused_even_for_public_models(
    hub: Hub, hub_client: HubClient
) -> None:
    hub.add(REPO, FILES)
    hub_client.set_token("hf_wrong")

    with pytest.raises(errors.HfHubHTTPError, match="Invalid credentials"):
        huggingface_hub.model_info(REPO)


def test_what_is_missing_is_told_apart(hub: Hub, hub_client: HubClient) -> None:
    del hub_client
    hub.add(REPO, FILES)

    with pytest.raises(errors.RevisionNotFoundError):
        huggingface_hub.snapshot_download(REPO, revision="no-branch")
    with pytest.raises(errors.RemoteEntryNotFoundError):
        huggingface_hub.hf_hub_download(REPO, "no-file")
    with pytest.raises(errors.HfHubHTTPError, match="409"):
        huggingface_hub.create_repo(REPO)


def test_names_that_lead_elsewhere_are_listed_and_served(hub: Hub, hub_client: HubClient) -> None:
    del hub_client
    hub.add(REPO, FILES)
    hub.extra_tree[REPO] = [
        {"path": "../../evil", "data": b"evil"},
        {"path": "../evil.gguf", "data": LARGE},
        {"path": "README.md", "size": 3},
    ]

    siblings = huggingface_hub.model_info(REPO).siblings or []
    tree = huggingface_hub.HfApi().list_repo_tree(REPO, recursive=True)
    files = {file.path: file.size for file in tree if isinstance(file, huggingface_hub.RepoFile)}
    served = ask(hub.url, "GET", f"/{REPO}/resolve/main/../../evil")
    with urllib.request.urlopen(f"{hub.url}/{REPO}/resolve/main/..%2Fevil.gguf") as answer:
        large = answer.read()

    assert {s.rfilename for s in siblings} == set(files)
    assert large == LARGE
    assert (files["../../evil"], files["README.md"], served) == (4, 3, (200, b"evil"))


def test_offline_the_cache_is_enough(hub: Hub, hub_client: HubClient) -> None:
    hub.add(REPO, FILES)
    online = huggingface_hub.snapshot_download(REPO)
    asked = len(hub.requests)
    hub_client.set_offline()

    offline = huggingface_hub.snapshot_download(REPO)

    assert offline == online
    assert len(hub.requests) == asked
    with pytest.raises(errors.LocalEntryNotFoundError):
        huggingface_hub.snapshot_download("org/other")


def test_the_client_cannot_leave_loopback(hub_client: HubClient) -> None:
    del hub_client

    with pytest.raises(AssertionError, match=r"asks huggingface\.co"):
        huggingface_hub.HfApi(endpoint="https://huggingface.co").model_info(REPO)


def test_the_client_is_itself_again_afterwards(tmp_path: Path) -> None:
    constants = huggingface_hub.constants
    before = {name: value for name, value in vars(constants).items() if name.isupper()}

    with hub_server() as hub, pytest.MonkeyPatch.context() as monkeypatch:
        HubClient(hub, tmp_path, monkeypatch)
        changed = {name for name in before if vars(constants)[name] != before[name]}
        huggingface_hub.close_session()

    assert {"ENDPOINT", "HF_HUB_CACHE", "HF_TOKEN_PATH"} <= changed
    assert {name: vars(constants)[name] for name in before} == before


def test_a_process_of_its_own_knows_the_hub_by_its_environment(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, FILES, private=True)
    code = f"import huggingface_hub; print(huggingface_hub.snapshot_download({REPO!r}))"

    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(hub, tmp_path / "home"),
        capture_output=True,
        text=True,
        check=True,
    )

    assert read(done.stdout.strip()) == FILES


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
        ("copiedFile", {"path": "a"}),
        ("deletedFile", {"path": "a"}),
    ],
    ids=["large as regular", "not uploaded", "unknown", "no such file"],
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
