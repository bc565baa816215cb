"""Batches that other processes prepare are those of the run, and a process that dies ends it with a word."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanochat.data.batch import Batch, Layout
from nanochat.data.mixture import Mixture
from nanochat.data.shards import Shards
from nanochat.errors import TrainingError
from nanochat.training.loop import Trainer
from nanochat.training.prefetch import Prefetched
from nanochat.training.recipe import recipe_to_dict
from nanochat.training.run_log import LogEntry
from nanochat.training.snapshot import load_snapshot
from tests.training.runs import entries, losses, options, quiet, recipe

WINDOWS, PACKED = Layout(length=32), Layout(length=64, packing="best-fit")


def same(first: Batch, second: Batch) -> bool:
    # Of segments, there may be none.
    return all(
        np.array_equal(np.asarray(one), np.asarray(other))
        for one, other in zip(vars(first).values(), vars(second).values(), strict=True)
    )


def trainer(tokens: Path, folder: Path, start: Path | None = None, **changes: Any) -> Trainer:
    settings = recipe(**{"run": {"workers": 2}, **changes})
    return Trainer(settings, tokens, folder, start=start, num_threads=1, compile_model=False)


def test_batches_are_the_same_wherever_they_are_asked_for(data: Path) -> None:
    source = Mixture({"": Shards(data)})
    # On, back, over some, and to another phase.
    asked = [(0, WINDOWS, 0), (1, WINDOWS, 0), (2, WINDOWS, 0), (1, WINDOWS, 0), (7, WINDOWS, 0)]
    asked += [(0, PACKED, 1), (1, PACKED, 1), (8, WINDOWS, 0)]

    with Prefetched(source, workers=2) as batches:
        found = [batches.batch(step, 3, layout, order=order) for step, layout, order in asked]

    for batch, (step, layout, order) in zip(found, asked, strict=True):
        assert same(batch, source.batch(step, 3, layout, order=order))


def test_a_run_with_workers_has_the_losses_of_one_without_and_resumes_exactly(
    data: Path, tmp_path: Path
) -> None:
    short: dict[str, Any] = {"steps": 12, "data": {"length": 32, "batch_size": 1}}
    assert trainer(data, tmp_path / "alone", run={"workers": 0}, **short).run(quiet)
    cut = trainer(data, tmp_path / "cut", **short)
    cut._interruption.check = lambda: _stop(cut)  # type: ignore[method-assign]
    assert not cut.run(quiet)
    assert trainer(data, tmp_path / "cut", start=tmp_path / "cut", **short).run(quiet)

    assert losses(tmp_path / "cut") == losses(tmp_path / "alone")
    assert entries(tmp_path / "cut")[-1] == entries(tmp_path / "alone")[-1]


def _stop(run: Trainer) -> None:
    if run.step == 7:
        raise KeyboardInterrupt


def test_a_worker_that_dies_is_an_error_and_no_hang(data: Path, tmp_path: Path) -> None:
    run = trainer(data, tmp_path, steps=10_000)

    def kill(entry: LogEntry) -> None:
        if entry.step == 6:
            (worker, _) = run._batches._batches._workers  # type: ignore[attr-defined]
            os.kill(worker.pid, signal.SIGKILL)

    begin = time.monotonic()
    with pytest.raises(TrainingError, match=r"a process that prepares batches died.*--resume"):
        run.run(kill)

    assert time.monotonic() - begin < 30
    # What was saved before is whole; a batch that was prepared before may have been trained on.
    assert trainer(data, tmp_path, start=tmp_path, steps=10_000).step in (5, 10)


def test_no_process_is_left_at_the_end(data: Path, tmp_path: Path) -> None:
    run = trainer(data, tmp_path, steps=12)
    pids: set[int] = set()

    def note(_: LogEntry) -> None:
        pids.update(each.pid for each in getattr(run._batches._batches, "_workers", []))

    assert run.run(note)

    assert len(pids) == 2
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert threading.active_count() < 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_ends_the_run_with_a_snapshot(
    number: signal.Signals, data: Path, tmp_path: Path
) -> None:
    settings = recipe(steps=100_000, run={"workers": 2, "snapshot_every": 100_000})
    (tmp_path / "recipe.json").write_text(json.dumps(recipe_to_dict(settings)))
    words = [*options(data, tmp_path / "run"), str(tmp_path / "recipe.json")]
    run = subprocess.Popen(
        [sys.executable, "-m", "nanochat", *words],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    log = tmp_path / "run" / "log.jsonl"
    while not log.exists() or log.read_text().count("\n") < 4:
        assert run.poll() is None
        time.sleep(0.05)

    os.killpg(run.pid, number)

    assert run.wait(60) == 130
    assert load_snapshot(tmp_path / "run").step >= 2


def test_other_processes_open_the_files_themselves(data: Path) -> None:
    source = Mixture({"": Shards(data, seed=3)}, seed=3)

    sent = pickle.dumps(source)

    assert len(sent) < 100_000
    assert same(pickle.loads(sent).batch(5, 2, WINDOWS), source.batch(5, 2, WINDOWS))
