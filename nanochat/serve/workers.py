"""This file holds several servers on one machine: a parent that starts them, starts them again, and ends them.

Each is a process of its own at a port of its own, behind a balancer. One port for all would be simpler to ask, but the
system would then choose by chance who answers: what a worker has read would rarely be asked again, `/ready` and
`/metrics` would be anybody's, and connections that wait for a worker that has died would be lost with it.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.errors import InputError, counted
from nanochat.serve.nodes import divide, numa_nodes
from nanochat.serve.notify import VARIABLE, notify

__all__ = ["run_workers"]

# Between the death of a worker and the next try: first, and at most.
_SOON, _LATER = 0.5, 30.0


@dataclass(eq=False, kw_only=True)
class _Worker:
    number: int
    cores: Sequence[int]
    command: Sequence[str]
    told: socket.socket
    process: asyncio.subprocess.Process | None = None
    # Whether it is, and whether it ever was.
    is_ready: bool = False
    has_been_ready: bool = False
    seconds: float = field(default=_SOON)


def run_workers(
    words: Sequence[str], *, workers: int, port: int, say: Callable[[str], None]
) -> int:
    """Run servers until a signal ends them; the exit code.

    Parameters
    ----------
    words : sequence of str
        The command line of one of them, without the program.
    port : int
        Of the first; the next ones have those that follow, or any if it is 0.
    say : callable
        Takes lines for people.

    Raises
    ------
    InputError
        If there are more than cores, or this is not Linux.
    """
    if sys.platform != "linux":
        raise InputError(
            f"workers={workers}: only Linux says what memory is near to which cores: pass 1"
        )
    nodes = numa_nodes()
    shares = divide(nodes, workers)
    if workers > len(nodes):
        say(
            f"{workers} workers for {counted(len(nodes), 'node')} of memory share cores: one process with all of them "
            "is faster, and knows what all have read"
        )
    return asyncio.run(_Parent(words, shares, port, say).run())


class _Parent:
    """One life of several servers."""

    def __init__(
        self,
        words: Sequence[str],
        shares: Sequence[Sequence[int]],
        port: int,
        say: Callable[[str], None],
    ) -> None:
        self._say = say
        self._ending = asyncio.Event()
        self._is_told = False
        self._workers = [
            _Worker(
                number=number,
                cores=cores,
                command=_with_port(words, port + number if port else 0),
                told=socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
            )
            for number, cores in enumerate(shares)
        ]

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._end)
        with contextlib.ExitStack() as stack:
            for worker in self._workers:
                stack.enter_context(worker.told)
                # An abstract name, which the system chooses: it is nobody else's, and gone with the process.
                worker.told.bind("")
                loop.add_reader(worker.told, self._was_told, worker)
                stack.callback(loop.remove_reader, worker.told)
            codes = await asyncio.gather(*map(self._keep, self._workers))
        return next((code if code > 0 else 1 for code in codes if code), 0)

    async def _keep(self, worker: _Worker) -> int:
        """Start a worker, and again whenever it ends by itself; the exit code of the last."""
        while True:
            worker.is_ready = False
            try:
                code = await self._live(worker)
                how = f"has ended with {code}"
            except OSError as error:
                code, how = 1, f"could not be started ({error})"
                if not worker.has_been_ready:
                    self._say(f"worker {worker.number} {how}")
            if self._ending.is_set():
                return code
            if not worker.has_been_ready:
                # It has said why, and would say so again.
                self._end()
                return code
            self._say(f"worker {worker.number} {how}, and is started again")
            worker.seconds = _SOON if worker.is_ready else min(2 * worker.seconds, _LATER)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), worker.seconds)
                return 0

    async def _live(self, worker: _Worker) -> int:
        """One life of a worker; its exit code."""
        name = worker.told.getsockname()[1:].decode()
        worker.process = process = await asyncio.create_subprocess_exec(
            *_python(),
            "-m",
            "nanochat.serve.pinned",
            str(os.getpid()),
            ",".join(map(str, worker.cores)),
            *worker.command,
            env={**os.environ, VARIABLE: f"@{name}"},
            # A signal from the keyboard is the parent's to pass on, once.
            process_group=0,
        )
        if self._ending.is_set():
            # It came while the process was being started.
            process.terminate()
        return await process.wait()

    def _was_told(self, worker: _Worker) -> None:
        if worker.told.recv(100) != b"READY=1":
            return
        worker.is_ready = worker.has_been_ready = True
        if not self._is_told and all(each.is_ready for each in self._workers):
            self._is_told = True
            notify("READY=1")
            self._say(f"{counted(len(self._workers), 'worker')} take requests")

    def _end(self) -> None:
        if not self._ending.is_set():
            self._ending.set()
            notify("STOPPING=1")
        for worker in self._workers:
            if worker.process is not None and worker.process.returncode is None:
                worker.process.terminate()


def _python() -> list[str]:
    """Python as it runs here: the modules of the current folder are a worker's only if they are the parent's."""
    is_here = Path(sys.path[0]).resolve() == Path.cwd()
    return [sys.executable] if is_here else [sys.executable, "-P"]


def _with_port(words: Sequence[str], port: int) -> list[str]:
    """The command of one worker: the last word on each option holds."""
    end = words.index("--") if "--" in words else len(words)
    own = ["--workers", "1", "--port", str(port)]
    return [*_python(), "-m", "nanochat", *words[:end], *own, *words[end:]]
