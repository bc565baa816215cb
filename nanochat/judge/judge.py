"""This file holds the judge: completions go in, a verdict on each comes out.

A program gets arguments and prints results; it never sees what is expected. So leaving early, printing what was not
asked for, and breaking the source that calls it all lose. What is expected is found by running the reference, apart.
"""

import hashlib
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

from nanochat.errors import DataError, NanochatError, SandboxError
from nanochat.judge.harness import module, printing
from nanochat.problems.problem import Problem
from nanochat.rust.bounds import needs_own_crate, refusal
from nanochat.rust.compiler import Compiler, Failure, Program, Source
from nanochat.rust.completion import end_of_function
from nanochat.rust.lexer import tokens
from nanochat.rust.toolchain import find_toolchain
from nanochat.rust.trivial import is_trivial
from nanochat.rust.verdict import RUNS, Verdict
from nanochat.sandbox.job import SYSTEM_LIBRARIES, Job, Limits, Outcome
from nanochat.sandbox.layers import Kind
from nanochat.sandbox.sandbox import Sandbox
from nanochat.sandbox.workspace import workspace

__all__ = ["Judge", "Judgement", "Sample", "require_judged"]

LIMITS = Limits(cpu_seconds=1, wall_seconds=5, memory_bytes=512 * 2**20, output_bytes=64 * 2**10)
_PANICKED = 101
# How many verdicts are remembered, of a few hundred bytes each, and how many keys, of one or two thousand.
_REMEMBERED, _REMEMBERED_KEYS = 100_000, 20_000
# How many programs lie on the disk at once, of half a megabyte each if all are crates of their own.
_AT_ONCE = 512
# Whoever says none of these returns the same every time: without them there is no clock, thread, address or hash seed.
# A function has an address when it is cast, or is of a type that a body names by `fn`.
_VARYING = {
    *("std", "core", "alloc", "HashMap", "HashSet", "RandomState"),
    *(
        "as",
        "fn",
        "raw",
        "const",
        "ptr",
        "as_ptr",
        "as_mut_ptr",
        "as_ptr_range",
        "as_mut_ptr_range",
    ),
}


class Sample(NamedTuple):
    """A problem, and what a model wrote behind its prompt."""

    problem: Problem
    completion: str


@dataclass(frozen=True)
class Judgement:
    """What was found about a sample.

    Parameters
    ----------
    verdict : Verdict
        The finding.
    body : str
        What of the completion was judged: up to the brace that closes the function. Empty if there is none.
    message : str
        Why, on one line, with nothing in it that a terminal would obey.
    trivial : bool
        Whether the body is (`nanochat.rust.trivial`), or always returns the same, and the right one does not.
    """

    verdict: Verdict
    body: str = ""
    message: str = ""
    trivial: bool = False


def require_judged(found: Sequence[Judgement], advice: str) -> None:
    """Refuse to go on where programs have no verdict; `advice` says what is kept, and what to do.

    Raises
    ------
    SandboxError
        If the machine failed to run one, again and again.
    """
    failed = [one for one in found if one.verdict == "infrastructure"]
    if failed:
        raise SandboxError(
            f"{len(failed)} programs could not be run, since the machine failed ({failed[0].message}): {advice}"
        )


