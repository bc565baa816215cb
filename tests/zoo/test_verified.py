"""A file that was read once is known again, and no file that may be another one is taken for it."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nanochat
from nanochat import files
from nanochat.errors import FormatError
from nanochat.export.directory import save_model
from nanochat.files import record_file
from nanochat.zoo import checking, hub, verified
from nanochat.zoo.entries import Entry
from nanochat.zoo.hub import locate, opened
from nanochat.zoo.verified import NAME, VerifiedFiles
from tests.parity.random_models import random_bundle
from tests.zoo.hub_client import HubClient

DATA = bytes(range(256)) * 400


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were hashed."""
    names: list[str] = []

    def record(path: Path) -> object:
        names.append(path.resolve().name)
        return record_file(path)

    monkeypatch.setattr(verified, "record_file", record)
    return names


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "x.bin").write_bytes(DATA)
    return tmp_path / "x.bin"


def record_and_save(file: Path, **options: Any) -> str:
    known = VerifiedFiles(file.parent, **options)
    found = known.record(file)
    known.save()
    assert found == record_file(file)
    return found.sha256


def test_a_file_is_read_once(file: Path, read: list[str]) -> None:
    first = record_and_save(file)
    second = record_and_save(file)

    assert first == second
    assert read == ["x.bin"]
    assert VerifiedFiles(file.parent).is_known(file)


def test_whoever_asks_for_it_has_it_read_again(file: Path, read: list[str]) -> None:
    record_and_save(file)
    record_and_save(file, verify=True)

    assert read == ["x.bin"] * 2


def _rewrite(file: Path) -> None:
    file.write_bytes(b"other" + DATA[5:])


def _touch(file: Path) -> None:
    os.utime(file)


def _append(file: Path) -> None:
    with file.open("ab") as output:
        output.write(b"x")


def _replace(file: Path) -> None:
    status = file.stat()
    file.with_name("y").write_bytes(DATA)
    os.utime(file.with_name("y"), ns=(status.st_atime_ns, status.st_mtime_ns))
    file.with_name("y").replace(file)


def _rewrite_with_the_same_times(file: Path) -> None:
    status = file.stat()
    _rewrite(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "change", [_rewrite, _touch, _append, _replace, _rewrite_with_the_same_times]
)
def test_a_file_that_may_be_another_is_read(
    file: Path, read: list[str], change: Callable[[Path], None]
) -> None:
    record_and_save(file)

    change(file)
    record_and_save(file)

    assert read == ["x.bin"] * 2


def test_the_next_change_of_a_file_gets_another_time(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)

    os.utime(file)
    VerifiedFiles(file.parent).record(file)
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 10)
    VerifiedFiles(file.parent).record(file)

    assert waits == [verified._TICK]


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(path: Path) -> object:
        found = record_file(path)
        _rewrite(path)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(verified, "record_file", record)
        known = VerifiedFiles(file.parent)
        known.record(file)
        known.save()

    assert not VerifiedFiles(file.parent).is_known(file)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"x": 1}', b"x" * 2**20 + b"x"])
def test_a_memory_that_is_damaged_is_none(file: Path, read: list[str], data: bytes) -> None:
    (file.parent / NAME).write_bytes(data)

    record_and_save(file)
    record_and_save(file)

    assert read == ["x.bin"]


def test_what_two_processes_have_read_is_known(file: Path) -> None:
    other = file.with_name("z.bin")
    other.write_bytes(b"z")
    first, second = VerifiedFiles(file.parent), VerifiedFiles(file.parent)

    first.record(file)
    second.record(other)
    first.save()
    second.save()

    assert VerifiedFiles(file.parent).is_known(file)
    assert VerifiedFiles(file.parent).is_known(other)


def test_what_is_gone_is_forgotten(file: Path) -> None:
    other = file.with_name("z.bin")
    other.write_bytes(b"z")
    record_and_save(other)
    other.unlink()

    record_and_save(file)

    assert "z.bin" not in (file.parent / NAME).read_text()


# Models of the Hub.


