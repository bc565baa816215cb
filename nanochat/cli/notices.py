"""This file holds how the library's log reaches the screen: lines on standard error, and a moving sign for a wait."""

import logging
import sys
from typing import TYPE_CHECKING

from nanochat.cli.output import end_line

if TYPE_CHECKING:
    from rich.live import Live

__all__ = ["NoticeHandler"]


class NoticeHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes records to standard error.

    On a terminal, a record whose attribute ``progress`` is "begin" moves until the next record comes.
    """

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._sign: Live | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        self._stop()
        terminal = self.stream.isatty()
        if terminal:
            end_line()
        if terminal and getattr(record, "progress", "") == "begin":
            self._start(self.format(record))
        else:
            super().emit(record)

    def close(self) -> None:
        """Give the terminal back as it was."""
        self._stop()
        super().close()

    def _start(self, text: str) -> None:
        # Late: it takes longer to import than a command that compiles nothing takes to fail.
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner

        # The streams stay as they are: a result that comes early still goes to standard output.
        self._sign = Live(
            Spinner("dots", text),
            console=Console(file=self.stream),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._sign.start()

    def _stop(self) -> None:
        if self._sign is not None:
            self._sign.stop()
            self._sign = None
