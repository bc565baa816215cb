"""This file holds the compiling of many sources at once, each with an answer of its own.

Starting the compiler takes far longer than a small function, so sources are modules of one crate. The compiler stops
after each of its phases, so errors come in rounds: the modules that they point at are taken out, and the rest is tried
again. What cannot be told apart in that way is compiled in smaller groups, and in the end alone.
"""

import itertools
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from nanochat.errors import SandboxError
from nanochat.rust.diagnostics import findings
from nanochat.rust.toolchain import Toolchain
from nanochat.rust.verdict import Verdict
from nanochat.sandbox.job import Job, Limits, Outcome
from nanochat.sandbox.sandbox import Sandbox

__all__ = ["ENTRY", "Compiler", "Failure", "Program", "Source"]

# The function of each source that a program runs.
ENTRY = "nanochat_entry"

_GROUP = 64
# Fewer are not worth a start of the compiler.
_LEAST = 8
# Into how many parts a group is cut of which one source, nobody knows which, holds up all.
_PARTS = 8
# A group takes no more than one source may take, so that none passes in company that fails alone.
_LIMITS = Limits(
    cpu_seconds=3,
    wall_seconds=15,
    memory_bytes=3 * 2**30,
    output_bytes=8 * 2**20,
    file_bytes=2**28,
    open_files=1024,
)
_FLAGS = (
    "--error-format=json",
    "--json=diagnostic-short",
    "--crate-type=bin",
    "--crate-name=main",
    "-Awarnings",
    # What is forbidden cannot be allowed again by the source.
    "-Funsafe-code",
    # As in a debug build, so that an overflow is a panic.
    "-Coverflow-checks=on",
    "-Cdebug-assertions=on",
    "-Cdebuginfo=0",
    # Nine tenths of a small program are what the standard library has for debuggers.
    "-Cstrip=debuginfo",
    "-Copt-level=0",
    "-Ccodegen-units=4",
)
# With less than this free in the folder, it is the machine that failed.
_LEAST_ROOM = 2**24


class Source(NamedTuple):
    """The text of a module, the edition of its language, and whether it must be a crate of its own."""

    text: str
    edition: str
    alone: bool


@dataclass(frozen=True)
class Failure:
    """Why a source does not compile."""

    verdict: Verdict
    message: str


@dataclass(frozen=True)
class Program:
    """A program on disk, and the argument by which it runs one source's function; "" if it was only checked."""

    path: str
    argument: str


class Compiler:
    """Compiles sources in a sandbox.

    Parameters
    ----------
    toolchain : Toolchain
        What compiles.
    sandbox : Sandbox
        Where.
    folder : Path
        Where programs are put. They lie there until :meth:`clear`.
    """

    def __init__(self, toolchain: Toolchain, sandbox: Sandbox, folder: Path) -> None:
        self._toolchain = toolchain
        self._sandbox = sandbox
        self._folder = folder
        self._numbers = itertools.count()

    def check(self, sources: Sequence[Source]) -> list[Failure | Program]:
        """Type-check sources."""
        return self._compile(sources, "metadata")

    def build(self, sources: Sequence[Source]) -> list[Failure | Program]:
        """Build programs that run the function `ENTRY` of each source."""
        return self._compile(sources, "link")

    def clear(self) -> None:
        """Delete all programs."""
        for folder in self._folder.iterdir():
            shutil.rmtree(folder, ignore_errors=True)

    def _compile(
        self, sources: Sequence[Source], emit: Literal["metadata", "link"]
    ) -> list[Failure | Program]:
        found: dict[int, Failure | Program] = {}
        groups = self._grouped(sources)
        while groups:
            crates = [self._crate(group, sources) for group in groups]
            outcomes = self._sandbox.run_all([self._job(crate, emit) for crate in crates])
            groups = []
            for crate, outcome in zip(crates, outcomes, strict=True):
                answers = crate.answers(outcome)
                found |= answers
                rest = [i for i in crate.group if i not in answers]
                if not any(isinstance(answer, Program) for answer in answers.values()):
                    shutil.rmtree(crate.folder, ignore_errors=True)
                size = max(1, len(rest) if answers else math.ceil(len(rest) / _PARTS))
                groups += [rest[i : i + size] for i in range(0, len(rest), size)]
        return [found[i] for i in range(len(sources))]

    def _grouped(self, sources: Sequence[Source]) -> list[list[int]]:
        groups = [[i] for i, source in enumerate(sources) if source.alone]
        for edition in sorted({source.edition for source in sources}):
            together = [i for i, s in enumerate(sources) if s.edition == edition and not s.alone]
            if together:
                even = math.ceil(len(together) / self._sandbox.parallel)
                size = min(_GROUP, max(_LEAST, even))
                groups += [together[i : i + size] for i in range(0, len(together), size)]
        return groups

    def _crate(self, group: list[int], sources: Sequence[Source]) -> "_Crate":
        folder = self._folder / str(next(self._numbers))
        try:
            folder.mkdir()
            return _Crate(folder, group, sources)
        except OSError as error:
            raise SandboxError(
                f"cannot write sources into {folder}: {error}; free some room there, or set TMPDIR to another folder"
            ) from error

    def _job(self, crate: "_Crate", emit: str) -> Job:
        toolchain = self._toolchain
        command = [toolchain.rustc, *_FLAGS, f"--edition={crate.edition}", f"--emit={emit}"]
        command += [f"--sysroot={toolchain.sysroot}", f"-Clinker={toolchain.linker}", "main.rs"]
        return Job(
            command=tuple(command),
            readable=toolchain.readable,
            writable=str(crate.folder),
            environment=(
                ("PATH", "/usr/bin"),
                ("TMPDIR", str(crate.folder)),
                # Without /proc, no program knows the folder that it lies in, beside which its libraries are.
                ("LD_LIBRARY_PATH", f"{toolchain.sysroot}/lib"),
            ),
            may_spawn=True,
            links=(("/proc/self/exe", toolchain.rustc),) if toolchain.asks_for_itself else (),
            limits=_LIMITS,
        )


