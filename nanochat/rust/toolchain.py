"""This file holds the Rust compiler of this machine: where it is, what it is, and what it needs to read."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nanochat.errors import BackendError
from nanochat.sandbox.job import SYSTEM_LIBRARIES

__all__ = ["Toolchain", "find_toolchain"]

# The first release of rustc that knows an edition.
_EDITIONS = {"2015": (1, 0), "2018": (1, 31), "2021": (1, 56), "2024": (1, 85)}
_INSTALL = "install Rust, by https://rustup.rs or 'apt install rustc'"
_SECONDS = 60


@dataclass(frozen=True)
class Toolchain:
    """A compiler.

    Parameters
    ----------
    rustc : str
        The compiler itself. What rustup puts on the PATH is another program, which starts it, and takes longer than it.
    linker : str
        The path of ``cc``, no link.
    sysroot : str
        The folder of its libraries.
    version : str
        As it says itself, such as "rustc 1.95.0 (59807616e 2026-04-14)".
    """

    rustc: str
    linker: str
    sysroot: str
    version: str

    @property
    def readable(self) -> tuple[str, ...]:
        """What compiler and linker read."""
        programs = ("/usr/bin", "/usr/libexec", "/etc/alternatives")
        there = (path for path in programs if Path(path).exists())
        return (*SYSTEM_LIBRARIES, *there, self.sysroot)

    def require_edition(self, edition: str) -> None:
        """Raise an error if this compiler does not know an edition of the language.

        Raises
        ------
        BackendError
            With both versions.
        """
        needed = _EDITIONS.get(edition)
        if needed is None:
            raise BackendError(
                f"there is no edition {edition!r} of Rust: one of {', '.join(_EDITIONS)}"
            )
        if self.release < needed:
            raise BackendError(
                f"{self.version} does not know edition {edition}, which needs rustc "
                f"{needed[0]}.{needed[1]} or newer: {_INSTALL}"
            )

    @property
    def asks_for_itself(self) -> bool:
        """Whether it dies if it is not told which file it is, as old ones do."""
        # Later ones come with a linker of their own, which must not be told that it were the compiler.
        return self.release < (1, 80)

    @property
    def release(self) -> tuple[int, int]:
        """Its version in numbers."""
        found = re.match(r"rustc (\d+)\.(\d+)", self.version)
        return (int(found[1]), int(found[2])) if found else (0, 0)


@cache
def find_toolchain() -> Toolchain:
    """The compiler that the PATH leads to.

    Raises
    ------
    BackendError
        If there is none, or nothing to link with.
    """
    program = shutil.which("rustc")
    if program is None:
        raise BackendError(
            f"there is no rustc on the PATH, by which programs are judged: {_INSTALL}"
        )
    linker = shutil.which("cc")
    if linker is None:
        raise BackendError(
            "there is no cc on the PATH, by which rustc links programs: install one, for example by 'apt install gcc'"
        )
    sysroot = _ask(program, "--print", "sysroot")
    rustc = Path(sysroot, "bin", "rustc")
    version = _ask(program, "--version")
    return Toolchain(str(rustc), os.path.realpath(linker), sysroot, version)


def _ask(*command: str) -> str:
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise BackendError(f"{' '.join(command)} failed: {said.strip()}: {_INSTALL}") from error
    return answer.stdout.strip()
