"""This file holds the start of a job: a process gives up what the job may not have, and becomes it.

Bubblewrap is started as it is, since it gives up all by itself: that shares the memory of this process until it runs,
and takes a third of the time that a fork of Python takes. What else there is, is applied by a fork of this process.
"""

import contextlib
import fcntl
import math
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from nanochat.sandbox import bubblewrap, landlock, seatbelt, seccomp
from nanochat.sandbox.job import Job
from nanochat.sandbox.libc import libc

__all__ = ["Child", "Layers", "start"]

_PR_SET_PDEATHSIG, _PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 23, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
# linux/capability.h
_CAPABILITY_VERSION = 0x20080522
# What is opened for a child is numbered from here on, below which its own descriptors are put.
_FIRST_FREE = 10


@dataclass(frozen=True, kw_only=True)
class Layers:
    """What stands between a job and the machine.

    Parameters
    ----------
    bubblewrap : str
        The path of ``bwrap``; "" to do without.
    launcher : str
        The path of the file that applies Landlock within bubblewrap; "" to do without it there.
    landlock, seccomp, seatbelt : bool
        Whether these are applied.
    """

    bubblewrap: str = ""
    launcher: str = ""
    landlock: bool = False
    seccomp: bool = False
    seatbelt: bool = False


@dataclass(frozen=True)
class Child:
    """A started process, and the ends of its pipes that are read: its outputs, and what the sandbox says of it.

    `status` gives bubblewrap's lines of JSON; otherwise the reason why the job could not be started, or nothing.
    """

    pid: int
    output: int
    errors: int
    status: int


def start(job: Job, layers: Layers) -> Child:
    """Start a job; whoever calls must be a process of a single thread, and wait for the child.

    Raises
    ------
    OSError
        If there is no room for another process.
    """
    with contextlib.ExitStack() as opened:
        reads, writes = [], []
        for _ in range(3):
            read, write = (_high(descriptor) for descriptor in os.pipe())
            opened.callback(os.close, write)
            reads.append(read)
            writes.append(write)
        begin = _spawn if layers.bubblewrap else _fork
        try:
            pid = begin(job, layers, opened, *writes)
        except OSError:
            for read in reads:
                os.close(read)
            raise
    for read in reads:
        os.set_blocking(read, False)
    return Child(pid, *reads)


def _high(descriptor: int) -> int:
    high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
    os.close(descriptor)
    return high


def _spawn(
    job: Job, layers: Layers, opened: contextlib.ExitStack, output: int, errors: int, status: int
) -> int:
    """Start bubblewrap."""
    places = {1: output, 2: errors, bubblewrap.STATUS: status}
    launcher = layers.launcher if layers.landlock else ""
    if launcher:
        # Where bubblewrap mounts it, it is still the same file.
        places[bubblewrap.RULES] = _rules(job, launcher)
        opened.callback(os.close, places[bubblewrap.RULES])
    if layers.seccomp:
        read, write = os.pipe()
        # A pipe holds 64 KiB, a filter takes two or three.
        os.write(write, seccomp.for_process(seccomp.program(may_spawn=job.may_spawn), 1))
        os.close(write)
        places[bubblewrap.FILTER] = _high(read)
        opened.callback(os.close, places[bubblewrap.FILTER])
    command = bubblewrap.arguments(
        layers.bubblewrap, job, launcher=launcher, filtered=layers.seccomp
    )
    copies = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in places.items()]
    with _limited(job):
        return os.posix_spawn(
            command[0],
            command,
            # Bubblewrap's own environment can be read inside, as that of process 1.
            {},
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), *copies],
            setsid=True,
            setsigdef=[signal.SIGINT, signal.SIGPIPE],
        )


@contextlib.contextmanager
def _limited(job: Job) -> Iterator[None]:
    """Lower the limits of this process, which those that it starts inherit, and which a filter lets nobody raise."""
    before = {kind: resource.getrlimit(kind) for kind in _bounds(job)}
    try:
        for kind, bound in _bounds(job).items():
            hard = before[kind][1]
            resource.setrlimit(kind, (_lower(bound, hard), hard))
        yield
    finally:
        for kind, limits in before.items():
            resource.setrlimit(kind, limits)


def _bounds(job: Job) -> dict[int, int]:
    bounds = {
        resource.RLIMIT_FSIZE: job.limits.file_bytes,
        resource.RLIMIT_NOFILE: job.limits.open_files,
        resource.RLIMIT_CORE: 0,
        # What most systems give, so that it is the same on all of them how deep a program can go.
        resource.RLIMIT_STACK: 8 * 2**20,
    }
    # macOS refuses it.
    if sys.platform == "linux":
        bounds[resource.RLIMIT_AS] = job.limits.memory_bytes
    return bounds


def _lower(bound: int, hard: int) -> int:
    return bound if hard == resource.RLIM_INFINITY else min(bound, hard)


def _fork(
    job: Job, layers: Layers, opened: contextlib.ExitStack, output: int, errors: int, status: int
) -> int:
    """Start the job itself."""
    code = seccomp.program(may_spawn=job.may_spawn) if layers.seccomp else b""
    rules = -1
    if layers.landlock:
        rules = _rules(job)
        opened.callback(os.close, rules)
    helper = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        _die_with(helper)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, target in ((nothing, 0), (output, 1), (errors, 2)):
            os.dup2(descriptor, target)
        folder = job.writable or "/"
        os.chdir(folder)
        command = seatbelt.arguments(job) if layers.seatbelt else list(job.command)
        _give_up(job, layers, rules, code)
        # Bubblewrap adds its folder to the environment of every job, and a program should see the same everywhere.
        os.execve(command[0], command, {"PWD": folder, **dict(job.environment)})
    except BaseException as error:
        os.write(status, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(127)


def _give_up(job: Job, layers: Layers, rules: int, code: bytes) -> None:
    # The time is watched from outside, to fractions of a second. This is for the day when nobody watches.
    bounds = {resource.RLIMIT_CPU: math.ceil(job.limits.cpu_seconds) + 1, **_bounds(job)}
    for kind, bound in bounds.items():
        bound = _lower(bound, resource.getrlimit(kind)[1])
        resource.setrlimit(kind, (bound, bound))
    if sys.platform != "linux":
        return
    if layers.landlock:
        _drop_capabilities()
    libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if layers.seccomp:
        seccomp.install(seccomp.for_process(code, os.getpid()))
    if layers.landlock:
        landlock.restrict(rules)


def _rules(job: Job, *more: str) -> int:
    readable = (job.command[0], *job.readable, *more)
    return _high(
        landlock.ruleset(readable=readable, writable=[job.writable] if job.writable else [])
    )


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise ProcessLookupError("the process that started this one has ended")


def _drop_capabilities() -> None:
    """Let root start programs that may do no more than an ordinary user with root's files.

    A program that root starts has what is in the bounding set, and what is inheritable, which in some containers is
    much; one that another user starts has what is ambient.
    """
    number = 0
    # Who may not drop them has none to lose.
    while libc().prctl(_PR_CAPBSET_READ, number, 0, 0, 0) >= 0:
        libc().prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
        number += 1
    libc().prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    if libc().capset(struct.pack("<Ii", _CAPABILITY_VERSION, 0), bytes(24)):
        raise PermissionError("capabilities cannot be given up")
