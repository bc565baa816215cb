"""This file holds the case `judge`: what a completion costs to check, to build, to run and to judge, and to be drawn.

Times are those of processors, of all processes together: what passes on the wall depends on what else the machine does.
"""

import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.result import Result, table
from nanochat.evaluation.completing import Drawing, Request, complete
from nanochat.judge.harness import module
from nanochat.judge.judge import Judge, Sample
from nanochat.lm import Model
from nanochat.problems.problem import Problem
from nanochat.problems.templates import template_problems
from nanochat.rust.bounds import needs_own_crate
from nanochat.rust.compiler import Compiler, Source
from nanochat.rust.toolchain import find_toolchain
from nanochat.sandbox.job import SYSTEM_LIBRARIES, Job
from nanochat.sandbox.layers import Kind
from nanochat.sandbox.sandbox import Sandbox

__all__ = ["run", "table"]

_TURNS = 5


def run(quick: bool) -> Iterator[Result]:
    """Each with its target, in milliseconds of processors, or in tokens for a second of one."""
    count = 64 if quick else 256
    turns = 1 if quick else _TURNS
    problems = template_problems()[:: len(template_problems()) // count][:count]
    kinds: tuple[tuple[Kind, float], ...] = (("bubblewrap", 5), ("landlock", 2))
    for kind, target in kinds:
        yield _result(f"start of {kind}", [_start(kind, count) for _ in range(turns)], target)
    bad = [
        _Body(p, f" {p.reference.removesuffix('}')} undefined_{i} }}")
        for i, p in enumerate(problems)
    ]
    good = [_Body(p, p.reference) for p in problems]
    few = [bad[i] if i % 64 else good[i] for i in range(count)]
    yield _result("type check, 2 % good", [_check(few) for _ in range(turns)], 10)
    yield _result("type check, all good", [_check(good) for _ in range(turns)], 2)
    yield _result("build, run and judge, all right", [_judge(good) for _ in range(turns)], 12)
    yield _drawn(problems[:64])


class _Body:
    def __init__(self, problem: Problem, text: str) -> None:
        self.problem = problem
        self.text = text


def _result(what: str, seconds: Sequence[float], target: float) -> Result:
    found = 1e3 * statistics.median(seconds)
    return Result(case="judge", what=what, unit="ms", ours=found, target=target, ok=found <= target)


def _cost(work: Callable[[], None]) -> float:
    """Seconds of processors that this process and all that it waited for spend."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)

    def spent() -> float:
        return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))

    before = spent()
    work()
    return spent() - before


def _start(kind: Kind, count: int) -> float:
    """What a sandbox adds to a program that does nothing."""
    job = Job(command=("/usr/bin/true",), readable=SYSTEM_LIBRARIES)

    def work(count: int) -> None:
        with Sandbox(kind) as sandbox:
            sandbox.run_all([job] * count)

    def bare() -> None:
        for _ in range(count):
            os.waitpid(os.posix_spawn("/usr/bin/true", ["true"], {}), 0)

    # A sandbox is tried as it opens.
    opened = _cost(lambda: work(0))
    return (_cost(lambda: work(count)) - opened - _cost(bare)) / count


def _check(bodies: Sequence[_Body]) -> float:
    def work(bodies: Sequence[_Body]) -> None:
        with TemporaryDirectory(dir="/dev/shm") as folder, Sandbox() as sandbox:
            compiler = Compiler(find_toolchain(), sandbox, Path(folder))
            texts = [module(body.problem, body.text, seed=0, word="") for body in bodies]
            compiler.check([Source(text, "2021", needs_own_crate(text)) for text in texts])

    return (_cost(lambda: work(bodies)) - _cost(lambda: work([]))) / len(bodies)


def _judge(bodies: Sequence[_Body]) -> float:
    wrong = [Sample(body.problem, " loop }") for body in bodies]
    right = [Sample(body.problem, body.text) for body in bodies]

    def work(samples: Sequence[Sample]) -> None:
        with Judge() as judge:
            # What is expected is known then, as after the first of many samples of each problem.
            judge.judge(wrong, seed=0)
            judge.judge(samples, seed=0)

    return (_cost(lambda: work(right)) - _cost(lambda: work([]))) / len(bodies)


def _drawn(problems: Sequence[Problem]) -> Result:
    """Tokens of 64 rows for each second of a processor."""
    model = Model.from_pretrained("nanochat-tiny", backend="numba", num_threads=1)
    requests = [Request(problem.id, problem.prompt, range(8)) for problem in problems]
    drawing = Drawing(num_samples=8, temperature=1.0, top_p=1.0, max_tokens=24)
    found = []
    for _ in range(2):
        begin = time.process_time()
        tokens = sum(
            len(one.tokens) for one in complete(model.engine, model.tokenizer, requests, drawing)
        )
        found.append(tokens / (time.process_time() - begin))
    return Result(
        case="judge",
        what="sampling, nanochat-tiny, 64 rows",
        unit="tokens/s",
        ours=max(found),
        target=4000,
        ok=max(found) >= 4000,
    )
