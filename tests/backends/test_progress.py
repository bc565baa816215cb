"""What is said about compiling: when, of what, and in which order."""

import logging
import time
from collections.abc import Iterator
from typing import Any

import numba
import pytest
from numba.core.errors import TypingError
from numba.core.event import Event, EventStatus, register, unregister

from nanochat.backends.numba.runtime.compilation import Progress

# Its types know no functions in parameters.
njit: Any = numba.njit


def successor(number: int) -> int:
    return number + 1


def impossible(number: int) -> int:
    return number + "one"  # type: ignore[operator]  # Numba's compiler shall refuse it


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nanochat")


@pytest.fixture
def progress() -> Iterator[Progress]:
    yield from listening(Progress(successor.__module__, instant=0))


@pytest.fixture
def patient() -> Iterator[Progress]:
    yield from listening(Progress(successor.__module__, instant=1000))


@pytest.fixture
def foreign() -> Iterator[Progress]:
    yield from listening(Progress("another.package", instant=0))


def listening(progress: Progress) -> Iterator[Progress]:
    register("numba:compile", progress)  # type: ignore[no-untyped-call]  # Numba has no types there
    yield progress
    unregister("numba:compile", progress)  # type: ignore[no-untyped-call]  # the same


def test_a_wait_begins_before_the_first_kernel_and_ends_when_told(
    progress: Progress, caplog: pytest.LogCaptureFixture
) -> None:
    njit(successor)(1)
    before = [vars(record)["progress"] for record in caplog.records]
    njit(successor)(1)
    progress.end_wait()

    assert before == ["begin"]
    assert [vars(record)["progress"] for record in caplog.records] == ["begin", "end"]
    assert caplog.messages[1].startswith("compiled 2 kernels in ")


def test_one_slow_kernel_is_announced_while_it_is_compiled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    progress = Progress(successor.__module__, instant=0.01)
    event: Any = Event("numba:compile", EventStatus.START, data={"dispatcher": njit(successor)})  # type: ignore[no-untyped-call]

    progress.on_start(event)
    deadline = time.monotonic() + 10
    while not caplog.records and time.monotonic() < deadline:
        time.sleep(0.01)
    said = [vars(record)["progress"] for record in caplog.records]
    progress.on_end(event)

    assert said == ["begin"]


def test_who_looks_at_no_logs_is_told_once(
    progress: Progress, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        njit(successor)(1)
        progress.end_wait()

    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "INFO", "INFO"]


def test_a_wait_that_has_ended_ends_once(
    progress: Progress, caplog: pytest.LogCaptureFixture
) -> None:
    njit(successor)(1)
    progress.end_wait()
    progress.end_wait()

    assert len(caplog.records) == 2


def test_what_a_kernel_calls_is_part_of_it(
    progress: Progress, caplog: pytest.LogCaptureFixture
) -> None:
    inner = njit(successor)

    njit(lambda number: inner(number) + 1)(1)
    progress.end_wait()

    assert caplog.messages[1].startswith("compiled 1 kernel in ")


def test_an_instant_is_not_worth_a_word(
    patient: Progress, caplog: pytest.LogCaptureFixture
) -> None:
    njit(successor)(1)
    patient.end_wait()

    assert not caplog.records


def test_a_call_of_a_compiled_kernel_is_no_wait(
    progress: Progress, caplog: pytest.LogCaptureFixture
) -> None:
    compiled = njit(successor)
    compiled(1)
    progress.end_wait()
    caplog.clear()

    compiled(2)
    progress.end_wait()

    assert not caplog.records


def test_what_other_packages_compile_is_not_ours(
    foreign: Progress, caplog: pytest.LogCaptureFixture
) -> None:
    njit(successor)(1)
    foreign.end_wait()

    assert not caplog.records


def test_a_kernel_that_cannot_be_compiled_ends_its_wait(
    progress: Progress, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TypingError):
        njit(impossible)(1)
    progress.end_wait()

    assert [vars(record)["progress"] for record in caplog.records] == ["begin", "end"]
