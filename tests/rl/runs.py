"""This file holds small runs of reinforcement learning for tests, on four problems of one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanochat.rl.loop import Reinforcement
from nanochat.rl.plan import plan
from nanochat.training.run_log import LogEntry

__all__ = ["EASY", "FIELDS", "log_of", "quiet", "reinforcement"]

EASY = Path(__file__).with_name("easy.rs")
FIELDS: dict[str, Any] = {
    "model": "nanochat-tiny",
    "steps": 4,
    "problems": {"source": str(EASY)},
    "rollout": {"prompts": 4, "samples": 4, "max_tokens": 8, "temperature": 0.8},
    "policy": {"negatives": 4, "kl": 0.01},
    "evaluation": {"splits": ["train"], "problems": 2, "samples": 2, "texts": []},
    "schedule": {"warmup_steps": 1},
    "run": {"evaluate_every": 2, "snapshot_every": 2},
    # These have no code that could flip so soon.
    "patience": 1000,
}


def reinforcement(
    out: Path, *, resume: bool = False, backend: str = "numba", **changes: object
) -> Reinforcement:
    """A run, of whose settings some groups are others."""
    if resume:
        return plan(out=out, resume=True).run(num_threads=1, backend=backend)
    fields = {
        name: {**value, **changes.pop(name, {})} if isinstance(value, dict) else value  # type: ignore[dict-item]
        for name, value in FIELDS.items()
    }
    return plan({**fields, **changes}, out=out).run(num_threads=1, backend=backend)


def quiet(_: LogEntry) -> None:
    """Show nothing."""


def log_of(out: Path) -> list[dict[str, Any]]:
    """The lines of a log but the first, without what depends on the time of day."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    clock = ("seconds", "tokens_per_second")
    return [{k: v for k, v in line.items() if k not in clock} for line in lines[1:]]


Show = Callable[[LogEntry], None]
