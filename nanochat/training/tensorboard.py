"""This file holds what a run writes for TensorBoard: event files in ``tensorboard`` in its directory."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from nanochat.training.run_log import LogEntry

__all__ = ["TensorBoard"]


class TensorBoard:
    """Writes every entry of a log that it is called with: numbers as scalars, all else as text; use it as a context.

    Parameters
    ----------
    run : Path
        The directory of the run.
    step : int
        That at which the run goes on: what an earlier process wrote of later ones is dropped.
    """

    def __init__(self, run: Path, step: int) -> None:
        self._directory = run / "tensorboard"
        self._step = step
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> Self:
        """Write nothing yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._close()

    def __call__(self, entry: LogEntry) -> None:
        """Write an entry, which other processes see at once."""
        if "recipe" in entry.values:
            # A run begins: of one that stood in the directory nothing is left.
            self._open(0)
        elif "went_back" in entry.values:
            self._open(entry.step + 1)
        elif self._writer is None:
            self._open(self._step + 1)
        assert self._writer is not None
        for name, value in _flat(entry.values):
            if isinstance(value, str):
                self._writer.add_text(name, value, entry.step)
            else:
                self._writer.add_scalar(name, value, entry.step)
        self._writer.flush()

    def _open(self, purged: int) -> None:
        """Begin a file whose readers drop what others say of this step and later ones."""
        self._close()
        self._writer = SummaryWriter(self._directory, purge_step=purged)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _flat(values: Mapping[str, object]) -> Iterator[tuple[str, str | float]]:
    """Each number, and each text as what Markdown leaves as it is; of a list by its place."""
    for name, value in values.items():
        if isinstance(value, list):
            yield from _flat({f"{name}/{place}": each for place, each in enumerate(value)})
        elif isinstance(value, int | float):
            yield name, value
        else:
            text = value if isinstance(value, str) else json.dumps(value, indent=2)
            yield name, "".join(f"    {line}\n" for line in text.splitlines())
