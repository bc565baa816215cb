"""This file holds small runs for tests: their recipe, their command line, and what their logs say."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from nanochat.cli import _nanochat
from nanochat.cli.run import run
from nanochat.data.batch import Layout
from nanochat.training.batches import Inputs, microbatches
from nanochat.training.loop import Trainer
from nanochat.training.recipe import Recipe, recipe_from_dict
from nanochat.training.run_log import LogEntry

__all__ = [
    "MODEL",
    "batch_of",
    "command",
    "command_here",
    "entries",
    "losses",
    "options",
    "quiet",
    "recipe",
    "write_log",
]

MODEL = {
    "width": 128,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "ffn_width": 128,
    "weight_block": 128,
}


def recipe(**changes: object) -> Recipe:
    """A small recipe; the fields of a group are changed one by one."""
    fields: dict[str, Any] = {
        "model": {"vocab_size": 300, **MODEL},
        "steps": 30,
        "data": {"batch_size": 2, "length": 64},
        "schedule": {"warmup_steps": 2, "decay_steps": 10},
        "precision": {"products": "float32"},
        "run": {
            "evaluate_every": 10,
            "snapshot_every": 5,
            "evaluation_windows": 8,
            "sample_tokens": 0,
        },
    }
    for name, value in changes.items():
        inner = fields.get(name)
        fields[name] = (
            {**inner, **value} if isinstance(inner, dict) and isinstance(value, dict) else value
        )
    return recipe_from_dict(fields)


def batch_of(trainer: Trainer, number: int = 0) -> Inputs:
    """Two sequences of 64 tokens that a run would read."""
    batch = trainer.shards.batch(number, 2, Layout(length=64))
    ((_, inputs),) = microbatches(batch, 0, trainer.model.ops.device)
    return inputs


def entries(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, without what depends on the machine."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    timed = {"tokens_per_second", "utilisation", "waiting_seconds"}
    return [
        {k: v for k, v in line.items() if k not in timed}
        for line in lines
        if line.get("anomaly") != "starving loader"
    ]


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def quiet(_: LogEntry) -> None:
    pass


def write_log(path: Path, *lines: Mapping[str, object] | str) -> Path:
    """A log with these lines, or texts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines]
    path.write_text("".join(texts))
    return path


def options(data: Path, run: Path) -> list[str]:
    return ["train", "--data", str(data), "--out", str(run), "--no-compile", "--threads", "1"]


def command_here(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """`nanochat` in this process, which has imported what training needs (five seconds); its lines are wide."""
    out, err = io.StringIO(), io.StringIO()
    arguments = [*map(str, words)]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"COLUMNS": "200", **environment}.items():
            patch.setenv(name, value)
        with redirect_stdout(out), redirect_stderr(err):
            code = run(_nanochat, "nanochat", arguments)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def command(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own, for what only a process can show."""
    return subprocess.run(
        [sys.executable, "-m", "nanochat", *map(str, words)],
        env={**os.environ, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