class Judge:
    """Compiles and runs completions in a sandbox.

    Parameters
    ----------
    sandbox : Kind
        In what.
    parallel : int
        How many compilers and programs run at once; 0 for as many as there are processors.
    limits : Limits
        What a program may take that calls the function on all arguments.

    Raises
    ------
    BackendError
        If there is no compiler here.
    SandboxError
        If there is no such sandbox.
    """

    def __init__(
        self, sandbox: Kind = "auto", *, parallel: int = 0, limits: Limits = LIMITS
    ) -> None:
        self._limits = limits
        self._known: dict[str, Judgement] = {}
        self._keys: dict[tuple[Problem, int], tuple[str, ...]] = {}
        self._varied = 0
        # Programs lie on the disk until all of a call have been run.
        self._lock = threading.Lock()
        self._word = secrets.token_hex()
        with ExitStack() as opened:
            toolchain = find_toolchain()
            self._sandbox = opened.enter_context(Sandbox(sandbox, parallel=parallel))
            folder = opened.enter_context(workspace("judge"))
            self._toolchain = toolchain
            self._compiler = Compiler(toolchain, self._sandbox, folder)
            self._opened = opened.pop_all()

    def describe(self) -> Mapping[str, object]:
        """What judged: the compiler's version, and what was between programs and this machine."""
        return {"rustc": self._toolchain.version, "sandbox": list(self._sandbox.layers) or ["none"]}

    @property
    def varied(self) -> int:
        """How many completions gave the right answers once, and others when they were run again."""
        return self._varied

    def judge(self, samples: Sequence[Sample], *, seed: int) -> list[Judgement]:
        """Judge samples, each as if it were alone; equal ones once.

        Parameters
        ----------
        samples : sequence of Sample
            Of any problems.
        seed : int
            Which arguments are drawn.

        Raises
        ------
        DataError
            If a problem's own reference fails, which names it.
        """
        texts = [_Text(sample) for sample in samples]
        new: dict[str, _Text] = {}
        for text in texts:
            if text.found is None:
                text.write(seed, self._word)
                new.setdefault(text.key, text)
        for edition in {text.problem.edition for text in new.values()}:
            self._toolchain.require_edition(edition)
        with self._lock:
            wanted = [text for key, text in new.items() if key not in self._known]
            for start in range(0, len(wanted), _AT_ONCE):
                self._find(wanted[start : start + _AT_ONCE], seed)
            found = [text.found or self._known[text.key] for text in texts]
            self._forget()
        return found

    def expected(self, problem: Problem, *, seed: int) -> tuple[str, ...]:
        """What the calls of a problem print if it is right; nothing of tests that do not come apart.

        It is for whoever must keep it from a model.

        Raises
        ------
        DataError
            If the problem's own reference fails.
        """
        if problem.tests:
            return ()
        with self._lock:
            try:
                self._find_keys([problem], seed)
            finally:
                self._compiler.clear()
            return self._keys[problem, seed]

    def close(self) -> None:
        """Kill what runs, and leave nothing."""
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

    def _find(self, texts: Sequence["_Text"], seed: int) -> None:
        try:
            self._find_keys([text.problem for text in texts], seed)
            programs = []
            built = self._compiler.build([text.source for text in texts])
            for text, answer in zip(texts, built, strict=True):
                if isinstance(answer, Failure):
                    self._note(text, answer.verdict, answer.message)
                else:
                    programs.append((text, answer))
            self._run(programs, seed)
        finally:
            self._compiler.clear()

    def _run(self, programs: Sequence[tuple["_Text", Program]], seed: int) -> None:
        outcomes = self._sandbox.run_all([self._job(program) for _, program in programs])
        again = []
        for (text, program), outcome in zip(programs, outcomes, strict=True):
            expected = self._keys[text.problem, seed]
            verdict, message = _verdict(outcome, expected)
            if verdict == "panic" and text.problem.tests:
                # So do tests that fail.
                verdict = "wrong"
            if verdict == "pass" and text.may_vary:
                again.append((text, program, outcome.output))
            else:
                same = verdict in RUNS and len({*_lines(outcome.output)}) == 1 < len({*expected})
                self._note(text, verdict, message, same=same)
        outcomes = self._sandbox.run_all([self._job(program) for _, program, _ in again])
        for (text, _, before), outcome in zip(again, outcomes, strict=True):
            if outcome.ending == "infrastructure":
                self._note(text, "infrastructure", outcome.detail)
            elif outcome.output == before:
                self._note(text, "pass", "")
            else:
                self._varied += 1
                self._note(text, "wrong", "it printed other results when it was run again")

    def _job(self, program: Program) -> Job:
        command = (program.path, program.argument)
        return Job(command=command, readable=SYSTEM_LIBRARIES, limits=self._limits)

    def _find_keys(self, problems: Sequence[Problem], seed: int) -> None:
        """Find out what is expected of problems, by programs that hold no text of a model."""
        wanted = []
        for problem in dict.fromkeys(problems):
            if problem.tests:
                self._keys[problem, seed] = (self._word,)
            elif (problem, seed) not in self._keys:
                wanted.append(problem)
        modules = [_key_module(problem, seed) for problem in wanted]
        built = self._compiler.build(
            [Source(m, p.edition, needs_own_crate(m)) for p, m in zip(wanted, modules, strict=True)]
        )
        programs = []
        for problem, answer in zip(wanted, built, strict=True):
            if isinstance(answer, Failure):
                raise _unsound(problem, answer.verdict, answer.message)
            programs.append(answer)
        outcomes = self._sandbox.run_all([self._job(program) for program in programs])
        for problem, outcome in zip(wanted, outcomes, strict=True):
            if outcome.ending != "exit" or outcome.status:
                raise _unsound(problem, *_verdict(outcome, ()))
            self._keys[problem, seed] = _lines(outcome.output)

    def _note(self, text: "_Text", verdict: Verdict, message: str, *, same: bool = False) -> None:
        trivial = same or is_trivial(text.problem.prompt, text.body.removesuffix("}"))
        self._known[text.key] = Judgement(verdict, text.body, _shown(message), trivial)

    def _forget(self) -> None:
        # What the machine has failed may go well the next time.
        for key in [k for k, known in self._known.items() if known.verdict == "infrastructure"]:
            del self._known[key]
        for old in [*self._known][:-_REMEMBERED]:
            del self._known[old]
        for old_key in [*self._keys][:-_REMEMBERED_KEYS]:
            del self._keys[old_key]


