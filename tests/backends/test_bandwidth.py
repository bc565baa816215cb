"""How fast memory is read is measured once, kept on disk, and never trusted blindly."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat.backends.host import num_cores
from nanochat.backends.numba.runtime import compilation
from nanochat.backends.numba.runtime.isa import chosen
from nanochat.backends.numba.tuning import bandwidth, choices
from nanochat.backends.numba.tuning.bandwidth import Bandwidth, known, measure, path

pytestmark = pytest.mark.usefixtures("all_cores")

SIZE = 2**22
RECORD = {
    "isa": "",
    "threads": 0,
    "read": 2e10,
    "weights": 1e10,
    "attention": 5e10,
    "int4_attention": 4e10,
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and none of the user's settings."""
    monkeypatch.setattr(compilation, "folder", lambda _kernel: tmp_path)
    monkeypatch.delenv("NANOCHAT_ISA", raising=False)
    return tmp_path


def write(**changes: object) -> None:
    file = path()
    assert file is not None
    record = {**RECORD, "kernels": choices.kernels(), "isa": chosen(), "threads": num_cores()}
    file.write_text(json.dumps({**record, **changes}))


def test_what_was_measured_is_known_to_the_next_process(folder: Path) -> None:
    assert known() is None

    found = measure(SIZE)

    assert known() == found
    assert found.threads == num_cores()
    # No memory is read faster than the first cache, and none slower than a disk.
    assert 1e8 < found.weights < 1e13
    assert 1e8 < found.read < 1e13
    # Nor computed at less than an operation in ten clocks, or more than all that a core can.
    assert 1e8 < found.attention < 1e12 * num_cores()
    assert 1e8 < found.int4_attention < 1e12 * num_cores()
    assert path() in list(folder.iterdir())


def test_nothing_that_attention_looks_at_is_so_small_that_it_takes_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[NDArray[np.generic]] = []
    monkeypatch.setattr(
        bandwidth, "Call", lambda _kernel, arrays, **_told: seen.extend(arrays[1:5])
    )
    monkeypatch.setattr(bandwidth, "_seconds", lambda _calls, _threads: 1.0)

    bandwidth._attention("int4", SIZE, 1)

    scales = [array.astype(np.uint32) << 16 for array in seen if array.dtype == np.uint16]
    assert scales
    assert all(np.all(bits.view(np.float32) == 1) for bits in scales)


def test_the_sum_is_of_every_word() -> None:
    words = np.random.default_rng(0).integers(-(2**62), 2**62, 3 * 2**15 + 7)
    sums = np.zeros(4, np.int64)

    bandwidth._sum_words(words, sums, 0, 4)

    assert sums.sum() == words.sum()


def test_the_fastest_is_kept_for_others_only_slow_it_down() -> None:
    write(read=1e15, weights=1.0)

    found = measure(SIZE)

    assert found.read == 1e15
    assert found.weights > 1e6
    assert known() == found


@pytest.mark.parametrize(
    "changes",
    [
        {"kernels": "other"},
        {"isa": "other"},
        {"threads": 99},
        {"read": 0.0},
        {"weights": -1.0},
        {"read": float("nan")},
        {"attention": -1.0},
        {"int4_attention": 0.0},
        {"weights": float("inf")},
        {"read": "fast"},
        {"read": None},
    ],
    ids=str,
)
def test_what_is_not_of_this_machine_or_no_speed_is_not_known(changes: dict[str, object]) -> None:
    write()
    speeds = {"read": 2e10, "weights": 1e10, "attention": 5e10, "int4_attention": 4e10}
    assert known() == Bandwidth(isa=chosen(), threads=num_cores(), **speeds)

    write(**changes)

    assert known() is None


@pytest.mark.parametrize("data", [b"", b"\0", b"[]", b"{}", b"x" * 5000])
def test_a_damaged_file_is_not_believed(data: bytes) -> None:
    file = path()
    assert file is not None
    file.write_bytes(data)

    assert known() is None


@pytest.mark.parametrize("place", [lambda _kernel: None, lambda _kernel: Path("/proc/no")])
def test_without_a_folder_it_is_measured_all_the_same(
    monkeypatch: pytest.MonkeyPatch, place: Callable[[object], Path | None]
) -> None:
    monkeypatch.setattr(compilation, "folder", place)

    found = measure(SIZE)

    assert dataclasses.astuple(found)[2:] > (0, 0)
    assert known() is None
