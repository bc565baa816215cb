"""What goes wrong on the way, or is hostile, is said and opens nothing; the real client, a Hub on loopback."""

import dataclasses
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import huggingface_hub._tree_cache
import pytest

from nanochat.errors import FormatError, InputError, ModelNotFoundError, SaveError
from nanochat.zoo import download
from nanochat.zoo.candidates import Request
from nanochat.zoo.hub import locate
from tests.zoo.downloads import OWN, WEIGHTS, fetched_names
from tests.zoo.hub_client import HubClient
from tests.zoo.hub_state import FOREVER, Hub

pytestmark = pytest.mark.usefixtures("client")


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
    "gone": Refusal(404, "RepoNotFound", "no directory or file here, and no model at http"),
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

    with pytest.raises(FormatError, match="damaged: unset HF_HUB_OFFLINE, connect"):
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


@pytest.mark.parametrize("refusal", ["forbidden", "gated", "gone", "too many"])
def test_what_was_fetched_before_a_refusal_is_said_to_be_here_and_opens(
    refusal: str, repo: Hub, client: HubClient
) -> None:
    online = locate("org/name")
    answer = REFUSALS[refusal]
    repo.fault("/api/models/*", times=FOREVER, status=answer.status, code=answer.code)

    with pytest.raises(ModelNotFoundError, match=answer.message) as raised:
        locate("org/name")
    assert str(raised.value).endswith(
        "a copy that was fetched before is here: HF_HUB_OFFLINE=1, or local_files_only, opens it"
    )

    assert locate("org/name", local_files_only=True) == online
    client.set_offline()
    assert locate("org/name") == online


def test_offline_the_switch_is_named(client: HubClient) -> None:
    client.set_offline()

    with pytest.raises(ModelNotFoundError, match="unset HF_HUB_OFFLINE, connect and try again"):
        locate("org/name")
