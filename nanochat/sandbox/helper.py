"""This file holds the helper: a small process that starts jobs, watches their limits, kills and reaps them.

It is apart from the process that trains, which is large, has threads, and must not be forked. When that one closes the
connection or ends, however it ends, the helper kills what runs and ends, too.
"""

import contextlib
import json
import os
import re
import selectors
import signal
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from nanochat.sandbox.child import Child, Layers, start
from nanochat.sandbox.job import Ending, Job, Outcome
from nanochat.sandbox.libc import libc

__all__ = ["main"]

_PR_SET_CHILD_SUBREAPER = 36
# How often the limits of what runs are looked at.
_SECONDS_BETWEEN_LOOKS = 0.02
_PIECE = 65536


@dataclass
class _Running:
    job: Job
    layers: Layers
    child: Child
    started: float
    # How many processes the machine had killed by then.
    killed: int
    written: dict[int, bytearray]
    why: Ending = "exit"
    detail: str = ""
    inner: int = 0
    statement: dict[str, int] = field(default_factory=dict)

    @property
    def program(self) -> int:
        """The process of the job itself: bubblewrap is another, whose child it is."""
        return self.inner if self.layers.bubblewrap else self.child.pid

    def understand(self) -> None:
        """Read what bubblewrap has said of its child."""
        if not self.layers.bubblewrap:
            return
        for line in bytes(self.written[self.child.status]).splitlines():
            with contextlib.suppress(ValueError):
                self.statement |= json.loads(line)
        # Once bubblewrap has reaped it, its number may be another's.
        ended = "exit-code" in self.statement
        self.inner = 0 if ended else self.statement.get("child-pid", 0)

    def kill(self, why: Ending, detail: str = "") -> None:
        """End the job and all that it started; the first reason is the one that counts."""
        if self.why == "exit":
            self.why, self.detail = why, detail
        with contextlib.suppress(ProcessLookupError):
            if self.inner:
                # Process 1 of its namespace, which ends with it.
                os.kill(self.inner, signal.SIGKILL)
            else:
                os.killpg(self.child.pid, signal.SIGKILL)
        if not self.inner:
            # It may not have become the leader of its group yet.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child.pid, signal.SIGKILL)


