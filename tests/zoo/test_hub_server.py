"""The Hub on loopback answers the real client as the Hub does, and goes wrong as it is told to."""

import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors

from tests.zoo.hub_client import CHUNK, HubClient
from tests.zoo.hub_files import FILES, LARGE, REPO, SHA256, ask, read, write
from tests.zoo.hub_server import environment, hub_server
from tests.zoo.hub_state import FOREVER, Hub

ROOT = Path(__file__).parents[2]


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


def test_an_answer_waits_for_an_event(hub: Hub, hub_client: HubClient) -> None:
    del hub_client
    hub.add(REPO, FILES)
    # The connection is there, so that nothing else takes time.
    huggingface_hub.model_info(REPO)
    event = threading.Event()
    hub.fault(f"/api/models/{REPO}", pause=event)

    asker = threading.Thread(target=huggingface_hub.model_info, args=(REPO,))
    asker.start()
    asker.join(0.5)
    answers = [len(hub.requests)]
    event.set()
    asker.join()
    answers.append(len(hub.requests))

    assert answers == [1, 2]


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


def test_a_listing_comes_in_pages(hub: Hub, hub_client: HubClient) -> None:
    del hub_client
    hub.add(REPO, {f"{number // 3}/{number}.txt": b"text" for number in range(10)})
    hub.page_size = 4

    snapshot = huggingface_hub.snapshot_download(REPO)

    # Ten files and four folders.
    assert len(hub.asked("*/tree/*")) == 4
    assert read(snapshot) == hub.files(REPO)


def test_listings_tell_name_size_and_hash(hub: Hub, hub_client: HubClient) -> None:
    del hub_client
    hub.add(REPO, FILES)
    api = huggingface_hub.HfApi()

    siblings = api.model_info(REPO, files_metadata=True).siblings or []
    entries = list(api.list_repo_tree(REPO, recursive=True))
    top = [entry.path for entry in api.list_repo_tree(REPO)]
    inner = [entry.path for entry in api.list_repo_tree(REPO, "inner")]
    (asked,) = api.get_paths_info(REPO, ["model.safetensors", "missing"])

    files = [entry for entry in entries if isinstance(entry, huggingface_hub.RepoFile)]
    listed = {(file.path, file.size, file.blob_id, file.lfs and file.lfs.sha256) for file in files}
    assert listed == {(s.rfilename, s.size, s.blob_id, s.lfs and s.lfs.sha256) for s in siblings}
    assert {path: size for path, size, _, _ in listed} == {k: len(v) for k, v in FILES.items()}
    assert asked in entries
    assert (top, inner) == (["README.md", "inner", "model.safetensors"], ["inner/page.js"])


def test_names_that_lead_elsewhere_are_listed_and_served(hub: Hub, hub_client: HubClient) -> None:
    del hub_client
    hub.add(REPO, FILES)
    hub.extra_tree[REPO] = [
        {"path": "../../evil", "data": b"evil"},
        {"path": "../evil.gguf", "data": LARGE},
        {"path": "README.md", "size": 3},
    ]

    siblings = huggingface_hub.model_info(REPO, files_metadata=True).siblings or []
    tree = huggingface_hub.HfApi().list_repo_tree(REPO, recursive=True)
    files = {file.path: file.size for file in tree if isinstance(file, huggingface_hub.RepoFile)}
    served = ask(hub.url, "GET", f"/{REPO}/resolve/main/../../evil")
    with urllib.request.urlopen(f"{hub.url}/{REPO}/resolve/main/..%2Fevil.gguf") as answer:
        large = answer.read()

    assert {s.rfilename: s.size for s in siblings} == files
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


def test_the_server_can_be_started_by_hand(tmp_path: Path) -> None:
    write(tmp_path / "folder", FILES)
    served = subprocess.Popen(
        [sys.executable, "-m", "tests.zoo.hub_server", f"{REPO}={tmp_path / 'folder'}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert served.stdout is not None
    with served:
        try:
            line = served.stdout.readline()
            origin = line.split("HF_ENDPOINT=")[1].split()[0]
            got = ask(origin, "GET", f"/{REPO}/resolve/main/README.md")
        finally:
            served.terminate()

    assert got == (200, FILES["README.md"])