class _Crate:
    """Sources that are compiled together.

    Each is named by its number in the group, so that nothing in it depends on what else there is if it is alone.
    """

    def __init__(self, folder: Path, group: list[int], sources: Sequence[Source]) -> None:
        self.folder = folder
        self.group = group
        self.edition = sources[group[0]].edition
        numbers = range(len(group))
        for number in numbers:
            (folder / f"{number}.rs").write_text(sources[group[number]].text, encoding="utf-8")
        modules = "".join(f'#[path = "{number}.rs"] mod c{number};\n' for number in numbers)
        cases = "".join(f'Some("{number}") => c{number}::{ENTRY}(),\n' for number in numbers)
        choice = "::std::env::args().nth(1).as_deref()"
        main = f"{modules}fn main() {{ match {choice} {{ {cases} _ => {{}} }} }}\n"
        (folder / "main.rs").write_text(main, encoding="utf-8")

    def answers(self, outcome: Outcome) -> dict[int, Failure | Program]:
        """What is known of each source now; nothing if what went wrong cannot be told apart."""
        if outcome.ending == "exit" and outcome.status == 0:
            path = str(self.folder / "main")
            return {i: Program(path, str(number)) for number, i in enumerate(self.group)}
        failures: dict[int, Failure | Program] = {}
        unplaced = ""
        for finding in findings(outcome.errors):
            if not finding.file:
                unplaced = unplaced or finding.message
                continue
            i = self.group[int(finding.file.removesuffix(".rs"))]
            if i not in failures or finding.kind == "parse":
                failures[i] = Failure(finding.kind, finding.message)
        if failures and outcome.ending == "exit":
            return failures
        if len(self.group) > 1:
            return {}
        if shutil.disk_usage(self.folder).free < _LEAST_ROOM:
            return {self.group[0]: Failure("infrastructure", f"no room is left in {self.folder}")}
        return {self.group[0]: next(iter(failures.values()), _failure(outcome, unplaced))}


def _failure(outcome: Outcome, message: str) -> Failure:
    """Why a source that was compiled alone did not compile, if no error has a place in it."""
    if outcome.ending == "infrastructure":
        return Failure("infrastructure", outcome.detail)
    if outcome.ending != "exit":
        return Failure("compile-limit", f"the compiler was stopped at its {outcome.ending}")
    if message and outcome.status == 1:
        return Failure("type", message)
    return Failure("compiler-crash", f"the compiler ended with {outcome.status}")
