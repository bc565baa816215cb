"""This file holds the sandbox: jobs go in, outcomes come out, and nothing of a job is left."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

from nanochat.errors import SandboxError
from nanochat.sandbox.child import Layers
from nanochat.sandbox.job import Job, Outcome
from nanochat.sandbox.layers import Kind, choose
from nanochat.sandbox.workspace import workspace

__all__ = ["Sandbox"]

# How often a job is tried that the machine has failed.
_ATTEMPTS = 3
# How often a helper is started anew before that is an error.
_LOST_HELPERS = 3
_START = (
    "import sys; sys.path.insert(0, {root!r}); from nanochat.sandbox.helper import main; main()"
)


class Sandbox:
    r"""Runs programs that nobody trusts, a few at a time.

    Parameters
    ----------
    kind : "auto", "bubblewrap", "landlock", "seatbelt" or "none"
        What jobs run in. "auto" is the first of them that a canary cannot leave; "none" runs them with limits alone.
    parallel : int
        How many jobs run at once; 0 for as many as there are processors.

    Raises
    ------
    SandboxError
        If there is no such sandbox on this machine.

    Examples
    --------
    >>> with Sandbox("none") as sandbox:
    ...     outcome = sandbox.run(Job(command=("/bin/echo", "a word")))
    >>> outcome.ending, outcome.status, outcome.output
    ('exit', 0, b'a word\n')
    """

    def __init__(self, kind: Kind = "auto", *, parallel: int = 0) -> None:
        self.parallel = parallel or _processors()
        self._owner = os.getpid()
        # A handler of signals may close it while it runs something.
        self._lock = threading.RLock()
        self._closed = False
        self._number = 0
        self._opened = contextlib.ExitStack()
        self._folder = str(self._opened.enter_context(workspace("sandbox")))
        self._helper: subprocess.Popen[bytes] | None = None
        self._requests: Connection | None = None
        try:
            self._start()
            self.kind, self._layers = choose(kind, self._folder, self._try)
        except BaseException:
            self.close()
            raise

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of what is between a job and the machine."""
        layers = self._layers
        found = {
            "bubblewrap": layers.bubblewrap,
            "landlock": layers.landlock,
            "seccomp": layers.seccomp,
            "seatbelt": layers.seatbelt,
        }
        return tuple(name for name, there in found.items() if there)

    def run(self, job: Job) -> Outcome:
        """Run one job, as :meth:`run_all` does."""
        return self.run_all([job])[0]

    def run_all(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run jobs, and return their outcomes in the same order.

        What the machine has failed is run again, alone, before its outcome is "infrastructure".

        Raises
        ------
        SandboxError
            If helpers cannot be kept running.
        """
        with self._lock:
            outcomes = self._run_all(jobs, self._layers, self.parallel)
            for _ in range(_ATTEMPTS - 1):
                failed = [
                    i for i, outcome in enumerate(outcomes) if outcome.ending == "infrastructure"
                ]
                for i in failed:
                    outcomes[i] = self._run_all([jobs[i]], self._layers, 1)[0]
            return outcomes

    def close(self) -> None:
        """Kill what runs, in any thread, and leave nothing; what ran for others is an error of theirs.

        In a fork of the process that made it, this closes the fork's copy of the connection alone.
        """
        self._closed = True
        connection = self._requests
        if connection is not None and os.getpid() == self._owner:
            with (
                contextlib.suppress(OSError),
                socket.socket(fileno=os.dup(connection.fileno())) as it,
            ):
                # The helper hears of it although another thread reads from it.
                it.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._end_helper()
            self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _try(self, job: Job, layers: Layers) -> Outcome:
        return self._run_all([job], layers, 1)[0]

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            root = str(Path(__file__).parents[2])
            self._helper = subprocess.Popen(
                # Without what is installed, and what variables say, it starts in a few milliseconds.
                [
                    *(sys.executable, "-I", "-S", "-c", _START.format(root=root)),
                    *(str(theirs.fileno()), str(self._owner)),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={},
                start_new_session=True,
            )
        self._requests = Connection(ours.detach())

    def _run_all(self, jobs: Sequence[Job], layers: Layers, parallel: int) -> list[Outcome]:
        outcomes: list[Outcome | None] = [None] * len(jobs)
        for _ in range(_LOST_HELPERS):
            waiting = [i for i, outcome in enumerate(outcomes) if outcome is None]
            try:
                self._exchange(jobs, layers, parallel, waiting, outcomes)
            except (EOFError, OSError):
                continue
            else:
                return [outcome for outcome in outcomes if outcome is not None]
        raise SandboxError(
            f"the process that runs programs was killed {_LOST_HELPERS} times: look into the system's log, "
            "perhaps for want of memory"
        )

    def _exchange(
        self,
        jobs: Sequence[Job],
        layers: Layers,
        parallel: int,
        waiting: list[int],
        outcomes: list[Outcome | None],
    ) -> None:
        """Send jobs, no more than `parallel` at a time, and take their outcomes as they come."""
        connection = self._requests
        if self._closed or connection is None:
            raise SandboxError("the sandbox is closed: make another")
        if os.getpid() != self._owner:
            raise SandboxError(
                "the sandbox belongs to the process that this one is a fork of: make another here"
            )
        places: dict[int, int] = {}
        try:
            while waiting or places:
                while waiting and len(places) < parallel:
                    self._number += 1
                    places[self._number] = waiting.pop(0)
                    connection.send((self._number, jobs[places[self._number]], layers))
                number, outcome = connection.recv()
                outcomes[places.pop(number)] = outcome
        except BaseException:
            # Whatever is running ends with its helper, and an answer may have been cut in two.
            self._end_helper()
            if not self._closed:
                self._start()
            raise

    def _end_helper(self) -> None:
        if self._requests is not None:
            self._requests.close()
        if self._helper is not None:
            self._helper.wait()
            if self._helper.returncode:
                self._kill_orphans()
        self._helper = self._requests = None

    def _kill_orphans(self) -> None:
        """Kill what the helper had only just started: a job dies with its helper, but not in its first millisecond."""
        while orphans := [*self._orphans()]:
            # One that stands still starts no other while its children are looked for.
            for process in orphans:
                _signal(process, signal.SIGSTOP)
            for process in orphans:
                for child in _children(process):
                    _signal(child, signal.SIGKILL)
                _signal(process, signal.SIGKILL)

    def _orphans(self) -> Iterator[int]:
        """The processes that have this sandbox's folder among their arguments, as bubblewrap has."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self._folder.encode() in (process / "cmdline").read_bytes():
                    yield int(process.name)


def _children(process: int) -> list[int]:
    try:
        return [*map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())]
    except OSError:
        return []


def _signal(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(OSError):
        os.kill(process, number)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
