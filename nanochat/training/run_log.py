"""This file holds the log of a training run: ``log.jsonl`` in its directory, one JSON object a line."""

import json
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from nanochat.errors import SaveError
from nanochat.files import atomic_write

__all__ = ["HELD_OUT", "RunLog", "machine"]

HELD_OUT = "held_out_bits_per_byte"


class RunLog:
    """The log of a run; use it as a context.

    Parameters
    ----------
    step : int
        Lines of later steps are dropped, for they will be written again, the same; below 0, all are.

    Attributes
    ----------
    evaluations : dict of int to float
        Held-out bits per byte, by step.

    Raises
    ------
    SaveError
        At the end of the context, if anything inside it met an `OSError`.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        self._path = path
        self._step = step
        self.evaluations: dict[int, float] = {}

    def __enter__(self) -> Self:
        """Make the directory and open the file."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._open(self._step)
        except OSError as error:
            raise self._refusal(error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file, and report what its disk refused."""
        self._file.close()
        if isinstance(error, OSError) and not isinstance(error, SaveError):
            raise self._refusal(error) from error

    def write(self, step: int, values: Mapping[str, object]) -> None:
        """Add a line, which other processes see at once."""
        self._note(step, values)
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def cut(self, step: int) -> None:
        """Drop the lines of later steps."""
        self._file.close()
        self._open(step)

    def _open(self, step: int) -> None:
        lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
        kept = []
        self.evaluations.clear()
        for line in lines:
            entry = _entry(line)
            if entry["step"] <= step:
                kept.append(line)
                self._note(entry["step"], entry)
        atomic_write(self._path, "".join(kept).encode())
        self._file = self._path.open("a")

    def _note(self, step: int, values: Mapping[str, object]) -> None:
        bits = values.get(HELD_OUT)
        if isinstance(bits, float):
            self.evaluations[step] = bits

    def _refusal(self, error: OSError) -> SaveError:
        return SaveError(
            f"cannot write {self._path}: {error}; free space or pass another directory, and resume"
        )


def machine() -> dict[str, object]:
    """What numbers depend on besides the recipe."""
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _entry(line: str) -> dict[str, Any]:
    """What a line says; one that was cut short is later than all others."""
    try:
        found: dict[str, Any] = json.loads(line)
        return {**found, "step": int(found["step"])}
    except (ValueError, KeyError, TypeError, OverflowError):
        return {"step": math.inf}
