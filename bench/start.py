"""This file holds the case `start`: seconds from the start of Python to the first token of the shipped model.

Every start is a process of its own. A first-ever start finds no compiled kernels; a second one finds those of a first.
What bounds the second is the smallest program that runs one cached function of Numba, timed in turn with it; what
bounds the first-ever is the second. Python's compiled files and the system's file cache are warm in both.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from rich.table import Table

from bench.parity import require
from bench.result import Result
from bench.start_probe import PROMPT, Stage

__all__ = ["run", "table"]

_ROOT = Path(__file__).parents[1]
_FIRST_EVER, _SECOND = 20.0, 1.5
_SLOWEST_KERNELS = 5
_COMMAND = ("-m", "nanochat", "generate", "nanochat-tiny", "--prompt", PROMPT)
_OPTIONS = ("--max-tokens", "1", "--backend", "numba")
_SMALLEST_PROGRAM = """
import time

import numba

@numba.njit(cache=True)
def successor(number):
    return number + 1

successor(1)
print(time.monotonic())
"""


@dataclass(frozen=True)
class _Start:
    """One start, in seconds: of its stages, by their names, and of the kernels that it compiled."""

    stages: dict[str, float]
    kernels: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.stages[stage] for stage in Stage)


@dataclass(frozen=True, kw_only=True)
class _Starts:
    first_ever: list[_Start]
    second: list[_Start]


def run(quick: bool) -> Iterator[Result]:
    """Both starts, and the stages of each."""
    require("numba")
    starts = _Starts(first_ever=[], second=[])
    smallest: list[float] = []
    commands: list[float] = []
    with TemporaryDirectory() as folder:
        program = Path(folder) / "smallest.py"
        program.write_text(_SMALLEST_PROGRAM)
        for number in range(1 if quick else 3):
            starts.first_ever.append(_start(f"{folder}/{number}"))
        kept = f"{folder}/0"
        _output(kept, str(program))
        for _ in range(5 if quick else 20):
            starts.second.append(_start(kept))
            began = time.monotonic()
            smallest.append(float(_output(kept, str(program))) - began)
            began = time.monotonic()
            _output(kept, *_COMMAND, *_OPTIONS)
            commands.append(time.monotonic() - began)
    yield _total(
        "first-ever start, to the first token",
        [start.total for start in starts.first_ever],
        bound=median(start.total for start in starts.second),
        target=_FIRST_EVER,
    )
    yield _total(
        "second start, to the first token",
        [start.total for start in starts.second],
        bound=median(smallest),
        target=_SECOND,
    )
    yield _total("second start, a whole nanochat generate", commands)
    yield from _parts(starts)


def table(results: Sequence[Result]) -> Table:
    """Both starts with what bounds them, then what they are made of."""
    drawn = Table("what", "unit", box=None)
    for name in ("median", "first-ever", "bound", "target"):
        drawn.add_column(name, justify="right")
    drawn.add_column("ok")
    for result in results:
        numbers = (result.ours, result.peer, result.bound, result.target)
        drawn.add_row(
            result.what,
            result.unit,
            *("" if number is None else f"{number:.3g}" for number in numbers),
            "yes" if result.ok else "[red]no",
        )
    return drawn


def _total(
    what: str, seconds: Sequence[float], *, bound: float | None = None, target: float | None = None
) -> Result:
    return Result(
        case="start",
        what=f"{what} ({min(seconds):.2f} to {max(seconds):.2f})",
        unit="s",
        ours=median(seconds),
        bound=bound,
        target=target,
        ok=target is None or median(seconds) < target,
    )


def _parts(starts: _Starts) -> Iterator[Result]:
    first_ever, second = starts.first_ever, starts.second
    for stage in first_ever[0].stages:
        yield _part(stage, [s.stages[stage] for s in second], [s.stages[stage] for s in first_ever])
    counts = [[len(start.kernels) for start in some] for some in (second, first_ever)]
    compiled = _part("kernels compiled", *counts, unit="kernels")
    yield replace(compiled, target=0, ok=compiled.ours == 0)
    slowest = sorted(first_ever[0].kernels.items(), key=lambda item: -item[1])
    for name, _ in slowest[:_SLOWEST_KERNELS]:
        seconds = [[s.kernels.get(name, 0.0) for s in some] for some in (second, first_ever)]
        yield _part(f"compile {name}", *seconds)


def _part(
    what: str, second: Sequence[float], first_ever: Sequence[float], *, unit: str = "s"
) -> Result:
    return Result(
        case="start",
        what=f"second start: {what}",
        unit=unit,
        ours=median(second),
        peer=median(first_ever),
        peer_name="first-ever start",
    )


def _start(caches: str) -> _Start:
    return _Start(**json.loads(_output(caches, "-m", "bench.start_probe", str(time.monotonic()))))


def _output(caches: str, *arguments: str) -> str:
    """What Python prints, with its compiled kernels in the folder `caches`."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": caches}
    # An installed package has its modules compiled.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=_ROOT,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.stderr.write(done.stderr)
        done.check_returncode()
    return done.stdout
