"""This file holds what users are told while they wait for kernels to be compiled, through `logging`.

Numba broadcasts an event when it compiles a function, and none when it loads one from the cache or calls it: so
listening costs nothing while kernels run. The two records have an attribute ``progress``, "begin" and "end", for a
program that would rather show a moving sign between them.
"""

import logging
import time

from numba.core.event import Event, Listener, register

__all__ = ["Progress", "end_wait"]

_LOG = logging.getLogger(__name__)

# Seconds of compiling that nobody asks about.
_INSTANT = 0.3


class Progress(Listener):
    """Counts the functions of one package that are compiled, and says so when they take longer than an instant.

    Parameters
    ----------
    package : str
        The start of the functions' modules: the program may compile functions of its own.
    instant : float
        Seconds of compiling that are not worth a word.
    """

    def __init__(self, package: str, *, instant: float = _INSTANT) -> None:
        self._package = package
        self._instant = instant
        # Kernels that are being compiled, one inside the other; Numba's lock lets one thread compile at a time.
        self._depth = 0
        self._start = 0.0
        self._count, self._seconds, self._begun = 0, 0.0, False

    def on_start(self, event: Event) -> None:
        """Called by Numba before it compiles."""
        # What a kernel calls is compiled within it, and belongs to it.
        if self._depth:
            self._depth += 1
        elif _module(event).startswith(self._package):
            self._depth = 1
            self._start = time.perf_counter()
            self._say_begin()

    def on_end(self, event: Event) -> None:
        """Called by Numba when it has compiled, or failed to."""
        if not self._depth:
            return
        self._depth -= 1
        if not self._depth:
            seconds = time.perf_counter() - self._start
            self._count += 1
            self._seconds += seconds
            _LOG.debug("compiled %s in %.2f s", _name(event), seconds)

    def end_wait(self) -> None:
        """Say that the wait is over, if there was one that has been announced."""
        if not self._count or self._depth:
            return
        if self._begun:
            _LOG.info(
                "compiled %d kernels in %.1f s",
                self._count,
                self._seconds,
                extra={"progress": "end"},
            )
        self._count, self._seconds, self._begun = 0, 0.0, False

    def _say_begin(self) -> None:
        if self._seconds >= self._instant and not self._begun:
            self._begun = True
            _LOG.info(
                "compiling kernels for this processor, once: usually under 20 seconds ...",
                extra={"progress": "begin"},
            )


def end_wait() -> None:
    """Say that kernels have been compiled, if some were for the result that is ready now."""
    _PROGRESS.end_wait()


def _module(event: Event) -> str:
    return str(event.data["dispatcher"].py_func.__module__)


def _name(event: Event) -> str:
    return f"{_module(event).rpartition('.')[2]}.{event.data['dispatcher'].py_func.__name__}"


_PROGRESS = Progress(__package__)
register("numba:compile", _PROGRESS)  # type: ignore[no-untyped-call]