class _Text:
    """A sample on its way: what of it is judged, and what is known of it."""

    def __init__(self, sample: Sample) -> None:
        self.problem = sample.problem
        self.body = ""
        self.key = ""
        self.found: Judgement | None = None
        end = end_of_function(sample.problem.prompt, sample.completion)
        if end is None:
            self.found = Judgement("open", "", "the function is never closed")
            return
        self.body = sample.completion[:end]
        reason = refusal(sample.problem.prompt + self.body)
        if reason:
            self.found = Judgement("refused", self.body, _shown(reason))

    def write(self, seed: int, word: str) -> None:
        """Write the source that is compiled."""
        text = module(self.problem, self.body, seed=seed, word=word)
        self.source = Source(
            text, self.problem.edition, needs_own_crate(self.problem.prompt + self.body)
        )
        self.key = hashlib.sha256(f"{self.problem}\0{self.source}".encode()).hexdigest()

    @property
    def may_vary(self) -> bool:
        """Whether it may return something else the next time."""
        for text, words in ((self.problem.prompt, _VARYING - {"fn"}), (self.body, _VARYING)):
            for token in tokens(text):
                # In a string, it asks for an address.
                if token.text in words or (token.kind == "string" and "p}" in token.text):
                    return True
        return False


def _key_module(problem: Problem, seed: int) -> str:
    expected = problem.expected(seed)
    if expected is not None:
        # What is expected may be of a type that the prompt imports.
        return f"{problem.prompt} ::core::todo!() }}\n{printing(expected, problem.returns)}"
    if not problem.reference:
        raise DataError(f"problem {problem.id} has neither tests nor a reference: leave it out")
    return module(problem, problem.reference, seed=seed, word="")


def _verdict(outcome: Outcome, expected: tuple[str, ...]) -> tuple[Verdict, str]:
    if outcome.ending == "infrastructure":
        return "infrastructure", outcome.detail
    if outcome.ending != "exit":
        return "limit", f"it was stopped at its {outcome.ending}"
    if outcome.status == _PANICKED:
        return "panic", _panic(outcome.errors.decode(errors="replace"))
    if outcome.status:
        return "crash", f"it ended with {outcome.status}"
    lines = _lines(outcome.output)
    if len(lines) != len(expected):
        return "wrong", f"it printed {len(lines)} results, and {len(expected)} were asked for"
    for number, (line, right) in enumerate(zip(lines, expected, strict=True), 1):
        if line != right:
            return (
                "wrong",
                f"result {number} of {len(expected)} is {line[:80]}, and {right[:80]} is right",
            )
    return "pass", ""


def _panic(said: str) -> str:
    """The first line of a panic's message: it is behind the line that says where, or, before Rust 1.73, within."""
    within = re.search(r"^thread '.*' panicked at '(.*)", said, re.MULTILINE)
    if within:
        return re.sub(r"', \S+:\d+:\d+$", "", within[1])
    lines = said.strip().splitlines()
    return next((line for line in lines if not line.startswith("thread '")), "")


def _lines(output: bytes) -> tuple[str, ...]:
    text = output.decode(errors="replace")
    return tuple(text.removesuffix("\n").split("\n")) if text else ()


def _unsound(problem: Problem, verdict: Verdict, message: str) -> NanochatError:
    if verdict == "infrastructure":
        return SandboxError(f"the reference of {problem.id} could not be run: {message}; try again")
    return DataError(
        f"problem {problem.id} cannot be used, since its own reference is not right here ({verdict}: "
        f"{_shown(message)}): mend it, or leave it out"
    )


def _shown(text: str) -> str:
    """A text without what a terminal would obey or hide."""
    return "".join(c if c.isprintable() else f"\\u{{{ord(c):x}}}" for c in text)
