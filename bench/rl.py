"""This file holds the case `rl`: what the logs of runs of `nanochat rl` say that differ in advantage and seed.

The runs are those of `recipes/rl-tiny.json`; their commands are in `docs/rl.md`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.curves import Curve, draw_curves
from bench.result import Result, table

__all__ = ["LOGS", "plot", "run", "table"]

LOGS = Path(__file__).parent / "results" / "rl"
# The files of each are NAME-SEED.jsonl.
_NAMES = {
    "maxrl": "MaxRL",
    "dr-grpo": "Dr. GRPO",
    "grpo": "GRPO",
    "shuffled": "MaxRL, rewards shuffled (control)",
}
_UNSEEN = ("other-types", "other-names", "held-out")
_Evaluation = Mapping[str, Any]


def _unseen(name: str) -> Callable[[_Evaluation], float]:
    """The mean of a rate over the splits that are not learnt from."""
    return lambda evaluation: fmean(evaluation[name].get(split, 0.0) for split in _UNSEEN)


def _of(name: str, split: str) -> Callable[[_Evaluation], float]:
    return lambda evaluation: evaluation[name].get(split, 0.0)


def _bits(evaluation: _Evaluation) -> float:
    return float(evaluation["held_out_bits_per_byte"])


_MEASURES: Mapping[str, tuple[str, Callable[[_Evaluation], float]]] = {
    "compiles and returns, unseen": ("share", _unseen("runs")),
    "of this trivial": ("share", _unseen("trivial")),
    "passes, unseen": ("share", _unseen("passes")),
    "passes, learnt from": ("share", _of("passes", "train")),
    "passes, other types and argument names": ("share", _of("passes", "other-types")),
    "passes, other function names": ("share", _of("passes", "other-names")),
    "passes, other families": ("share", _of("passes", "held-out")),
    "the likeliest text passes, unseen": ("share", _unseen("greedy_passes")),
    "distinct likeliest texts of a split": ("texts", _unseen("greedy_distinct")),
    "ordinary Rust": ("bits per byte", _bits),
}


def run(quick: bool) -> Iterator[Result]:  # noqa: ARG001
    """What each kind of run has reached at its end, beside the model that it began with."""
    for name, title in _NAMES.items():
        runs = [evaluations for _, evaluations in _runs(name)]
        if not runs:
            continue
        for what, (unit, measure) in _MEASURES.items():
            ends = [measure(evaluations[-1]) for evaluations in runs]
            before, after = fmean(measure(each[0]) for each in runs), fmean(ends)
            target, ok = _held_to(name, what, before, after)
            yield Result(
                case="rl",
                what=f"{title}, seeds: {len(runs)}: {what}",
                unit=unit,
                ours=after,
                low=min(ends),
                high=max(ends),
                peer=before,
                peer_name="before",
                target=target,
                ok=ok,
            )
        if name != "shuffled":
            yield _second_stage(name, title)


def plot(_: Sequence[Result], path: Path) -> None:
    """Draw the means over seeds of what passes, what returns and what is forgotten."""

    def curves(measure: Callable[[_Evaluation], float]) -> list[Curve]:
        return [
            Curve(
                title,
                [(each[0]["step"], fmean(map(measure, each))) for each in zip(*runs, strict=True)],
            )
            for name, title in _NAMES.items()
            if (runs := [evaluations for _, evaluations in _runs(name)])
        ]

    draw_curves(
        {
            "passes, learnt from": curves(_of("passes", "train")),
            "passes, other function names": curves(_of("passes", "other-names")),
            "compiles and returns, unseen": curves(_unseen("runs")),
            "bits per byte of ordinary Rust": curves(_bits),
        },
        path,
        x_label="steps",
    )


def _second_stage(name: str, title: str) -> Result:
    """What the second phase has added, which is to be more than chance: no seed's intervals may meet."""
    runs = _runs(name)
    ends = [
        (next(each for each in evaluations if each["step"] == first_stage), evaluations[-1])
        for first_stage, evaluations in runs
    ]
    before, after = ([each["passes"]["train"] for each in of] for of in zip(*ends, strict=True))
    return Result(
        case="rl",
        what=f"{title}, seeds: {len(runs)}: passes, learnt from, by the second stage",
        unit="share",
        ours=fmean(after),
        low=min(after),
        high=max(after),
        peer=fmean(before),
        peer_name="after the first stage",
        ok=all(
            end["passes_interval"]["train"][0] > middle["passes_interval"]["train"][1]
            for middle, end in ends
        ),
    )


def _held_to(name: str, what: str, before: float, after: float) -> tuple[float | None, bool]:
    """The target of a measure, and whether it is met; a control must not learn to pass."""
    if name == "shuffled":
        return (0.01, after <= 0.01) if what == "passes, unseen" else (None, True)
    match what:
        case "compiles and returns, unseen":
            return 0.5, after >= 0.5
        case "passes, unseen":
            # Five times what passed before of all problems, those that a constant or an argument solves among them;
            # none passed of these.
            return 0.035, after >= 0.035
        case "ordinary Rust":
            return 1.05 * before, after <= 1.05 * before
    return None, True


@cache
def _runs(name: str) -> list[tuple[int, list[_Evaluation]]]:
    """Of each seed the steps of its first phase, and its evaluations."""
    found = []
    for path in sorted(LOGS.glob(f"{name}-*.jsonl")):
        lines = [json.loads(text) for text in path.read_text().splitlines()]
        first_stage = lines[0]["recipe"]["phases"][0]["steps"]
        found.append((first_stage, [line for line in lines if "passes" in line]))
    return found
