"""A staged folder becomes one commit, or nothing changes and the user is told what to do."""

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import CommitInfo

from nanochat.errors import InputError, SaveError
from nanochat.publish.options import PushOptions
from nanochat.publish.upload import (
    Present,
    read_present,
    require_login,
    upload,
)
from tests.zoo.hub_client import HubClient
from tests.zoo.hub_state import FOREVER, Hub

REPO = "org/name"
HERE = PushOptions()
OLD = {
    "README.md": b"# old\n",
    "nanochat.json": b"{}",
    "onnx/nanochat.json": b"{}",
    "old.bin": b"o",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file of each kind: regular, large, and in a folder."""
    path = tmp_path / "staged"
    (path / "inner").mkdir(parents=True)
    (path / "README.md").write_text("# new\n")
    (path / "model.safetensors").write_bytes(b"\0" * 1000)
    (path / "inner" / "x[1].js").write_text("page")
    return path


def push(folder: Path, options: PushOptions = HERE, *, delete: tuple[str, ...] = ()) -> CommitInfo:
    require_login(REPO, options)
    present = read_present(REPO, options)
    return upload(folder, REPO, options, present=present, delete=delete)


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_new_repository_gets_the_folder_in_one_commit(
    hub: Hub, hub_client: HubClient, folder: Path
) -> None:
    del hub_client

    uploaded = push(folder, replace(HERE, private=True, message="My model"))

    assert sorted(hub.files(REPO)) == sorted([".gitattributes", *names(folder)])
    assert hub.subjects(REPO)[0] == "My model"
    assert len(hub.subjects(REPO)) == 2
    assert hub.repos[REPO].private
    assert uploaded.commit_url.startswith(f"{hub.url}/{REPO}/commit/")


def test_what_is_there_is_read_and_nothing_of_it_stays_on_this_disk(
    hub: Hub, hub_client: HubClient
) -> None:
    hub.add(REPO, OLD)

    present = read_present(REPO, HERE)

    assert present.card == b"# old\n"
    assert sorted(present.manifests) == ["nanochat.json", "onnx/nanochat.json"]
    assert set(OLD) <= set(present.files)
    assert not [p for p in hub_client.home.rglob("*") if p.is_file()]


def test_other_files_stay_and_those_that_are_named_go_in_the_same_commit(
    hub: Hub, hub_client: HubClient, folder: Path
) -> None:
    del hub_client
    hub.add(REPO, {**OLD, "x[1].bin": b"1", "x1.bin": b"2"})

    push(folder, delete=("x[1].bin",))

    assert sorted(hub.files(REPO)) == sorted({*OLD, "x1.bin", *names(folder)})
    assert len(hub.subjects(REPO)) == 2


def test_a_branch_is_made_and_main_stays(hub: Hub, hub_client: HubClient, folder: Path) -> None:
    del hub_client
    hub.add(REPO, OLD)

    push(folder, replace(HERE, branch="next"))
    push(folder, replace(HERE, branch="next"))

    assert hub.files(REPO) == OLD
    assert set(names(folder)) <= set(hub.files(REPO, "next"))


def test_a_branch_of_a_new_repository_is_made(
    hub: Hub, hub_client: HubClient, folder: Path
) -> None:
    del hub_client

    push(folder, replace(HERE, branch="next"))

    assert list(hub.files(REPO)) == [".gitattributes"]
    assert set(names(folder)) <= set(hub.files(REPO, "next"))


def test_a_pull_request_leaves_main_as_it_is(hub: Hub, hub_client: HubClient, folder: Path) -> None:
    hub.add(REPO, OLD)
    # Whoever may not write may still propose.
    hub_client.set_token(hub.reader)

    uploaded = push(folder, replace(HERE, create_pr=True))

    assert uploaded.pr_url == f"{hub.url}/{REPO}/discussions/1"
    assert hub.files(REPO) == OLD
    assert set(names(folder)) <= set(hub.files(REPO, "refs/pr/1"))


def test_a_pull_request_needs_a_repository(hub: Hub, hub_client: HubClient, folder: Path) -> None:
    del hub_client

    with pytest.raises(InputError, match=r"no org/name .*leave create_pr out"):
        push(folder, replace(HERE, create_pr=True))

    assert not hub.repos


def test_a_change_by_somebody_else_meanwhile_is_not_overwritten(
    hub: Hub, hub_client: HubClient, folder: Path
) -> None:
    del hub_client
    hub.add(REPO, OLD)
    present = read_present(REPO, HERE)
    hub.commit(REPO, {"README.md": b"# theirs\n"})

    with pytest.raises(SaveError, match="changed by somebody else meanwhile; push again"):
        upload(folder, REPO, HERE, present=present)

    assert hub.files(REPO) == {**OLD, "README.md": b"# theirs\n"}


def test_visibility_of_a_repository_that_is_there_stays(
    hub: Hub, hub_client: HubClient, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    del hub_client
    hub.add(REPO, OLD)

    push(folder, replace(HERE, private=True))

    assert not hub.repos[REPO].private
    assert "stays public" in caplog.text


@pytest.mark.parametrize("given", ["hf_wrong", "reader", ""])
def test_a_token_that_cannot_write_is_refused_before_anything_else(
    hub: Hub, hub_client: HubClient, folder: Path, given: str
) -> None:
    hub_client.set_token(hub.reader if given == "reader" else given)

    with pytest.raises(SaveError, match="hf auth login") as refusal:
        push(folder)

    assert not hub.repos
    assert "hf_" not in str(refusal.value)


STEPS = {
    "whoami": ("/api/whoami-v2", "GET"),
    "info": (f"/api/models/{REPO}", "GET"),
    "branch's info": (f"/api/models/{REPO}/revision/*", "GET"),
    "card": (f"/{REPO}/resolve/*README.md", "HEAD"),
    "branch": (f"/api/models/{REPO}/branch/*", "POST"),
    "tree": (f"/api/models/{REPO}/tree/*", "GET"),
    "yaml": ("/api/validate-yaml", "POST"),
    "modes": (f"/api/models/{REPO}/preupload/*", "POST"),
    "batch": (f"/{REPO}.git/info/lfs/objects/batch", "POST"),
    "bytes": (f"/upload/{REPO}/*", "PUT"),
    "commit": (f"/api/models/{REPO}/commit/*", "POST"),
}
FIXES = {401: "hf auth login", 403: "hf auth login", 429: "some minutes", 500: "later"}


@pytest.mark.parametrize("status", FIXES)
@pytest.mark.parametrize("step", STEPS)
def test_a_refusal_at_any_step_changes_nothing_and_says_what_to_do(
    hub: Hub, hub_client: HubClient, folder: Path, step: str, status: int
) -> None:
    del hub_client
    hub.add(REPO, OLD)
    path, method = STEPS[step]
    fault = hub.fault(path, method=method, status=status, times=FOREVER, message=f"no {hub.token}")
    before = {name: (folder / name).read_bytes() for name in names(folder)}

    with pytest.raises(SaveError, match=FIXES[status]) as refusal:
        push(folder, replace(HERE, branch="next", token=hub.token), delete=("old.bin",))

    assert fault.hits
    assert hub.files(REPO) == OLD
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before
    assert hub.token not in str(refusal.value)


def test_a_repository_that_was_made_in_vain_is_told_of(
    hub: Hub, hub_client: HubClient, folder: Path
) -> None:
    del hub_client
    hub.fault("*/commit/*", method="POST", status=500, times=FOREVER)

    with pytest.raises(SaveError, match="org/name was made, and is empty"):
        push(folder)


@pytest.mark.parametrize(
    ("status", "fix"),
    [(409, "choose another"), (404, "check the name"), (413, "less"), (400, "correct")],
)
def test_other_refusals_are_in_words(
    hub: Hub, hub_client: HubClient, folder: Path, status: int, fix: str
) -> None:
    del hub_client
    hub.add(REPO, OLD)
    hub.fault("*/commit/*", method="POST", status=status, times=FOREVER)

    with pytest.raises(SaveError, match=fix):
        push(folder)

    assert hub.files(REPO) == OLD


@pytest.mark.parametrize("step", ["whoami", "modes", "commit"])
def test_a_cut_connection_is_no_traceback(
    hub: Hub, hub_client: HubClient, folder: Path, step: str
) -> None:
    del hub_client
    hub.add(REPO, OLD)
    path, method = STEPS[step]
    hub.fault(path, method=method, cut=3, times=FOREVER)

    with pytest.raises(SaveError, match="check the network and HF_ENDPOINT"):
        push(folder)


def test_offline_is_said(hub: Hub, hub_client: HubClient, folder: Path) -> None:
    del hub
    hub_client.set_offline()

    with pytest.raises(SaveError, match="unset it"):
        push(folder)


@pytest.mark.parametrize("token", ["", " \n", "hf_se\ncret", "hf_se cret", "hf_sécret"])
def test_what_is_no_token_is_refused_in_one_line_without_it(token: str) -> None:
    with pytest.raises(InputError, match="the token is empty, or holds") as refusal:
        require_login(REPO, PushOptions(token=token))

    assert "cret" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_token_may_end_with_the_line_of_its_file(
    hub: Hub, hub_client: HubClient, folder: Path
) -> None:
    hub_client.set_token("")

    push(folder, replace(HERE, token=f"{hub.token}\n"))

    assert set(names(folder)) <= set(hub.files(REPO))


def test_a_token_is_masked_however_a_library_repeats_it(
    hub: Hub, hub_client: HubClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del hub, hub_client

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Illegal header value b'Bearer hf_other\\n', not hf_se\\cret")

    monkeypatch.setattr("huggingface_hub.HfApi.whoami", refuse)
    with pytest.raises(SaveError, match=r"\*\*\*") as refusal:
        push(folder, replace(HERE, token="hf_se\\cret"))

    assert "hf_" not in str(refusal.value)


def test_a_token_is_not_shown_with_its_destination() -> None:
    assert "hf_secret" not in repr(PushOptions(token="hf_secret"))


def test_nothing_is_there_before_the_first_push(hub: Hub, hub_client: HubClient) -> None:
    del hub, hub_client

    assert read_present(REPO, HERE) == Present()