class _Helper:
    def __init__(self, requests: Connection, owner: int) -> None:
        self._requests = requests
        self._owner = owner
        self._selector = selectors.DefaultSelector()
        self._running: dict[int, _Running] = {}
        self._ended = False
        self._killed = _killed_by_machine()

    def run(self) -> None:
        """Serve until the connection is closed."""
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        # A signal must have a handler to wake anything.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(woken, selectors.EVENT_READ)
        self._selector.register(self._requests, selectors.EVENT_READ)
        owner = self._watch_owner()
        while not self._ended:
            for key, _ in self._selector.select(_SECONDS_BETWEEN_LOOKS if self._running else None):
                if key.fileobj is self._requests:
                    self._take()
                elif key.fd == owner:
                    self._ended = True
                elif key.fd == woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(woken, _PIECE)
                else:
                    self._read(key.data, key.fd)
            self._reap()
            for running in self._running.values():
                self._look(running)
        for running in self._running.values():
            running.kill("infrastructure")
        while self._running:
            self._reap(wait=True)

    def _watch_owner(self) -> int:
        """Listen to the end of the owner, whose forks may keep the connection open; -1 if the system cannot tell."""
        try:
            owner = os.pidfd_open(self._owner)
        except (AttributeError, OSError):
            return -1
        self._selector.register(owner, selectors.EVENT_READ)
        # If it had ended, this number may have been another's.
        self._ended = os.getppid() != self._owner
        return owner

    def _take(self) -> None:
        try:
            request = self._requests.recv()
        except (EOFError, OSError):
            self._ended = True
            return
        number, job, layers = request
        try:
            child = start(job, layers)
        except OSError as error:
            self._answer(number, Outcome(ending="infrastructure", detail=f"cannot start: {error}"))
            return
        pipes = (child.output, child.errors, child.status)
        self._running[number] = _Running(
            job,
            layers,
            child,
            time.monotonic(),
            self._killed,
            {pipe: bytearray() for pipe in pipes},
        )
        for pipe in pipes:
            self._selector.register(pipe, selectors.EVENT_READ, number)

    def _read(self, number: int, pipe: int) -> None:
        """Read what there is, to the limit."""
        running = self._running.get(number)
        if running is None or pipe not in running.written:
            return
        written = running.written[pipe]
        try:
            piece = os.read(pipe, _PIECE)
        except BlockingIOError:
            return
        if not piece:
            self._selector.unregister(pipe)
            return
        written += piece
        if pipe == running.child.status:
            running.understand()
        elif len(written) > running.job.limits.output_bytes:
            del written[running.job.limits.output_bytes :]
            running.kill("output limit")

    def _look(self, running: _Running) -> None:
        limits = running.job.limits
        passed = time.monotonic() - running.started
        ran = _cpu_seconds(running.program) if running.program else 0.0
        if ran > limits.cpu_seconds:
            running.kill("cpu limit")
        elif running.program and _threads(running.program) > limits.threads:
            running.kill("thread limit")
        elif passed > limits.wall_seconds:
            waited = _seconds_waited(running.program) if running.program else passed
            # What neither ran nor waited for a processor has slept.
            if ran + waited <= passed / 2:
                running.kill("wall limit")
            elif passed > limits.patience * limits.wall_seconds:
                detail = f"in {passed:.1f} s it had a processor for {ran:.1f} s"
                running.kill("infrastructure", detail)

    def _reap(self, *, wait: bool = False) -> None:
        numbers = {running.child.pid: number for number, running in self._running.items()}
        while self._running:
            try:
                pid, status, usage = os.wait4(-1, 0 if wait else os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            # Others are children of children, whose parents have ended.
            if pid in numbers:
                self._finish(
                    numbers[pid], os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
                )
                if wait:
                    return

    def _finish(self, number: int, code: int, cpu_seconds: float) -> None:
        running = self._running[number]
        running.kill("exit")
        for pipe in running.written:
            while pipe in self._selector.get_map() and self._filled(number, pipe):
                pass
        running.understand()
        self._drop(running)
        del self._running[number]
        child = running.child
        status = running.statement.get("exit-code", 128 - code if code < 0 else code)
        why, detail = running.why, running.detail
        if cpu_seconds > running.job.limits.cpu_seconds and why in ("exit", "wall limit"):
            why = "cpu limit"
        elif why == "exit" and (failure := _failure(running, code)):
            why, detail = "infrastructure", failure
        elif why == "exit" and status and self._short_of_memory(running):
            why, detail = "infrastructure", "something was killed for want of memory while it ran"
        self._answer(
            number,
            Outcome(
                ending=why,
                status=status,
                output=bytes(running.written[child.output]),
                errors=bytes(running.written[child.errors]),
                cpu_seconds=cpu_seconds,
                wall_seconds=time.monotonic() - running.started,
                detail=detail,
            ),
        )

    def _short_of_memory(self, running: _Running) -> bool:
        """Whether a program that failed may have failed since the machine killed it, or one that it started."""
        self._killed = _killed_by_machine()
        return self._killed > running.killed

    def _filled(self, number: int, pipe: int) -> bool:
        before = len(self._running[number].written[pipe])
        self._read(number, pipe)
        return len(self._running[number].written[pipe]) > before

    def _drop(self, running: _Running) -> None:
        for pipe in running.written:
            with contextlib.suppress(KeyError):
                self._selector.unregister(pipe)
            os.close(pipe)

    def _answer(self, number: int, outcome: Outcome) -> None:
        try:
            self._requests.send((number, outcome))
        except OSError:
            self._ended = True


def _failure(running: _Running, code: int) -> str:
    """Why the job never ran, or was killed by somebody else; "" if it did, and was not."""
    if running.layers.bubblewrap:
        # Bubblewrap says the code of a program that it has started, and of no other. A job cannot write there.
        if "exit-code" in running.statement:
            return ""
        said = bytes(running.written[running.child.errors]).decode(errors="replace").strip()
        return said.rpartition("\n")[2] or f"bubblewrap ended with {code}"
    said = bytes(running.written[running.child.status]).decode(errors="replace")
    if said:
        return said
    return "it was killed, perhaps for want of memory" if code == -signal.SIGKILL else ""


def _cpu_seconds(pid: int) -> float:
    """The time that a process has run, of all its threads; 0 where nobody tells it of another process."""
    if sys.platform != "linux":
        return 0.0
    try:
        # The kernel's number for the clock of a process (linux/posix-timers.h, CPUCLOCK_SCHED).
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return 0.0


def _killed_by_machine() -> int:
    """How many processes the kernel has killed for want of memory; 0 where nobody tells."""
    try:
        counts = Path("/proc/vmstat").read_text()
    except OSError:
        return 0
    found = re.search(r"^oom_kill (\d+)$", counts, re.MULTILINE)
    return int(found[1]) if found else 0


def _threads(pid: int) -> int:
    """How many threads a process has; 0 where nobody tells."""
    try:
        # Like every folder, it has a link for itself, one in its parent, and one in each folder in it.
        return Path(f"/proc/{pid}/task").stat().st_nlink - 2
    except OSError:
        return 0


def _seconds_waited(pid: int) -> float:
    """The longest time that a thread of a process was ready to run, but had no processor; 0 where nobody tells."""
    longest = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            longest = max(longest, int((thread / "schedstat").read_text().split()[1]))
    return longest / 1e9


def main() -> None:
    """Serve the connection whose file descriptor is the first argument, for the process that is the second."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        # What jobs leave behind becomes a child of this process, which reaps it.
        libc().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    requests = Connection(int(sys.argv[1]))
    # A job that had it could speak to the owner of this process.
    os.set_inheritable(requests.fileno(), False)
    _Helper(requests, int(sys.argv[2])).run()
