"""This file holds the course of a run: steps, evaluations, snapshots, the log, and a clean end when interrupted."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from nanochat.training.interruption import Interruption
from nanochat.training.lock import locked
from nanochat.training.recipe import Rhythm
from nanochat.training.retention import keep_snapshots
from nanochat.training.run_log import LogEntry, RunLog
from nanochat.training.setbacks import NotFiniteError, Setbacks, require_finite
from nanochat.training.snapshot import remove_leftovers

__all__ = ["Course"]


def _ignore(*_: int) -> None:
    """What is told nobody."""


class Course(ABC):
    """A run, whatever its steps are: it goes on from any of them, and logs, evaluates and saves at the right ones.

    Parameters
    ----------
    directory : Path
        Of the run: ``log.jsonl``, ``snapshots/``, and what `_finish` writes.

    Attributes
    ----------
    step : int
        Updates that are done.
    setbacks : Setbacks
        What the run has met.
    """

    # Whether it is evaluated before its first step, too.
    _evaluates_first = False

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.step = 0
        self.setbacks = Setbacks()
        self._interruption = Interruption()
        # Whether the log in the directory is of this run, and an entry that its disk had no space for.
        self._begun = False
        self._unwritten: LogEntry | None = None
        # The step of the last snapshot that stands in the directory.
        self._saved = -1

    def run(
        self, show: Callable[[LogEntry], None], watch: Callable[[int, int], None] = _ignore
    ) -> bool:
        """Go on to the last step; every entry is written to the log and shown.

        SIGINT and SIGTERM end the run with a snapshot, after the current step or batch of an evaluation; a second
        signal does not wait for that.

        Parameters
        ----------
        show : callable
            Is called with every entry.
        watch : callable
            Is called with how much is done and of how much, at the start of an evaluation and after every part of it.

        Returns
        -------
        bool
            Whether the last step was reached and evaluated.
        """
        # Whoever sees the log may interrupt the run.
        with self._interruption, locked(self.directory), self._log() as log, self._opened():
            self._begun = True
            remove_leftovers(self.directory)

            def report(values: Mapping[str, object]) -> None:
                self._unwritten = entry = LogEntry(step=self.step, values=dict(values))
                log.write(self.step, values)
                self._unwritten = None
                try:
                    show(entry)
                except Exception:
                    # It is no fault of the run, and costs it nothing.
                    self._save_step(log)
                    raise
                while log.untold:
                    report(log.untold[0])

            if self._unwritten is not None:
                log.write(self._unwritten.step, self._unwritten.values)
                self._unwritten = None
            elif log.first_step is None:
                report(self._head())
            # A process before this one may have ended between a line and them.
            while log.untold:
                report(log.untold[0])
            try:
                # First what a run that goes on has still to do at the step of its snapshot.
                while True:
                    self._interruption.check()
                    try:
                        # An evaluation may take longer than all the steps before it, and fail.
                        if self._is_snapshot_due(log):
                            self._save_step(log)
                        if self._is_evaluation_due(log):
                            report(self._evaluate(watch))
                            self._keep(log)
                        if self.step == self._last_step:
                            break
                        report(self._advance())
                        if decided := self._decide():
                            report(decided)
                    except NotFiniteError as error:
                        values = self._go_back(error, log)
                        log.cut(self.step)
                        report(values)
            except KeyboardInterrupt:
                self._abandon()
                self._save_step(log)
                return False
        self._finish()
        return True

    def save(self) -> None:
        """Write the snapshot of this step.

        Raises
        ------
        NotFiniteError
            If a number of it is infinite or none.
        """
        self._write_snapshot()
        self._saved = self.step

    @property
    @abstractmethod
    def _last_step(self) -> int:
        """The step with which the run ends."""

    @property
    @abstractmethod
    def _settings(self) -> Rhythm:
        """When it evaluates and saves."""

    @abstractmethod
    def _head(self) -> dict[str, object]:
        """The first line of the log."""

    @abstractmethod
    def _advance(self) -> dict[str, object]:
        """Do a step, and return what the log says of it."""

    @abstractmethod
    def _evaluate(self, watch: Callable[[int, int], None]) -> dict[str, object]:
        """What the log says of the run at this step."""

    @abstractmethod
    def _write_snapshot(self) -> None:
        """Write the snapshot of this step, unless a number of it is not finite."""

    def _log(self) -> RunLog:
        batch = self.step + self.setbacks.skipped
        kept = self.step if self._begun else -1
        return RunLog(self.directory / "log.jsonl", step=kept, batch=batch)

    def _opened(self) -> AbstractContextManager[object]:
        """What is open while it runs."""
        return nullcontext()

    def _decide(self) -> dict[str, object] | None:
        """What the log says after a step that was not known before it."""
        return None

    def _go_back(self, error: NotFiniteError, log: RunLog) -> dict[str, object]:  # noqa: ARG002
        """Go on from an earlier snapshot, and return what the log says."""
        raise error

    @abstractmethod
    def _abandon(self) -> None:
        """Forget what was begun of a step."""

    @abstractmethod
    def _finish(self) -> None:
        """Write what there is after the last step."""

    def _resume(self) -> None:
        """Take the run for that whose log and last snapshot are in the directory."""
        self._begun, self._saved = True, self.step

    def _require_finite(self, values: Mapping[str, float]) -> None:
        start = self.directory if self._saved >= 0 else None
        require_finite(values, step=self.step, start=start)

    def _is_evaluation_due(self, log: RunLog) -> bool:
        if self.step in log.evaluations:
            return False
        if self.step in (0, log.first_step) and not self._evaluates_first:
            return False
        return self._evaluates(self.step)

    def _evaluates(self, step: int) -> bool:
        return step == self._last_step or not step % self._settings.evaluate_every

    def _is_snapshot_due(self, log: RunLog) -> bool:
        if self.step in (0, log.first_step):
            return False
        return self.step == self._last_step or not self.step % self._settings.snapshot_every

    def _save_step(self, log: RunLog) -> None:
        if self._saved != self.step:
            self.save()
            self._keep(log)

    def _keep(self, log: RunLog) -> None:
        """Save what the last evaluation found best, and delete the snapshots that are not kept."""
        if log.best_step == self.step != self._saved:
            self.save()
        keep_snapshots(self.directory, self._last_step, self._settings, log)
