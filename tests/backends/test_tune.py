"""The choice among kernels: measured once, kept on disk, never trusted blindly, and never of any weight for results."""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanochat.backends.numba import report
from nanochat.backends.numba.ops import NumbaOps
from nanochat.backends.numba.products import linear
from nanochat.backends.numba.products.packing import TiledLinear
from nanochat.backends.numba.runtime import compilation, isa
from nanochat.backends.numba.runtime.memory import WeightMemory
from nanochat.backends.numba.tuning import choices
from nanochat.backends.numba.tuning.choices import CLASSES, Choice, Finding, Key, Kind, Shape
from nanochat.backends.numba.tuning.tuner import (
    Tuner,
    candidates,
    default_choice,
    group,
    random_matrix,
)
from nanochat.errors import InputError
from tests.backends.leaves import normal

pytestmark = pytest.mark.usefixtures("all_cores")

FASTEST = isa.available()[0]
SMALL = Shape("ternary", 256, 512, 128)
# Just large enough to be measured by itself.
LARGE = Shape("ternary", 8192, 4096, 128)
COST = 1 / 150


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, since the user's must stay as it is, and none of the user's settings."""
    monkeypatch.setattr(compilation, "folder", lambda _kernel: tmp_path)
    monkeypatch.delenv("NANOCHAT_TUNE", raising=False)
    monkeypatch.delenv("NANOCHAT_ISA", raising=False)
    return tmp_path


@functools.cache
def matrix(shape: Shape) -> TiledLinear:
    return random_matrix(shape, weight_blocks=shape.columns // 256, memory=WeightMemory())


def key(rows: int = 256, *, isas: tuple[isa.Isa, ...] = (FASTEST,)) -> Key:
    return Key(shape=SMALL._replace(rows=rows), tokens=1, isas=isas, threads=2, size=20)


def finding(name: isa.Isa = FASTEST) -> Finding:
    choice = Choice(isa=name, variant=linear.VARIANTS[0], alone=False)
    return Finding(choice=choice, gops=12.5, next_best=None, next_gops=0.0)


def tuner(*, threads: int = 1, isas: tuple[isa.Isa, ...] = (FASTEST,)) -> Tuner:
    return Tuner(isas, threads=threads, cost=COST)


# Choices.


@pytest.mark.parametrize("tokens", CLASSES)
@pytest.mark.parametrize("kind", ["ternary", "int8"])
def test_every_choice_gives_the_same_bits(
    kind: Any, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ops = NumbaOps(num_threads=2)
    shape = Shape(kind, 259, 512, 128)
    leaf = random_matrix(shape, weight_blocks=2, memory=WeightMemory())
    x = normal(tokens, 512)
    ways = candidates(shape, tokens, isa.available(), threads=2, nanoseconds=10_000)

    results = []
    for way in ways:
        monkeypatch.setattr(ops.tuner, "choice", lambda _leaf, _tokens, way=way: way)
        results.append(ops.numpy(ops.project(x, leaf)[0]).view(np.int32))

    assert len(ways) >= 2 * len(isa.available())
    assert all(np.array_equal(y, results[0]) for y in results)


@pytest.mark.parametrize(
    ("is_intel", "kinds"), [(True, {"ternary", "table_trits", "int8"}), (False, {"table_trits"})]
)
def test_codes_are_asked_for_ahead_where_that_is_faster(
    is_intel: bool, kinds: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanochat.backends.numba.tuning.tuner.is_intel", lambda: is_intel)
    every: tuple[Kind, ...] = ("ternary", "table_trits", "int8")

    ahead = {
        k for k in every if default_choice(LARGE._replace(kind=k), 1, "avx2").variant > linear.AHEAD
    }

    assert ahead == kinds


@pytest.mark.parametrize("tokens", CLASSES)
@pytest.mark.parametrize("shape", [SMALL, SMALL._replace(kind="int8")], ids=str)
def test_the_default_is_a_candidate_and_none_comes_twice(shape: Shape, tokens: int) -> None:
    ways = candidates(shape, tokens, ("avxvnni", "avx2"), threads=8, nanoseconds=9000)

    assert ways[0] == default_choice(shape, tokens, "avxvnni")
    assert len(set(ways)) == len(ways)
    assert {way.variant for way in ways} <= set(linear.VARIANTS)


@pytest.mark.parametrize(
    ("nanoseconds", "threads", "expected"),
    [
        (1_000, 8, {False}),
        (10_000, 1, {False}),
        (10_000, 8, {False, True}),
        (1_000_000, 8, {False}),
    ],
)
def test_only_a_short_product_may_stay_on_one_thread(
    nanoseconds: float, threads: int, expected: set[bool]
) -> None:
    ways = candidates(SMALL, 1, (FASTEST,), threads=threads, nanoseconds=nanoseconds)

    assert {way.alone for way in ways} == expected


@pytest.mark.parametrize(
    ("tokens", "expected"), [(0, 1), (1, 1), (3, 3), (15, 4), (16, 16), (63, 16), (9999, 64)]
)
def test_a_class_stands_for_all_up_to_the_next(tokens: int, expected: int) -> None:
    assert group(tokens) == expected


@pytest.mark.parametrize("name", isa.available())
def test_a_forced_instruction_set_has_no_rival(
    name: isa.Isa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_ISA", name)
    ops = NumbaOps()
    ops.tuner.adopt([matrix(LARGE)])

    assert isa.rivals() == (name,)
    assert ops.tuner.choice(matrix(LARGE), 1).isa == name


def test_what_was_measured_for_one_instruction_set_is_not_used_for_another() -> None:
    first = tuner(isas=("portable",))
    first.adopt([matrix(LARGE)])
    first.choice(matrix(LARGE), 4)

    second = tuner()
    second.adopt([matrix(LARGE)])

    assert second.choice(matrix(LARGE), 4).isa == FASTEST


# Measuring.


def test_a_large_model_is_measured_once_and_never_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    first, second = tuner(), tuner()
    for each in (first, second):
        each.adopt([matrix(LARGE)])

    chosen = first.choice(matrix(LARGE), 1), first.choice(matrix(LARGE), 1)
    again = second.choice(matrix(LARGE), 1)

    assert chosen == (again, again)
    assert [r.message.split(" in ")[0] for r in caplog.records if "measured" in r.message] == [
        "measured products of 1 shapes for 1 tokens at once"
    ]
    assert [each.shape for each in choices.load()] == [LARGE]


def test_a_kept_choice_is_taken(folder: Path) -> None:
    first = tuner()
    first.adopt([matrix(LARGE)])
    first.choice(matrix(LARGE), 1)
    (kept_key, kept), *_ = choices.load().items()
    other = dataclasses.replace(kept.choice, variant=4)
    choices.keep({kept_key: dataclasses.replace(kept, choice=other)})

    second = tuner()
    second.adopt([matrix(LARGE)])

    assert second.choice(matrix(LARGE), 1) == other
    assert len(list(folder.iterdir())) == 1


def test_a_small_model_is_not_measured() -> None:
    found = tuner(isas=isa.available())
    found.adopt([matrix(SMALL)] * 20)

    assert found.choice(matrix(SMALL), 1) == default_choice(SMALL, 1, FASTEST)
    assert choices.load() == {}


def test_what_has_no_alternative_is_not_measured() -> None:
    found = tuner()
    found.adopt([matrix(LARGE)])

    found.choice(matrix(LARGE), 64)

    assert choices.load() == {}


def test_a_matrix_of_another_model_gets_the_default() -> None:
    found = tuner()
    found.adopt([matrix(LARGE)])

    assert found.choice(matrix(SMALL), 1) == default_choice(SMALL, 1, FASTEST)


def test_matrices_are_not_kept_alive_and_may_be_gone_when_measured() -> None:
    found = tuner()
    found.adopt([random_matrix(LARGE, weight_blocks=16, memory=WeightMemory()) for _ in range(2)])

    assert found.choice(matrix(LARGE), 1) == default_choice(LARGE, 1, FASTEST)
    assert choices.load() == {}


def test_threads_that_ask_at_once_all_get_a_choice() -> None:
    found = tuner()
    found.adopt([matrix(LARGE)])

    with ThreadPoolExecutor(4) as pool:
        chosen = list(pool.map(lambda _: found.choice(matrix(LARGE), 1), range(8)))

    assert {choice.isa for choice in chosen} == {FASTEST}


def test_measuring_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("NANOCHAT_TUNE", "off")
    found = tuner()
    found.adopt([matrix(LARGE)])

    assert found.choice(matrix(LARGE), 1) == default_choice(LARGE, 1, FASTEST)
    assert list(folder.iterdir()) == []


def test_an_unknown_switch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_TUNE", "maybe")

    with pytest.raises(InputError, match="NANOCHAT_TUNE='maybe': choose on"):
        NumbaOps()


# The file.


def test_what_is_kept_is_read_back() -> None:
    found = {key(): finding(), key(512): dataclasses.replace(finding(), next_best=finding().choice)}

    choices.keep(found)

    assert choices.load() == found


def test_a_writer_keeps_what_others_found() -> None:
    choices.keep({key(256): finding()})

    choices.keep({key(512): finding()})

    assert {each.shape.rows for each in choices.load()} == {256, 512}


def test_writers_at_once_leave_a_file_that_can_be_read(folder: Path) -> None:
    keys = [key(32 * i) for i in range(1, 13)]

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda each: choices.keep({each: finding()}), keys))

    kept = choices.load()
    assert kept
    assert set(kept) <= set(keys)
    assert len(list(folder.iterdir())) == 1


def changed(**values: object) -> Callable[[dict[str, Any]], object]:
    """A change of the first record, by the names of its fields and of what they hold."""

    def change(content: dict[str, Any]) -> object:
        record = content["choices"][0]
        for name, value in values.items():
            outer, _, inner = name.partition("__")
            target = record[outer] if inner else record
            target[inner or outer] = value
        return content

    return change


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: {**content, "kernels": "0" * 64}, id="other kernels"),
        pytest.param(lambda content: {**content, "more": 1}, id="other form"),
        pytest.param(lambda content: {**content, "choices": {}}, id="no list"),
        pytest.param(lambda content: {**content, "choices": [None]}, id="no record"),
        pytest.param(lambda _: [], id="no object"),
        pytest.param(changed(more=1), id="a field more"),
        pytest.param(changed(choice=None), id="no choice"),
        pytest.param(changed(choice__isa="avx3"), id="unknown instructions"),
        pytest.param(changed(choice__isa=[]), id="instructions of another type"),
        pytest.param(changed(choice__variant=3), id="unknown variant"),
        pytest.param(changed(choice__variant=True), id="a variant that is no number"),
        pytest.param(changed(choice__alone=0), id="alone is no bool"),
        pytest.param(changed(tokens=5), id="no class"),
        pytest.param(changed(isas=[]), id="chosen among nothing"),
        pytest.param(changed(isas=["avx3", FASTEST]), id="chosen among unknown"),
        pytest.param(changed(gops=float("nan")), id="not a number"),
        pytest.param(changed(gops="12"), id="text"),
        pytest.param(changed(shape__rows=None), id="no rows"),
        pytest.param(changed(shape__kind="quaternary"), id="unknown kind"),
    ],
)
def test_a_file_that_would_not_be_written_is_not_used_and_replaced(
    damage: Callable[[dict[str, Any]], object], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = choices.keep({key(): finding()})
    assert path is not None
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))

    found = choices.load()
    choices.keep({key(512): finding()})

    assert found == {}
    assert "measured anew" in caplog.text
    assert choices.load() == {key(512): finding()}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"0" * 2**23], ids=len)
def test_a_file_that_is_no_json_is_not_used_and_replaced(content: bytes) -> None:
    path = choices.keep({key(): finding()})
    assert path is not None
    path.write_bytes(content)

    found = choices.load()
    choices.keep({key(): finding()})

    assert found == {}
    assert choices.load() == {key(): finding()}


def test_a_folder_in_place_of_the_file_is_no_obstacle() -> None:
    path = choices.path()
    assert path is not None
    path.mkdir()

    assert choices.load() == {}
    assert choices.keep({key(): finding()}) is None


def test_without_a_folder_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "folder", lambda _kernel: None)

    assert choices.keep({key(): finding()}) is None
    assert (choices.load(), choices.path(), choices.clear()) == ({}, None, 0)


def test_clearing_removes_what_all_processors_found_and_nothing_else(folder: Path) -> None:
    choices.keep({key(): finding()})
    (folder / "choices.0123456789abcdef.json").touch()
    (folder / "other.kernel").touch()

    assert choices.clear() == 2
    assert [path.name for path in folder.iterdir()] == ["other.kernel"]


# The report.


@pytest.mark.parametrize(
    ("text", "expected"),
    [("always [madvise] never\n", "madvise"), ("always", "unknown"), (None, "unknown")],
)
def test_huge_pages_are_what_linux_says(tmp_path: Path, text: str | None, expected: str) -> None:
    path = tmp_path / "enabled"
    if text is not None:
        path.write_text(text)

    assert report.huge_pages(path) == expected


def test_slow_threads_are_reported_with_reason_and_fix() -> None:
    assert report.threads_warning(5.0, 8) == ""
    assert "costs 120 microseconds" in report.threads_warning(120.0, 8)
    assert "pass --threads 4" in report.threads_warning(120.0, 8)


def test_the_report_tells_where_files_lie(folder: Path) -> None:
    choices.keep({key(): finding()})

    found = report.report()

    assert (found.kernels, found.kernels_writable) == (str(folder), True)
    assert (found.choices, found.num_choices) == (str(choices.path()), 1)
    assert (found.isa, found.available) == (FASTEST, isa.available())


def test_a_matrix_in_the_place_of_another_is_chosen_for_without_measuring_again() -> None:
    old, new = (random_matrix(SMALL, weight_blocks=2, memory=WeightMemory()) for _ in range(2))
    tuner = Tuner([FASTEST], threads=2, cost=COST)
    tuner.adopt([matrix(SMALL), old])

    tuner.replace(old, new)

    assert [get() for _, get in tuner._matrices] == [matrix(SMALL), new]
