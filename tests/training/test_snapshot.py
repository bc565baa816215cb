"""Whenever a run is killed, one whole snapshot is there."""

import json
from pathlib import Path

import pytest
import torch

from nanochat.errors import VersionError
from nanochat.training.loop import Trainer
from nanochat.training.snapshot import (
    Snapshot,
    load_snapshot,
    remove_leftovers,
    save_snapshot,
    snapshot_directory,
)
from tests.training.runs import quiet, recipe


@pytest.fixture(scope="module")
def steps(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Snapshot]:
    """The snapshots of two steps of one run."""
    run = tmp_path_factory.mktemp("runs") / "run"
    found = []
    for step in (1, 2):
        Trainer(
            recipe(steps=step, schedule={"warmup_steps": 0, "decay_steps": 0}),
            data,
            run,
            start=run if step > 1 else None,
            num_threads=1,
            compile_model=False,
        ).run(quiet)
        found.append(load_snapshot(run))
    return found


def is_whole(found: Snapshot, snapshot: Snapshot) -> bool:
    tensors = [
        {
            **s.parameters,
            **{f"{g} {n}": t for g, state in s.optimizer.items() for n, t in state.kept.items()},
        }
        for s in (found, snapshot)
    ]
    same = all(torch.equal(tensors[0][name], tensor) for name, tensor in tensors[1].items())
    return found.step == snapshot.step and tensors[0].keys() == tensors[1].keys() and same


def test_a_snapshot_that_is_cut_short_leaves_the_one_before(
    steps: list[Snapshot], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_snapshot(snapshot_directory(tmp_path, 1), steps[0])

    def stop(*_: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        save_snapshot(snapshot_directory(tmp_path, 2), steps[1])

    assert is_whole(load_snapshot(tmp_path), steps[0])


def test_the_last_snapshot_of_a_run_stands_for_it(steps: list[Snapshot], tmp_path: Path) -> None:
    for step, snapshot in ((10, steps[1]), (9, steps[0])):
        save_snapshot(snapshot_directory(tmp_path, step), snapshot)

    assert is_whole(load_snapshot(tmp_path), steps[1])
    assert is_whole(load_snapshot(tmp_path / "snapshots" / "9"), steps[0])


def test_only_what_kills_leave_behind_is_removed(steps: list[Snapshot], tmp_path: Path) -> None:
    save_snapshot(snapshot_directory(tmp_path, 5), steps[0])
    folder = tmp_path / "snapshots"
    for name in (".10.a_b1c2d3/new", "4", "mine", ".mine", "6.old"):
        (folder / name).mkdir(parents=True)
    (folder / "7").write_text("a file")
    (folder / "8").symlink_to("mine")

    remove_leftovers(tmp_path)

    left = {path.name for path in folder.iterdir()}
    assert left == {"5", "mine", ".mine", "6.old", "7", "8"}


@pytest.mark.parametrize("version", [0, 5, True, "2", None])
def test_a_snapshot_of_another_version_is_refused(
    version: object, steps: list[Snapshot], tmp_path: Path
) -> None:
    save_snapshot(tmp_path / "snapshot", steps[0])
    rewrite(tmp_path / "snapshot", format=version)

    with pytest.raises(VersionError, match=f"format {version!r} is none of 1 to 4"):
        load_snapshot(tmp_path)


def rewrite(snapshot: Path, **changes: object) -> None:
    path = snapshot / "snapshot.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