@pytest.fixture
def at_hub(client: HubClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubClient:
    """A Hub with a model, of which every file is a large one."""
    save_model(tmp_path / "model", random_bundle())
    client.hub.add("org/name", {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()})
    monkeypatch.setattr(checking, "LARGE_BYTES", 1)
    return client


@pytest.mark.usefixtures("at_hub")
def test_a_model_is_read_once_for_its_hashes(read: list[str]) -> None:
    locate("org/name")
    count = len(read)

    locate("org/name")
    locate("org/name", local_files_only=True)

    assert count > 4
    assert len(read) == count


def test_a_pinned_model_is_read_no_more_often(
    at_hub: HubClient, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = {p.name: record_file(p) for p in (tmp_path / "model").iterdir()}
    entry = Entry(
        name="x",
        repo="org/name",
        description="x",
        licence="MIT",
        revision=at_hub.hub.repos["org/name"].branches["main"],
        files=records,
    )
    monkeypatch.setattr(hub, "CATALOG", {"x": entry})
    again: list[str] = []

    def record(path: Path) -> object:
        again.append(path.name)
        return record_file(path)

    monkeypatch.setattr(files, "record_file", record)

    locate("x")

    assert read.count(records["model.safetensors"].sha256) == 1
    assert "model.safetensors" not in again


@pytest.mark.usefixtures("at_hub")
def test_verify_reads_it_again(read: list[str]) -> None:
    locate("org/name")
    count = len(read)

    locate("org/name", verify=True)

    assert len(read) == 2 * count


@pytest.mark.usefixtures("at_hub")
def test_damage_that_shows_in_nothing_is_found_by_verify(read: list[str]) -> None:
    path = (locate("org/name").path / "model.safetensors").resolve()
    whole = path.read_bytes()
    path.write_bytes(b"\0" * len(whole))
    # As if the disk had done it.
    known = VerifiedFiles(path.parents[1])
    known._new[verified._key(path)] = {
        **vars(verified._Identity.of(path)),
        "sha256": path.name,
    }
    known.save()
    read.clear()

    assert (locate("org/name").path / "model.safetensors").read_bytes() != whole
    assert (locate("org/name", verify=True).path / "model.safetensors").read_bytes() == whole


def forget(folder: Path) -> None:
    (folder / NAME).unlink()


def test_a_model_is_loaded_while_its_files_are_read(
    at_hub: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(locate("org/name").path.parents[1])
    main, threads = threading.current_thread(), set()
    loaded = threading.Event()

    def record(path: Path) -> object:
        # Whoever has to wait for the hashes first would wait for ever.
        assert loaded.wait(20)
        threads.add(threading.current_thread())
        return record_file(path)

    def open_(_location: object) -> str:
        loaded.set()
        return "made"

    monkeypatch.setattr(verified, "record_file", record)
    del at_hub

    assert opened("org/name", open_) == "made"
    assert threads
    assert main not in threads


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    # In the numbers, where nothing but a hash finds it.
    data[-1000] ^= 0xFF
    path.write_bytes(bytes(data))


def test_what_is_damaged_is_not_given_back_but_fetched_again(at_hub: HubClient) -> None:
    path = (locate("org/name").path / "model.safetensors").resolve()
    whole = path.read_bytes()
    damage(path)
    opened_times = []

    def open_(location: Any) -> bytes:
        opened_times.append(time.monotonic())
        return bytes((location.path / "model.safetensors").read_bytes())

    assert opened("org/name", open_) == whole
    assert len(opened_times) == 2
    del at_hub


def test_what_cannot_be_opened_because_it_is_damaged_is_fetched_again(at_hub: HubClient) -> None:
    path = (locate("org/name").path / "model.safetensors").resolve()
    damage(path)
    del at_hub

    model = nanochat.from_pretrained("org/name", backend="reference")

    assert model.config == random_bundle().config
    model.close()


def test_damage_may_end_in_any_error(at_hub: HubClient) -> None:
    path = (locate("org/name").path / "model.safetensors").resolve()
    whole = path.read_bytes()
    damage(path)
    del at_hub

    def open_(location: Any) -> str:
        if (location.path / "model.safetensors").read_bytes() != whole:
            raise ZeroDivisionError
        return "made"

    assert opened("org/name", open_) == "made"


def test_offline_what_is_damaged_is_refused(at_hub: HubClient) -> None:
    path = (locate("org/name").path / "model.safetensors").resolve()
    damage(path)
    at_hub.set_offline()

    with pytest.raises(FormatError, match="not what the Hub's record says, so it is damaged"):
        opened("org/name", lambda location: location)


@pytest.mark.usefixtures("at_hub")
def test_an_error_that_is_nobody_s_damage_is_passed_on() -> None:
    def open_(_location: object) -> None:
        raise FormatError("of its own")

    with pytest.raises(FormatError, match="of its own"):
        opened("org/name", open_)
