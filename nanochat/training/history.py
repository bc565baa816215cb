"""This file holds what the log of a training run tells when it is read as a whole: series of numbers, and events.

It needs no torch, and reads a log that is being written.
"""

import json
import math
import sys
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat.errors import FormatError, InputError, counted
from nanochat.files import exists, require_file

__all__ = ["Event", "History", "Series", "read_history"]

_LOG = "log.jsonl"
# Larger ones are no numbers of steps, and no array of integers holds them.
_MAX_STEP = 2**53
_MAX_FLOAT = sys.float_info.max
# Numbers that are no measurements.
_NO_SERIES = ("step", "skipped_batch", "last_batch", "decided_steps", "decay_steps")
# Every line begins so.
_BEGIN = '{"step"'


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happened at a step that is no number."""

    step: int
    kind: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Series:
    """Finite values at steps that grow."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class History:
    """A run as its log tells it; empty for what it does not tell.

    Attributes
    ----------
    path : Path
        Of the log.
    recipe, machine : dict
        As the run began with them.
    series : dict of str to dict of str to Series
        By the key of the log, then by the place in the list or the object that stands there; "" for a number.
    sample : (int, str), optional
        The last text that the model wrote, with its step.
    num_unreadable : int
        Lines that are none of a log, but for one at the end, which may be being written.
    """

    path: Path
    recipe: Mapping[str, object]
    machine: Mapping[str, object]
    series: Mapping[str, Mapping[str, Series]]
    events: Sequence[Event]
    sample: tuple[int, str] | None
    num_unreadable: int


def read_history(run: Path) -> History:
    """Read the log of a run.

    Parameters
    ----------
    run : Path
        The run's directory, or its log.

    Raises
    ------
    InputError
        If there is no log.
    FormatError
        If no line of it is one of a log.
    """
    path = _find_log(run)
    reading = _Reading()
    line, num_lines = "", 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            num_lines += 1
            reading.take(line)
    is_beginning = num_lines == 1 and (line.startswith(_BEGIN) or _BEGIN.startswith(line))
    if num_lines and not reading.num_lines and not is_beginning:
        raise FormatError(
            f"{path}: {counted(num_lines, 'line')}, none of which is a JSON object with a step; pass the log of a run "
            "of `nanochat train`"
        )
    return reading.history(path)


class _Column:
    """Numbers under one key; arrays, for lists of hundreds of thousands of objects are slow."""

    __slots__ = ("add_step", "add_value", "steps", "values")

    def __init__(self) -> None:
        self.steps, self.values = array("q"), array("d")
        self.add_step, self.add_value = self.steps.append, self.values.append


