"""This file holds the batches of a run as it comes to them, which other processes may prepare ahead of it.

A batch is a pure function of its number, so it does not matter where it is prepared, and a run that goes on, goes back
or comes to another phase begins to read there.
"""

import signal
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from torch.utils.data import DataLoader, Dataset

from nanochat.data.batch import Batch, Layout
from nanochat.data.mixture import Mixture
from nanochat.errors import TrainingError

__all__ = ["Prefetched"]

# Batches that each process has ready.
_AHEAD = 4
_ENDLESS = 2**62


class Prefetched:
    """The batches of some data, of which the next ones are prepared by so many processes; with 0, here."""

    def __init__(self, source: Mixture, workers: int) -> None:
        self._source = source
        self._workers = workers
        self._following: tuple[int, int, Layout, int] | None = None
        self._batches: Iterator[Batch] = iter(())

    def __enter__(self) -> Self:
        """Start nothing yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the processes, and say of one that has died what can be done.

        Torch tells of that by an exception wherever the run is.
        """
        self._following, self._batches = None, iter(())
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
            reason = str(error).partition("\n")[0].rstrip(".")
            raise TrainingError(
                f"a process that prepares batches died, perhaps for want of memory ({reason}): go on with --resume, or "
                "begin again with --set run.workers=0"
            ) from error

    def batch(self, step: int, batch_size: int, layout: Layout, *, order: int = 0) -> Batch:
        """Return the batch of one training step; see :meth:`nanochat.data.mixture.Mixture.batch`."""
        if not self._workers:
            return self._source.batch(step, batch_size, layout, order=order)
        if self._following != (step, batch_size, layout, order):
            self._batches = self._begin(step, _Numbered(self._source, batch_size, layout, order))
        self._following = (step + 1, batch_size, layout, order)
        return next(self._batches)

    def _begin(self, step: int, batches: "_Numbered") -> Iterator[Batch]:
        # Those of before end first.
        self._batches = iter(())
        with warnings.catch_warnings():
            # They wait for a disk, mostly, and may be more than there are cores.
            warnings.filterwarnings("ignore", "This DataLoader will create")
            loader = DataLoader(
                batches,
                batch_size=None,
                sampler=range(step, _ENDLESS),
                num_workers=self._workers,
                prefetch_factor=_AHEAD,
                collate_fn=_unchanged,
                worker_init_fn=_ignore_signals,
            )
            return iter(loader)


class _Numbered(Dataset[Batch]):
    """The batches by their numbers."""

    def __init__(self, source: Mixture, batch_size: int, layout: Layout, order: int) -> None:
        self._source = source
        self._batch_size = batch_size
        self._layout = layout
        self._order = order

    def __getitem__(self, step: int) -> Batch:
        return self._source.batch(step, self._batch_size, self._layout, order=self._order)


def _unchanged(found: Any) -> Any:
    return found


def _ignore_signals(_: int) -> None:
    """What ends a run is sent to all its processes, and the run goes on for a step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
