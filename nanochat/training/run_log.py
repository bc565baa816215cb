"""This file holds the log of a training run: ``log.jsonl`` in its directory, one JSON object a line."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nanochat.errors import SaveError
from nanochat.files import atomic_write
from nanochat.training.anomalies import Anomalies

__all__ = ["HELD_OUT", "LogEntry", "RunLog"]

HELD_OUT = "held_out_bits_per_byte"


def _held_out(values: Mapping[str, object]) -> object:
    return values.get(HELD_OUT)


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """One line of the log; what was not measured at this step is absent."""

    step: int
    values: dict[str, object]


class RunLog:
    """The log of a run; use it as a context.

    Parameters
    ----------
    step, batch : int
        The run has done that step, and reads that batch next: lines of later ones are dropped, for they will be written
        again, the same. Below 0, all are.
    cost : callable
        What the values of a line say of how bad the model is, a float, if they are of an evaluation; by default
        held-out bits per byte.

    Attributes
    ----------
    evaluations : dict of int to float
        The cost at each evaluation, by step.
    first_step : int, optional
        That of the first line.
    untold : list of dict
        Anomalies of the last line that the log does not tell yet.

    Raises
    ------
    SaveError
        If the file cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        *,
        step: int,
        batch: int,
        cost: Callable[[Mapping[str, object]], object] = _held_out,
    ) -> None:
        self._cost = cost
        self._path = path
        self._step = step
        self._batch = batch
        self.first_step: int | None = None
        self.evaluations: dict[int, float] = {}
        self.untold: list[dict[str, object]] = []

    def __enter__(self) -> Self:
        """Open the file."""
        self._open(self._step, self._batch)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._file.close()

    @property
    def best_step(self) -> int:
        """The step of the best evaluation; -1 without one."""
        return min(self.evaluations, key=self.evaluations.__getitem__, default=-1)

    def write(self, step: int, values: Mapping[str, object]) -> None:
        """Add a line, which other processes see at once."""
        self._note(step, values)
        line = memoryview((json.dumps({"step": step, **values}) + "\n").encode())
        with self._refusals():
            while line:
                # A disk that is nearly full takes a part.
                line = line[self._file.write(line) :]

    def cut(self, step: int) -> None:
        """Drop the lines of later steps."""
        self._file.close()
        self._open(step, math.inf)

    def _open(self, step: int, batch: float) -> None:
        with self._refusals():
            lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
        kept = []
        self.evaluations.clear()
        self.first_step = None
        self.untold = []
        self._anomalies = Anomalies()
        for line in lines:
            entry = _entry(line)
            if entry["step"] < step or (entry["step"] == step and entry["left_out"] < batch):
                kept.append(line)
                self._note(entry["step"], entry)
        with self._refusals():
            atomic_write(self._path, "".join(kept).encode())
            # What waited in a buffer would be written, or refused, when the file is closed.
            self._file = self._path.open("ab", buffering=0)

    def _note(self, step: int, values: Mapping[str, object]) -> None:
        if self.first_step is None:
            self.first_step = step
        cost = self._cost(values)
        if isinstance(cost, float):
            self.evaluations[step] = cost
        if "anomaly" in values:
            self.untold = [each for each in self.untold if each["anomaly"] != values["anomaly"]]
        else:
            self.untold = self._anomalies.see(step, values)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Report what the operating system refuses in the block."""
        try:
            yield
        except SaveError:
            raise
        except OSError as error:
            raise SaveError(
                f"cannot write {self._path}: {error.strerror or error}; free space or pass another directory, and "
                "resume"
            ) from error


def _entry(line: str) -> dict[str, Any]:
    """What a line says, and the last batch that it leaves out; one that was cut short is later than all others."""
    try:
        found: dict[str, Any] = json.loads(line)
        left_out = found.get("skipped_batch", found.get("last_batch", -1))
        return {**found, "step": int(found["step"]), "left_out": int(left_out)}
    except (ValueError, KeyError, TypeError, OverflowError):
        return {"step": math.inf}