class _Reading:
    """What the lines of a log have told so far."""

    def __init__(self) -> None:
        self.num_lines = 0
        self._num_unreadable = 0
        self._head: Mapping[str, object] | None = None
        self._events: list[Event] = []
        self._sample: tuple[int, str] | None = None
        self._numbers: defaultdict[str, _Column] = defaultdict(_Column)
        self._places: defaultdict[str, defaultdict[str, _Column]] = defaultdict(
            lambda: defaultdict(_Column)
        )

    def take(self, line: str) -> None:
        """Take a line, with its end."""
        entry = _parse(line)
        if entry is None:
            # One without an end is being written.
            self._num_unreadable += line.endswith("\n")
            return
        self.num_lines += 1
        if "cross_entropy" in entry and "loss" in entry:
            # Logs of before the loss was that of the next token.
            entry["objective"], entry["loss"] = entry["loss"], entry.pop("cross_entropy")
        step = entry["step"]
        numbers = self._numbers
        for name, value in entry.items():
            kind = type(value)
            if kind is float or kind is int:
                column = numbers[name]
                column.add_step(step)
                column.add_value(value if kind is float else _float(value))
            elif kind is str:
                self._take_text(step, name, value, entry)
            elif kind is list or kind is dict:
                self._take_group(step, name, value)
        if "recipe" in entry:
            if self._head is not None:
                self._events.append(Event(step=step, kind="resumed", text=""))
            elif step:
                self._events.append(
                    Event(step=step, kind="begun", text="from a snapshot of another run")
                )
            self._head = self._head or entry

    def history(self, path: Path) -> History:
        """The run, as far as it has been read."""
        head = self._head or {}
        series, events = _series({name: {"": column} for name, column in self._numbers.items()})
        of_places, more = _series(self._places)
        for name, places in of_places.items():
            series[name] = series.get(name, {}) | places
        recipe = _mapping(head.get("recipe"))
        if "decided_steps" in series:
            # Of a run that has a time.
            recipe = {**recipe, "steps": int(series["decided_steps"][""].values[-1])}
        return History(
            path=path,
            recipe=recipe,
            machine=_mapping(head.get("machine")),
            series={name: found for name, found in series.items() if name not in _NO_SERIES},
            events=sorted([*self._events, *events, *more], key=lambda event: event.step),
            sample=self._sample,
            num_unreadable=self._num_unreadable,
        )

    def _take_group(self, step: int, name: str, group: list[object] | dict[str, object]) -> None:
        if name in ("recipe", "machine"):
            return
        for place, value in group.items() if isinstance(group, dict) else enumerate(group):
            if isinstance(value, int | float) and not isinstance(value, bool):
                column = self._places[name][str(place)]
                column.add_step(step)
                column.add_value(_float(value))

    def _take_text(self, step: int, name: str, text: str, entry: Mapping[str, object]) -> None:
        match name:
            case "sample":
                self._sample = (step, text)
                return
            case "went_back":
                event = Event(step=step, kind="went back", text=text)
            case "fire":
                event = Event(step=step, kind="fire", text=text)
            case "resumed":
                event = Event(step=step, kind="resumed", text=text)
            case "anomaly":
                event = Event(step=step, kind=text, text=str(entry.get("because", "")))
            case "because" if "skipped_batch" in entry:
                batch = f"batch {entry['skipped_batch']}: {text}"
                event = Event(step=step, kind="batch left out", text=batch)
            case _:
                return
        self._events.append(event)


def _find_log(run: Path) -> Path:
    path = run / _LOG if run.is_dir() else run
    if not exists(path):
        what = f"holds no {_LOG}" if run.is_dir() else "is not there"
        raise InputError(
            f"{run} {what}: pass the directory of a run of `nanochat train`, or its log"
        )
    require_file(path)
    return path


def _parse(line: str) -> dict[str, Any] | None:
    """What a line says, if it is one of a log."""
    try:
        found: dict[str, Any] = json.loads(line)
        step = found["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if type(step) is int and abs(step) < _MAX_STEP else None


def _series(
    columns: Mapping[str, Mapping[str, _Column]],
) -> tuple[dict[str, dict[str, Series]], list[Event]]:
    """The series, and an event for each that has numbers that are not finite."""
    found: dict[str, dict[str, Series]] = {}
    events: list[Event] = []
    for name, places in columns.items():
        for place, column in places.items():
            steps, values = np.array(column.steps), np.array(column.values)
            finite = np.isfinite(values)
            if not finite.all():
                key = f"{name}.{place}" if place else name
                lines = counted(int((~finite).sum()), "line")
                text = f"{key} in {lines}, of which this is the first"
                events.append(Event(step=int(steps[~finite][0]), kind="not finite", text=text))
            if finite.any():
                found.setdefault(name, {})[place] = _ordered(steps[finite], values[finite])
    return found, events


def _ordered(steps: NDArray[np.int64], values: NDArray[np.float64]) -> Series:
    """The last value of each step: what was logged again after a return or a kill counts."""
    if (np.diff(steps) <= 0).any():
        steps, last = np.unique(steps[::-1], return_index=True)
        values = values[::-1][last]
    return Series(steps=steps, values=values)


def _float(number: float) -> float:
    return number if abs(number) <= _MAX_FLOAT else math.inf


def _mapping(value: object) -> Mapping[str, object]:
    """A group, in which numbers that JSON has no word for are texts."""
    found = json.loads(json.dumps(value), parse_constant=str)
    return found if isinstance(found, dict) else {}
