"""Of a run's snapshots those stay that it may go back to, that of the best evaluation, and the last."""

from pathlib import Path

import pytest

from nanochat.training.retention import drop_later_snapshots, keep_snapshots, planned_steps
from nanochat.training.run_log import HELD_OUT, RunLog
from nanochat.training.setbacks import Setbacks
from nanochat.training.snapshot import Snapshot, save_snapshot, snapshot_directory, snapshot_steps
from tests.training.runs import recipe

# Snapshots at every fifth step, and two are kept.
SETTINGS = recipe(steps=32)
BITS = {4: 3.0, 8: 2.0, 12: 2.5, 17: 1.5}


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    with RunLog(tmp_path / "log.jsonl", step=-1, batch=0) as log:
        log.write(0, {})
        for step, bits in BITS.items():
            log.write(step, {HELD_OUT: bits})
    return log


def save(run: Path, *steps: int) -> None:
    for step in steps:
        snapshot = Snapshot(
            step=step,
            setbacks=Setbacks(),
            recipe=SETTINGS,
            data="",
            machine={},
            parameters={},
            optimizer={},
        )
        save_snapshot(snapshot_directory(run, step), snapshot)


def test_interruptions_add_no_snapshot_to_those_of_a_run(log: RunLog, tmp_path: Path) -> None:
    save(tmp_path, 0, 4, 5, 7, 8, 10, 12, 17, 31, 32)

    # The first step has none; 4, 8 and 17 were the best so far; 32 is the last.
    assert planned_steps(tmp_path, SETTINGS.steps, SETTINGS.run, log) == [4, 5, 8, 10, 17, 32]


def test_the_best_and_the_last_snapshots_are_kept(log: RunLog, tmp_path: Path) -> None:
    save(tmp_path, 5, 10, 17, 20, 25)
    # That of a run which was killed while it deleted.
    (snapshot_directory(tmp_path, 10) / "snapshot.json").unlink()

    keep_snapshots(tmp_path, SETTINGS.steps, SETTINGS.run, log)

    assert snapshot_steps(tmp_path) == [17, 20, 25]


def test_a_snapshot_of_an_interruption_takes_the_place_of_none_and_goes_with_the_next(
    log: RunLog, tmp_path: Path
) -> None:
    save(tmp_path, 17, 20, 25, 27)

    keep_snapshots(tmp_path, SETTINGS.steps, SETTINGS.run, log)
    interrupted = snapshot_steps(tmp_path)
    save(tmp_path, 30)
    keep_snapshots(tmp_path, SETTINGS.steps, SETTINGS.run, log)

    assert interrupted == [17, 20, 25, 27]
    assert snapshot_steps(tmp_path) == [17, 25, 30]


def test_later_snapshots_are_dropped(tmp_path: Path) -> None:
    save(tmp_path, 5, 10, 12, 15)

    drop_later_snapshots(tmp_path, 10)

    assert snapshot_steps(tmp_path) == [5, 10]
