"""This file holds what is asked of a sandbox, a job, and what it answers, an outcome."""

import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nanochat.errors import ConfigError

__all__ = ["SYSTEM_LIBRARIES", "Ending", "Job", "Limits", "Outcome"]

# Where a program that is linked dynamically finds its loader and its libraries.
SYSTEM_LIBRARIES = tuple(
    path
    for path in ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")
    if Path(path).exists()
)

# The helper takes the limit upon itself for a moment, and has to live with it.
_LEAST_MEMORY = 64 * 2**20

Ending = Literal[
    "exit", "cpu limit", "wall limit", "output limit", "thread limit", "infrastructure"
]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much of the machine one job may take.

    Parameters
    ----------
    cpu_seconds : float
        Time on a processor. This is what ends a program that does not end, for it depends on no other program.
    wall_seconds : float
        Time that passes, at least four times `cpu_seconds`: it ends a program that sleeps, which neither ran nor wanted
        to run for half of it.
    patience : float
        How many times `wall_seconds` a program may take that had no processor, so that a busy machine changes no
        outcome. Then nothing is known of it: its outcome is "infrastructure". A program's threads that wait for one
        another do not get there: they may run for a quarter of the time, so none waits for more.
    memory_bytes : int
        Address space of each process.
    output_bytes : int
        Of each of the two outputs; a program that writes more is killed.
    file_bytes : int
        Of each file that it writes.
    open_files : int
        Files open at once.
    threads : int
        Of the program's own process. A kernel has but so many for all, and those that sleep cost no time.
    """

    cpu_seconds: float = 2.0
    wall_seconds: float = 10.0
    patience: float = 10.0
    memory_bytes: int = 512 * 2**20
    output_bytes: int = 64 * 2**10
    file_bytes: int = 64 * 2**20
    open_files: int = 256
    threads: int = 256

    def __post_init__(self) -> None:
        if self.wall_seconds < 4 * self.cpu_seconds:
            raise ConfigError(
                f"{self.wall_seconds} s on the wall are too few for {self.cpu_seconds} s on a processor: "
                "give four times as many, or a busy machine looks like a program that sleeps"
            )
        if self.memory_bytes < _LEAST_MEMORY:
            raise ConfigError(
                f"{self.memory_bytes} bytes of memory are too few to start a program: give {_LEAST_MEMORY} or more"
            )


@dataclass(frozen=True, kw_only=True)
class Job:
    """One program to run.

    Parameters
    ----------
    command : tuple of str
        The program's absolute path, and its arguments. Its standard input is empty.
    readable : tuple of str
        Absolute paths of the files and folders that it may read and execute, beside itself. Nothing else is there.
    writable : str
        A folder in which it may write, and where it starts; "" for none.
    links : tuple of (str, str)
        Symbolic links that a program wants to find, and what they say, where a sandbox has no such place otherwise.
    environment : tuple of (str, str)
        All of its environment.
    may_spawn : bool
        Whether it may start processes and change the modes of files, as a compiler must, which starts a linker. It
        should be a program that is trusted, with input that is not.
    limits : Limits
        What it may take.
    """

    command: tuple[str, ...]
    readable: tuple[str, ...] = ()
    writable: str = ""
    links: tuple[tuple[str, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    may_spawn: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        paths = [*self.command[:1], *self.readable, *filter(None, [self.writable])]
        for path in paths or [""]:
            if not path.startswith("/"):
                raise ConfigError(
                    f"{path!r} is no absolute path of a program, file or folder: give one"
                )
        for text in (*self.command, *paths, *itertools.chain(*self.environment)):
            if not _can_be_said(text):
                raise ConfigError(
                    f"{text!r} cannot be said to a program: leave out NUL and halves of characters"
                )


def _can_be_said(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended, and what it wrote.

    Parameters
    ----------
    ending : str
        "exit" if it ended by itself, by a signal, too; the limit at which it was killed; or "infrastructure": the
        machine failed, not the program, about which nothing is known.
    status : int
        As a shell says it: the exit code, or 128 and the number of the signal.
    output, errors : bytes
        The first `Limits.output_bytes` of what it wrote. May hold anything: escape it before it is shown.
    cpu_seconds, wall_seconds : float
        What it took, the start of the sandbox included.
    detail : str
        What failed, if that was the machine.
    """

    ending: Ending
    status: int = 0
    output: bytes = b""
    errors: bytes = b""
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    detail: str = ""
