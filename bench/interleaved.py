"""This file holds fair timing on a noisy machine: competitors take turns, so that what disturbs one disturbs all."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

__all__ = ["Runner", "Timing", "interleaved", "ratio"]

# Threads of other runtimes look for work that long after theirs is done; those of ours, 2 milliseconds.
_SETTLE = 0.05
# Seconds of a call that is timed once in a turn.
_LONG = 0.3


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A competitor: `run` is timed; `start` comes before its turn, and `rest` after it, to have its threads sleep."""

    run: Callable[[], object]
    start: Callable[[], object] = lambda: None
    rest: Callable[[], object] = lambda: time.sleep(_SETTLE)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of a call: the median of each turn."""

    turns: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """Median of the turns."""
        return median(self.turns)

    def rates(self, amount: float) -> dict[str, float]:
        """`amount` per second, as `ours`, `low` and `high` of a result."""
        return {
            "ours": amount / self.seconds,
            "low": amount / max(self.turns),
            "high": amount / min(self.turns),
        }


def interleaved(
    runners: Mapping[str, Runner], *, turns: int, seconds: float = 0.03
) -> dict[str, Timing]:
    """Time all runners, in turns of about so many seconds each, and at least three calls, or one that takes long.

    The first two calls of a turn wake threads and fill caches; they are not counted.
    """
    found: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(turns):
        for name, runner in runners.items():
            runner.start()
            found[name].append(_turn(runner.run, seconds))
            runner.rest()
    return {name: Timing(turns=tuple(times)) for name, times in found.items()}


def ratio(ours: Timing, peer: Timing) -> float:
    """How many times faster ours is: the median over turns of what the two took in the same turn."""
    return median(theirs / our for our, theirs in zip(ours.turns, peer.turns, strict=True))


def _turn(run: Callable[[], object], seconds: float) -> float:
    begin = time.perf_counter()
    run()
    if time.perf_counter() - begin > _LONG:
        return _seconds(run)
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        times.append(_seconds(run))
    return median(times)


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
