"""A run that goes on where its sums have another order says so."""

import shutil
from pathlib import Path

import pytest
import torch

from nanochat.training.loop import Trainer
from nanochat.training.machine import machine, warn_of_changes
from tests.training.runs import command, options, recipe

NOW = machine(torch.device("cpu"), compiled=False)


def go_on(data: Path, run: Path, start: Path | None, num_threads: int) -> Trainer:
    return Trainer(recipe(), data, run, start=start, num_threads=num_threads, compile_model=False)


@pytest.fixture(scope="module")
def saved(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one thread that has not begun its first step."""
    run = tmp_path_factory.mktemp("runs") / "run"
    go_on(data, run, None, 1).save()
    return run


def test_a_run_that_goes_on_with_other_threads_is_warned_of(
    saved: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go_on(data, saved, saved, 2)

    assert caplog.messages == [
        "threads is 2 and was 1: the losses will not be, bit for bit, those that the run would have had uninterrupted; "
        "go on with what it had, if they must be"
    ]


def test_a_branch_and_a_run_that_goes_on_as_it_was_are_not(
    saved: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go_on(data, saved, saved, 1)
    go_on(data, tmp_path / "branch", saved, 2)

    assert not caplog.messages


@pytest.mark.skipif(NOW["instructions"] == "DEFAULT", reason="torch has one set of them here")
def test_the_command_tells_of_other_instructions(saved: Path, data: Path, tmp_path: Path) -> None:
    run = shutil.copytree(saved, tmp_path / "run")

    result = command(*options(data, run), "--resume", ATEN_CPU_CAPABILITY="default")

    assert result.returncode == 0, result.stderr
    assert "instructions is DEFAULT and was " in " ".join(result.stderr.split())


def test_a_graphics_processor_adds_as_it_does_whatever_the_processor_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    then = {**NOW, "device": "H200", "threads": 3, "instructions": "none", "processor": "6502"}

    warn_of_changes(then, {**NOW, "device": "H200"})
    assert not caplog.messages
    warn_of_changes(then, NOW)
    assert caplog.messages[0].startswith("device is cpu and was H200, processor is ")


def test_a_snapshot_that_says_nothing_is_no_reason_to_warn(
    caplog: pytest.LogCaptureFixture,
) -> None:
    warn_of_changes({}, NOW)
    warn_of_changes({**NOW, "platform": "another"}, NOW)

    assert not caplog.messages
