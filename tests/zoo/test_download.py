"""What is fetched from the Hub is whole and of one commit, or is not opened; the real client, a Hub on loopback."""

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import huggingface_hub._tree_cache
import pytest

from nanochat.errors import FormatError, InputError, ModelNotFoundError, SaveError
from nanochat.file_record import record_file
from nanochat.zoo import cache, catalog, download, resume
from nanochat.zoo import hub as names
from nanochat.zoo.hub import locate
from nanochat.zoo.location import Location, Request
from tests.zoo.hub_client import HubClient
from tests.zoo.hub_server import environment
from tests.zoo.hub_state import FOREVER, Hub

ROOT = Path(__file__).parents[2]
WEIGHTS = bytes(range(256)) * 80
OWN = {
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b'{"tokenizer": 1}',
    "README.md": b"# A card\n",
}
SEVERAL = {
    **OWN,
    "x-TQ2_0.gguf": b"GGUF" + WEIGHTS,
    "onnx/model.onnx": b"onnx" + WEIGHTS,
    "onnx/tokenizer.json": b"{}",
    "run.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
}


@pytest.fixture(autouse=True)
def client(hub_client: HubClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubClient:
    """The real client, where there is no directory of any name."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return hub_client


@pytest.fixture
def repo(hub: Hub) -> Hub:
    hub.add("org/name", SEVERAL)
    return hub


def fetched_names(location: Location) -> set[str]:
    assert location.fetched is not None
    snapshot = location.fetched.snapshot
    return {p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()}


@pytest.mark.usefixtures("repo")
def test_a_model_is_fetched_with_what_it_needs_and_nothing_else() -> None:
    location = locate("org/name")

    assert fetched_names(location) == set(OWN)
    assert (location.path / "model.safetensors").read_bytes() == WEIGHTS
    assert location.name == "name"


@pytest.mark.usefixtures("repo")
@pytest.mark.parametrize(
    ("name", "backend", "names"),
    [
        ("org/name", "onnx", {"onnx/model.onnx", "onnx/tokenizer.json"}),
        ("org/name:TQ2_0", "numba", {"x-TQ2_0.gguf"}),
        ("org/name@main:gguf", "numba", {"x-TQ2_0.gguf"}),
    ],
)
def test_of_several_formats_one_is_fetched(name: str, backend: str, names: set[str]) -> None:
    location = locate(name, backend=backend)

    assert fetched_names(location) == names
    assert location.path.exists()


def test_shards_are_fetched_all(hub: Hub) -> None:
    shards = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    index = {"weight_map": {str(n): name for n, name in enumerate(shards)}}
    files = {name: name.encode() * 99 for name in shards}
    files |= {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode()}
    hub.add("org/name", files)

    assert fetched_names(locate("org/name")) == set(files)


def test_what_is_here_is_not_fetched_again(repo: Hub) -> None:
    locate("org/name")
    repo.requests.clear()

    locate("org/name")

    assert [request.path for request in repo.requests] == ["/api/models/org/name"]


def test_a_commit_that_is_here_needs_no_hub_at_all(repo: Hub) -> None:
    first = locate("org/name")
    assert first.fetched is not None
    repo.requests.clear()

    locate(f"org/name@{first.fetched.commit}")

    assert repo.requests == []


def test_force_download_fetches_again(repo: Hub) -> None:
    locate("org/name")
    repo.requests.clear()

    locate("org/name", force_download=True)

    assert len(repo.asked("/cdn/*", "GET")) == 1


def test_a_branch_a_tag_and_a_commit_are_revisions(repo: Hub) -> None:
    old = repo.files("org/name")
    commit = repo.commit("org/name", {"config.json": b'{"new": 1}'})

    assert (locate("org/name").path / "config.json").read_bytes() == b'{"new": 1}'
    assert (locate("org/name", revision=commit).path / "config.json").read_bytes() != b"{}"
    with pytest.raises(ModelNotFoundError, match=r"no revision 'v9': .*/org/name/tree/main"):
        locate("org/name@v9")
    assert old["config.json"] == b"{}"


def test_cache_dir_and_token_are_obeyed(hub: Hub, client: HubClient, tmp_path: Path) -> None:
    hub.add("org/name", OWN, private=True)
    client.set_token("")

    location = locate("org/name", cache_dir=tmp_path / "elsewhere", token=hub.token)

    assert location.path.is_relative_to(tmp_path / "elsewhere")
    assert not client.cache.exists()


def test_offline_a_model_is_what_was_fetched(repo: Hub, client: HubClient) -> None:
    online = locate("org/name")
    client.set_offline()
    repo.requests.clear()

    assert locate("org/name") == online
    assert repo.requests == []


def test_local_files_only_asks_nobody(repo: Hub) -> None:
    online = locate("org/name")
    repo.commit("org/name", {"config.json": b"new"})
    repo.requests.clear()

    assert locate("org/name", local_files_only=True) == online
    assert repo.requests == []


@pytest.mark.usefixtures("repo")
def test_offline_the_format_that_is_here_is_opened() -> None:
    locate("org/name:gguf")

    location = locate("org/name", local_files_only=True)

    assert location.path.name == "x-TQ2_0.gguf"


@pytest.mark.usefixtures("repo")
@pytest.mark.parametrize("offline", [True, False])
def test_what_was_never_fetched_is_not_here(offline: bool, client: HubClient) -> None:
    client.set_offline(offline)

    with pytest.raises(ModelNotFoundError, match=r"not fetched before.*(connect|models pull)"):
        locate("org/name", local_files_only=not offline)


def test_out_of_reach_the_copy_is_used_and_that_is_said(
    repo: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    online = locate("org/name")
    repo.fault("/api/models/*", times=FOREVER, status=503)

    with caplog.at_level(logging.WARNING):
        location = locate("org/name")

    assert location == online
    assert "the Hub is out of reach: org/name is the copy of commit" in caplog.text


class Refusal(NamedTuple):
    """How the Hub answers, and what the user reads."""

    status: int
    code: str
    message: str


REFUSALS = {
    "too many": Refusal(429, "", "too many requests from here; try again later"),
    "broken": Refusal(500, "", r"the Hub is out of reach \(status 500"),
    "unavailable": Refusal(503, "", r"the Hub is out of reach \(status 503"),
    "who": Refusal(401, "", "run `hf auth login`"),
    "forbidden": Refusal(403, "", "may not be read with this token"),
    "gated": Refusal(403, "GatedRepo", "asks you to accept its terms: do so at http"),
    "gone": Refusal(404, "RepoNotFound", "no directory here and no model at http"),
    "odd": Refusal(418, "", "check HF_ENDPOINT"),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_says_what_to_do(refusal: Refusal, repo: Hub) -> None:
    repo.fault("/api/models/*", times=FOREVER, status=refusal.status, code=refusal.code)

    with pytest.raises(ModelNotFoundError, match=refusal.message) as raised:
        locate("org/name")

    assert "\n" not in str(raised.value)


IN_TRANSFER = REFUSALS | {
    "broken": Refusal(500, "", r"out of order \(status 500\); try again later"),
    "unavailable": Refusal(503, "", "out of order"),
}


@pytest.mark.parametrize("refusal", IN_TRANSFER.values(), ids=IN_TRANSFER)
def test_a_refusal_of_one_file_leaves_nothing_that_could_be_opened(
    refusal: Refusal, repo: Hub
) -> None:
    fault = repo.fault(
        "*/model.safetensors",
        method="*",
        times=FOREVER,
        status=refusal.status,
        code=refusal.code,
    )

    with pytest.raises(ModelNotFoundError):
        locate("org/name")
    with pytest.raises(ModelNotFoundError, match="not fetched"):
        locate("org/name", local_files_only=True)

    fault.times = 0
    assert (locate("org/name").path / "model.safetensors").read_bytes() == WEIGHTS


def test_a_private_repository_is_not_told_from_none(hub: Hub, client: HubClient) -> None:
    hub.add("org/secret", OWN, private=True)
    client.set_token("")

    for name in ("org/secret", "org/nothing"):
        with pytest.raises(ModelNotFoundError, match="check the name, or run `hf auth login`"):
            locate(name)


def test_a_gated_repository_names_its_page(hub: Hub, client: HubClient) -> None:
    hub.add("org/gated", OWN, gated=True)
    client.set_token(hub.reader)

    with pytest.raises(ModelNotFoundError, match=f"accept its terms: do so at {hub.url}/org/gated"):
        locate("org/gated")


@pytest.mark.usefixtures("repo")
def test_a_wrong_token_is_said(client: HubClient) -> None:
    client.set_token("hf_wrong")

    with pytest.raises(ModelNotFoundError, match="hf auth login") as raised:
        locate("org/name")

    assert "hf_wrong" not in str(raised.value)


def test_a_cut_is_resumed_where_it_was(repo: Hub) -> None:
    repo.fault("/cdn/*", times=2, cut=9000)

    location = locate("org/name")

    assert (location.path / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [request.range for request in repo.asked("/cdn/*", "GET")]
    assert ranges[0] == ""
    assert all(text.startswith("bytes=") for text in ranges[1:])
    assert len(ranges) == 3


def test_a_line_that_stays_cut_is_said_and_then_goes_on(repo: Hub) -> None:
    fault = repo.fault("/cdn/*", times=FOREVER, cut=0)

    with pytest.raises(ModelNotFoundError, match="what is complete stays, so try again"):
        locate("org/name")
    with pytest.raises(ModelNotFoundError, match="not fetched"):
        locate("org/name", local_files_only=True)
    fault.times = 0
    repo.requests.clear()

    location = locate("org/name")

    assert (location.path / "model.safetensors").read_bytes() == WEIGHTS
    assert not repo.asked("*/resolve/*/config.json")


def test_an_update_that_is_cut_leaves_the_model_that_was_here(repo: Hub) -> None:
    old = locate("org/name")
    repo.commit("org/name", {"config.json": b"new", "model.safetensors": WEIGHTS + b"new"})
    repo.fault("/cdn/*", times=FOREVER, cut=0)

    with pytest.raises(ModelNotFoundError):
        locate("org/name")

    assert locate("org/name", local_files_only=True) == old


def test_a_truncated_file_is_not_opened(repo: Hub) -> None:
    repo.fault("/cdn/*", times=FOREVER, truncate=5000)

    with pytest.raises((ModelNotFoundError, SaveError)):
        locate("org/name")
    with pytest.raises(ModelNotFoundError, match="not fetched"):
        locate("org/name", local_files_only=True)


@pytest.mark.parametrize("pattern", ["/cdn/*", "*/resolve/*/config.json"])
def test_a_corrupted_file_is_fetched_again(
    pattern: str, repo: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    repo.fault(pattern, times=1, flip=1)

    with caplog.at_level(logging.WARNING):
        location = locate("org/name")

    assert {name: (location.path / name).read_bytes() for name in OWN} == OWN
    assert "was damaged on its way or on this disk: fetched again" in caplog.text


@pytest.mark.parametrize("pattern", ["/cdn/*", "*/resolve/*/config.json"])
def test_a_file_that_comes_corrupted_twice_is_refused_and_gone(pattern: str, repo: Hub) -> None:
    repo.fault(pattern, times=FOREVER, flip=1)

    with pytest.raises(FormatError, match=r"not what the Hub's own record says, twice"):
        locate("org/name")
    with pytest.raises(ModelNotFoundError, match="not fetched"):
        locate("org/name", local_files_only=True)


def test_a_wrong_etag_does_not_make_another_file_pass(repo: Hub) -> None:
    repo.fault("*/resolve/*", method="HEAD", times=FOREVER, etag='"0123456789abcdef"')

    # One name for all files: the client takes the first for the rest.
    with pytest.raises(FormatError, match="twice"):
        locate("org/name")


def test_a_wrong_etag_of_one_file_is_no_harm(repo: Hub) -> None:
    repo.fault("*/resolve/*/model.safetensors", method="HEAD", times=FOREVER, etag='"odd"')

    location = locate("org/name")

    assert (location.path / "model.safetensors").read_bytes() == WEIGHTS
    assert locate("org/name", local_files_only=True) == location


@pytest.mark.usefixtures("repo")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damage_on_this_disk_is_found_and_repaired(name: str) -> None:
    path = locate("org/name").path / name
    data = bytearray(path.read_bytes())
    data[1] ^= 1
    path.resolve().write_bytes(data)

    with pytest.raises(FormatError, match=rf"{name}: not what the Hub's record says"):
        locate("org/name", local_files_only=True)

    assert (locate("org/name").path / name).read_bytes() == OWN[name]


@pytest.mark.usefixtures("repo")
def test_a_link_that_leads_out_of_the_cache_is_not_followed(tmp_path: Path) -> None:
    link = locate("org/name").path / "config.json"
    (tmp_path / "outside").write_bytes(OWN["config.json"])
    link.unlink()
    link.symlink_to(tmp_path / "outside")

    with pytest.raises(FormatError, match=r"config\.json"):
        locate("org/name", local_files_only=True)


@pytest.mark.usefixtures("repo")
def test_a_link_that_leads_out_of_the_cache_is_replaced(tmp_path: Path) -> None:
    link = locate("org/name").path / "config.json"
    (tmp_path / "outside").write_bytes(b"outside")
    link.unlink()
    link.symlink_to(tmp_path / "outside")

    locate("org/name")

    assert link.read_bytes() == OWN["config.json"]
    assert (tmp_path / "outside").read_bytes() == b"outside"


@pytest.mark.usefixtures("repo")
def test_what_is_here_can_be_opened_from_a_cache_that_cannot_be_written(
    client: HubClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    location = locate("org/name")
    (client.cache / "models--org--name" / "refs" / "main").unlink()

    def refuse(*_: object) -> None:
        raise SaveError("read-only file system")

    monkeypatch.setattr(download, "atomic_write", refuse)
    with caplog.at_level(logging.WARNING):
        again = locate("org/name")

    assert again == location
    assert "org/name will not be found without the Hub: read-only" in caplog.text


def test_a_repository_that_changes_meanwhile_gives_one_of_its_states(repo: Hub) -> None:
    before = repo.files("org/name")
    changed = {name: data + b"new" for name, data in OWN.items()}
    repo.fault("*/resolve/*", method="*", before=lambda: repo.commit("org/name", changed), times=1)

    first = locate("org/name")
    second = locate("org/name")

    assert {name: (first.path / name).read_bytes() for name in OWN} == {n: before[n] for n in OWN}
    assert {name: (second.path / name).read_bytes() for name in OWN} == changed


@pytest.mark.parametrize("token", ["hf_secret\n", " hf_secret "])
def test_a_token_with_the_end_of_its_line_is_the_token(token: str, repo: Hub) -> None:
    assert locate("org/name", token=token).path.is_dir()
    assert {request.token for request in repo.requests if request.host == "hub"} == {"hf_secret"}


@pytest.mark.usefixtures("repo")
@pytest.mark.parametrize("token", ["", " ", "hf_se\ncret", "hf_se cret", "hf_sé"])
def test_what_no_token_can_be_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(InputError, match="holds what no token does") as raised:
        locate("org/name", token=token)

    assert "hf_se" not in str(raised.value)
    assert "hf_se" not in repr(Request(repo="org/name", token=token))


@pytest.mark.parametrize("sha", ["/tmp/victim", "../../victim", "", "main"])
def test_a_commit_that_is_none_is_refused(sha: str, repo: Hub, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "config.json").write_text("mine")
    real = repo.repos["org/name"].branches["main"]
    forged = str(victim) if sha == "/tmp/victim" else sha
    commit = repo.repos["org/name"].commits.pop(real)
    repo.repos["org/name"].commits[forged] = dataclasses.replace(commit, oid=forged)
    repo.repos["org/name"].branches["main"] = forged

    with pytest.raises(ModelNotFoundError):
        locate("org/name")

    assert (victim / "config.json").read_text() == "mine"


@pytest.mark.parametrize("oid", ["/tmp/victim", "../../victim", "x" * 64, "ab"])
def test_a_hash_that_is_none_condemns_the_repository(oid: str, repo: Hub, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    lfs = {"oid": oid.replace("/tmp/victim", str(victim / "x")), "size": 20480, "pointerSize": 130}
    repo.extra_tree["org/name"] = [{"path": "model.safetensors", "lfs": lfs}]

    with pytest.raises(FormatError, match="with a hash that is none: do not use this repository"):
        locate("org/name")

    assert not list(victim.iterdir())


def test_a_repository_on_another_disk_is_used_as_it_is(
    repo: Hub, client: HubClient, tmp_path: Path
) -> None:
    first = locate("org/name")
    place = client.cache / "models--org--name"
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    repo.requests.clear()

    assert locate("org/name") == first
    assert locate("org/name", local_files_only=True) == first
    assert not repo.asked("/cdn/*")


def test_a_cache_without_a_listing_gets_one_and_is_used_offline(
    repo: Hub, client: HubClient
) -> None:
    first = locate("org/name")
    shutil.rmtree(client.cache / "models--org--name" / "trees")
    # As in a process that has just started.
    client.monkeypatch.setattr(huggingface_hub._tree_cache, "_IN_MEMORY_TREE_CACHE", {})
    with pytest.raises(ModelNotFoundError, match="no record to be compared with: connect"):
        locate("org/name", local_files_only=True)
    repo.requests.clear()

    locate("org/name")

    assert not repo.asked("/cdn/*")
    client.monkeypatch.setattr(huggingface_hub._tree_cache, "_IN_MEMORY_TREE_CACHE", {})
    assert locate("org/name", local_files_only=True) == first


@pytest.mark.usefixtures("repo")
def test_offline_a_damaged_file_of_a_commit_is_left_where_it_is(client: HubClient) -> None:
    location = locate("org/name")
    assert location.fetched is not None
    path = (location.path / "config.json").resolve()
    path.write_bytes(b"[]")
    client.set_offline()

    with pytest.raises(FormatError, match="damaged: connect"):
        locate(f"org/name@{location.fetched.commit}")

    assert path.read_bytes() == b"[]"


@pytest.mark.usefixtures("repo")
def test_offline_a_part_that_was_not_fetched_is_not_said_to_be_missing() -> None:
    locate("org/name")

    with pytest.raises(
        ModelNotFoundError,
        match=r"org/name:gguf was not fetched completely before; safetensors is here",
    ):
        locate("org/name:gguf", local_files_only=True)


@pytest.mark.usefixtures("repo")
def test_force_download_and_offline_exclude_each_other() -> None:
    with pytest.raises(InputError, match="leave one of them out"):
        locate("org/name", local_files_only=True, force_download=True)


def test_names_are_no_patterns(hub: Hub) -> None:
    hub.add("org/name", {"x[1]-TQ2_0.gguf": b"GGUF1", "x1-TQ2_0.txt": b"", "x1.gguf": b"GGUF2"})

    location = locate("org/name:TQ2_0")

    assert fetched_names(location) == {"x[1]-TQ2_0.gguf"}


@pytest.mark.parametrize("evil", ["../../evil.json", "/tmp/evil", "a/../../evil"])
def test_a_name_that_leads_out_condemns_the_repository(
    evil: str, repo: Hub, tmp_path: Path
) -> None:
    repo.extra_tree["org/name"] = [{"path": evil, "data": b"evil"}]

    with pytest.raises(FormatError, match="leads out of its folder: do not use this repository"):
        locate("org/name")

    assert not list(tmp_path.rglob("*evil*"))


def test_a_full_disk_is_said_before_the_transfer(
    repo: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))

    with pytest.raises(SaveError, match=r"takes 0\.00 GB, but .* has 0\.00 GB left: free space"):
        locate("org/name")

    assert not repo.asked("/cdn/*")


FULL_DISK = """
import resource, signal, sys
from nanochat.errors import SaveError
from nanochat.zoo import download
from nanochat.zoo.hub import locate
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
try:
    locate("org/name")
except SaveError as error:
    print(error)
"""


def in_process(hub: Hub, home: Path, code: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code],
        # What is compiled under a limit on file sizes would be broken for all that come later.
        env=os.environ
        | environment(hub, home)
        | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are POSIX only")
def test_a_disk_that_fills_up_leaves_nothing_that_could_be_opened(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/name", OWN)

    said, errors = in_process(hub, tmp_path, FULL_DISK).communicate()

    assert said.startswith("cannot store org/name: File too large; free space"), errors
    assert not list(tmp_path.rglob("model.safetensors"))
    assert not list(tmp_path.rglob("*.incomplete"))


@pytest.mark.parametrize("size", [20_000, 17_000_000], ids=["small", "large"])
def test_two_processes_that_want_the_same_model_fetch_it_once(
    size: int, hub: Hub, tmp_path: Path
) -> None:
    files = {**OWN, "model.safetensors": bytes(size)}
    hub.add("org/name", files)
    # Neither is done before the other has begun.
    hub.fault("/cdn/*", times=2, pause=1.0)
    code = "from nanochat.zoo.hub import locate; print(locate('org/name').path)"

    processes = [in_process(hub, tmp_path, code) for _ in range(2)]
    said = [process.communicate() for process in processes]

    assert [process.returncode for process in processes] == [0, 0], said
    assert said[0][0] == said[1][0]
    folder = Path(said[0][0].strip())
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert len(hub.asked("/cdn/*", "GET")) == 1


def test_a_killed_download_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/name", OWN)
    begun, killed = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        killed.wait(30)

    hub.fault("/cdn/*", before=hold)
    code = "from nanochat.zoo.hub import locate; print(locate('org/name').path)"

    process = in_process(hub, tmp_path, code)
    assert begun.wait(30)
    process.kill()
    process.communicate()
    killed.set()
    said, errors = in_process(hub, tmp_path, code).communicate()

    folder = Path(said.strip())
    assert {name: (folder / name).read_bytes() for name in OWN} == OWN, errors


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every file in large storage for one that is worth going on with."""
    monkeypatch.setattr(resume, "_LARGE_BYTES", 1)
    monkeypatch.setattr(resume, "_PAUSE", 0.01)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_large_file_goes_on_after_any_cut(reset: bool, repo: Hub) -> None:
    repo.fault("/cdn/*", times=3, cut=9000, reset=reset)

    location = locate("org/name")

    assert (location.path / "model.safetensors").read_bytes() == WEIGHTS
    assert [r.range for r in repo.asked("/cdn/*", "GET")][:2] == ["", "bytes=8192-"]


@pytest.mark.usefixtures("large")
def test_a_large_file_goes_on_in_the_next_call(repo: Hub, client: HubClient) -> None:
    fault = repo.fault("/cdn/*", times=FOREVER, cut=5000, reset=True)
    repo.fault("/cdn/*", times=FOREVER, cut=0)
    fault.times = 1

    with pytest.raises(ModelNotFoundError, match="what is complete stays, so try again"):
        locate("org/name")
    with pytest.raises(ModelNotFoundError, match="not fetched"):
        locate("org/name", local_files_only=True)
    repo.faults.clear()
    repo.requests.clear()
    location = locate("org/name")

    assert (location.path / "model.safetensors").read_bytes() == WEIGHTS
    assert [r.range for r in repo.asked("/cdn/*", "GET")] == ["bytes=4096-"]
    assert not list(client.cache.rglob(f"*{resume.SUFFIX}"))


@pytest.mark.usefixtures("large")
def test_what_came_of_a_file_and_is_not_part_of_it_is_thrown_away(
    repo: Hub, client: HubClient, caplog: pytest.LogCaptureFixture
) -> None:
    blobs = client.cache / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(WEIGHTS).hexdigest()}{resume.SUFFIX}").write_bytes(b"x" * 5000)

    with caplog.at_level(logging.WARNING):
        location = locate("org/name")

    assert (location.path / "model.safetensors").read_bytes() == WEIGHTS
    assert "was damaged on its way: fetched again" in caplog.text
    assert repo.asked("/cdn/*", "GET")[0].range == "bytes=5000-"


