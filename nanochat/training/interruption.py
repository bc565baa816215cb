"""This file holds what SIGINT and SIGTERM do to work that must end between two pieces of itself, not within one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

__all__ = ["Interruption"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Notes both signals while it is entered, in the main thread; elsewhere no signal arrives.

    The first waits for `check`. Another one ends a block of `abandonable` at once, for a piece may take minutes; what
    stands outside such blocks, as all writing does, is never cut.
    """

    def __init__(self) -> None:
        self._requested = self._may_abandon = False
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        """Take the signals over."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._note) for s in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the signals back, and forget those that came."""
        self._requested = False
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was a signal."""
        if self._requested:
            raise KeyboardInterrupt

    @contextmanager
    def abandonable(self) -> Iterator[None]:
        """A block that a second signal ends with KeyboardInterrupt; nothing in it may be half done."""
        self._may_abandon = True
        try:
            yield
        except Exception:
            # A terminal sends Ctrl-C to the compiler that this process waits for, too, and its failure says no more.
            self.check()
            raise
        finally:
            self._may_abandon = False

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._requested and self._may_abandon:
            # What cleans up after the block is not to be cut again.
            self._may_abandon = False
            raise KeyboardInterrupt
        self._requested = True
