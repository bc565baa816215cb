"""This file holds the case `resume`: a run that is killed at random moments, beside the same run that is not.

The kill comes from outside, at any instruction: in a batch, an evaluation, or while a snapshot is written. Momentum is
in eight bits, gradients are summed over microbatches, and there are two phases. The log and the parameters must be
those of the run that was never killed, bit for bit.
"""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from bench.result import Result, table
from nanochat.data.prepare import prepare
from nanochat.training.recipe import Recipe, recipe_to_dict
from nanochat.training.snapshot import holds_run, load_snapshot
from tests.training.runs import entries, options, recipe

__all__ = ["run", "table"]

_STEPS, _KILLS, _SECONDS = 500, 20, 180


def run(quick: bool) -> Iterator[Result]:
    """What differs, which is nothing, and how long it took."""
    steps, kills = (100, 2) if quick else (_STEPS, _KILLS)
    with tempfile.TemporaryDirectory() as folder:
        data, whole, killed = (Path(folder) / name for name in ("data", "whole", "killed"))
        prepare([f"{sysconfig.get_path('stdlib')}/a*.py"], data, 300, held_out=0.1)
        settings = Path(folder) / "recipe.json"
        settings.write_text(json.dumps(recipe_to_dict(_settings(steps))))
        _go_on(data, whole, settings).wait()
        begin = time.perf_counter()
        moments = np.random.default_rng(0).uniform(0, steps - 10, kills)
        for moment in np.sort(moments):
            _kill(_go_on(data, killed, settings), killed, moment)
        _go_on(data, killed, settings).wait()
        seconds = time.perf_counter() - begin
        differing = sum(a != b for a, b in zip(entries(whole), entries(killed), strict=True))
        last, expected = (load_snapshot(each).parameters for each in (killed, whole))
        differing += sum(not torch.equal(last[name], expected[name]) for name in expected)
    what = f"{steps} steps of a small model, killed {kills} times"
    yield Result(
        case="resume",
        what=f"{what}: lines and parameters that differ",
        unit="",
        ours=differing,
        target=0,
        ok=not differing,
    )
    yield Result(
        case="resume",
        what=what,
        unit="s",
        ours=seconds,
        target=None if quick else _SECONDS,
        ok=quick or seconds <= _SECONDS,
    )


def _settings(steps: int) -> Recipe:
    return recipe(
        steps=steps,
        data={"batch_size": 4, "microbatch": 2},
        optimizer={"matrices": {"average": "int8"}},
        run={"evaluate_every": 20, "snapshot_every": 10, "evaluation_windows": 2},
        phases=[{"steps": steps // 2, "precision": {"weights": "float"}}, {}],
    )


def _go_on(data: Path, run: Path, settings: Path) -> subprocess.Popen[bytes]:
    """A process that begins the run, or goes on with it."""
    what = ["--resume"] if holds_run(run) else [str(settings)]
    return subprocess.Popen(
        [sys.executable, "-m", "nanochat", *map(str, options(data, run)), *what],
        stderr=subprocess.DEVNULL,
    )


def _kill(process: subprocess.Popen[bytes], run: Path, moment: float) -> None:
    """End a process at once, a part of a step after its log comes to the step of that moment."""
    while process.poll() is None and _last_step(run) < int(moment):
        time.sleep(0.01)
    time.sleep(0.1 * (moment % 1))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def _last_step(run: Path) -> int:
    try:
        lines = (run / "log.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return -1
    # The last line may be half written.
    return int(json.loads(lines[-2]).get("step", -1)) if len(lines) > 1 else -1