@pytest.mark.usefixtures("large")
def test_more_than_there_is_of_a_file_is_thrown_away(repo: Hub, client: HubClient) -> None:
    blobs = client.cache / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(WEIGHTS).hexdigest()}{resume.SUFFIX}").write_bytes(WEIGHTS * 2)

    location = locate("org/name")

    assert (location.path / "model.safetensors").read_bytes() == WEIGHTS
    assert [request.range for request in repo.asked("/cdn/*", "GET")] == [""]


@pytest.mark.usefixtures("large")
def test_what_came_of_a_file_can_be_removed(repo: Hub) -> None:
    repo.fault("/cdn/*", times=1, cut=9000)
    repo.fault("/cdn/*", times=FOREVER, cut=0)
    with pytest.raises(ModelNotFoundError):
        locate("org/name")

    assert cache.remove("org/name") >= 8192
    with pytest.raises(ModelNotFoundError, match="nothing of org/name was fetched"):
        cache.remove("org/name")


def test_a_large_file_goes_on_after_a_kill(hub: Hub, tmp_path: Path) -> None:
    weights = bytes(range(256)) * 70_000
    hub.add("org/name", {**OWN, "model.safetensors": weights})
    begun, killed = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        killed.wait(30)

    # More than what the client writes at once.
    hub.fault("/cdn/*", cut=12_000_000)
    hub.fault("/cdn/*", before=hold)
    code = "from nanochat.zoo.hub import locate; print(locate('org/name').path)"

    process = in_process(hub, tmp_path, code)
    assert begun.wait(30)
    process.kill()
    process.communicate()
    killed.set()
    hub.requests.clear()
    said, errors = in_process(hub, tmp_path, code).communicate()

    assert (Path(said.strip()) / "model.safetensors").read_bytes() == weights, errors
    assert hub.asked("/cdn/*", "GET")[-1].range == "bytes=10485760-"


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
