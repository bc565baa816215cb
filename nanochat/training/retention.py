"""This file holds which snapshots of a run stay: those that it may go back to, the best one, and the last."""

import math
from pathlib import Path

from nanochat.training.recipe import Rhythm
from nanochat.training.run_log import RunLog
from nanochat.training.snapshot import remove_snapshot, snapshot_steps

__all__ = ["drop_later_snapshots", "keep_snapshots", "planned_steps"]


def planned_steps(directory: Path, last: int, settings: Rhythm, log: RunLog) -> list[int]:
    """The steps of those snapshots that are there and would be if nobody had interrupted the run.

    It saves at regular steps, at the last one, and after an evaluation that is better than all before.
    """
    best = set()
    least = math.inf
    for step, cost in sorted(log.evaluations.items()):
        if cost < least:
            best.add(step)
            least = cost
    return [
        step
        for step in snapshot_steps(directory)
        if step != log.first_step
        and (step == last or not step % settings.snapshot_every or step in best)
    ]


def keep_snapshots(directory: Path, last: int, settings: Rhythm, log: RunLog) -> None:
    """Delete the snapshots that the settings do not keep; that of an interruption stays until there is a later one."""
    planned = planned_steps(directory, last, settings, log)[-settings.keep_snapshots :]
    steps = snapshot_steps(directory)
    for step in steps[:-1]:
        if step != log.best_step and step not in planned:
            remove_snapshot(directory, step)


def drop_later_snapshots(directory: Path, step: int) -> None:
    """Delete the snapshots of later steps, for the run will come to them on another way."""
    for later in reversed(snapshot_steps(directory)):
        if later > step:
            remove_snapshot(directory, later)
