"""Whenever a run is killed, one whole snapshot is there."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from nanochat.errors import VersionError
from nanochat.train.loop import Trainer
from nanochat.train.snapshot import Snapshot, load_snapshot, save_snapshot
from tests.train.runs import quiet, recipe
from tests.train.test_old_snapshots import OLD


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
            **{f"{g} {n}": t for g, state in s.optimizer.items() for n, t in state.items()},
        }
        for s in (found, snapshot)
    ]
    same = all(torch.equal(tensors[0][name], tensor) for name, tensor in tensors[1].items())
    return found.step == snapshot.step and tensors[0].keys() == tensors[1].keys() and same


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_snapshot_that_is_cut_short_leaves_the_one_before(
    moved: int, steps: list[Snapshot], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_snapshot(tmp_path / "snapshot", steps[0])
    done: list[Path] = []
    replace = Path.replace

    def replace_some(path: Path, target: Path) -> Path:
        if len(done) == moved:
            raise KeyboardInterrupt
        done.append(target)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_some)
    with pytest.raises(KeyboardInterrupt):
        save_snapshot(tmp_path / "snapshot", steps[1])

    assert is_whole(load_snapshot(tmp_path / "snapshot"), steps[0])


def test_a_snapshot_takes_the_place_of_the_one_before(
    steps: list[Snapshot], tmp_path: Path
) -> None:
    for snapshot in steps:
        save_snapshot(tmp_path / "snapshot", snapshot)

    assert is_whole(load_snapshot(tmp_path / "snapshot"), steps[1])
    assert sorted(path.name for path in (tmp_path / "snapshot").iterdir()) == [
        "optimizer-2.safetensors",
        "parameters-2.safetensors",
        "snapshot.json",
    ]


def test_a_snapshot_of_the_first_version_is_read(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "snapshot")
    for path in (tmp_path / "snapshot").glob("*.safetensors"):
        path.rename(path.with_name(path.name.replace("-4", "")))
    rewrite(tmp_path / "snapshot", format=1)

    assert is_whole(load_snapshot(tmp_path / "snapshot"), load_snapshot(OLD))


@pytest.mark.parametrize("version", [0, 4, True, "2", None])
def test_a_snapshot_of_another_version_is_refused(
    version: object, steps: list[Snapshot], tmp_path: Path
) -> None:
    save_snapshot(tmp_path / "snapshot", steps[0])
    rewrite(tmp_path / "snapshot", format=version)

    with pytest.raises(VersionError, match=f"format {version!r} is none of 1 to 3"):
        load_snapshot(tmp_path / "snapshot")


def rewrite(snapshot: Path, **changes: object) -> None:
    path = snapshot / "snapshot.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
