"""This file holds the evaluation by programs: a model completes functions, and a judge compiles and runs them.

Two files of records come of it, ``samples.jsonl`` and ``verdicts.jsonl``, either of which goes on where it was
interrupted. The second follows from the first without the model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from nanochat.errors import FormatError
from nanochat.evaluation.completing import Completion, Drawing, Request, complete
from nanochat.evaluation.rates import Judged
from nanochat.evaluation.records import Record, Records, read_records, recording
from nanochat.generation.engine import Runner
from nanochat.judge.judge import Judge, Judgement, Sample, require_judged
from nanochat.problems.problem import Problem
from nanochat.problems.sets import ProblemSet
from nanochat.text.codec import TextCodec

__all__ = ["SAMPLES", "VERDICTS_FILE", "Opening", "draw", "judge", "read_judged"]

SAMPLES, VERDICTS_FILE = "samples.jsonl", "verdicts.jsonl"
# Samples that are judged at once, and written then.
_AT_ONCE = 256
Progress = Callable[[int, int], None]


class Opening(Protocol):
    """Texts that a model reads before prompts, such as examples."""

    def before(self, prompt: str) -> str:
        """The text that stands before a prompt; it may be empty."""

    def describe(self) -> Record:
        """What all of the texts follow from."""


def draw(
    engine: Runner[Any],
    tokenizer: TextCodec,
    problems: ProblemSet,
    drawing: Drawing,
    path: Path,
    *,
    model: Mapping[str, object],
    opening: Opening | None = None,
    progress: Progress,
) -> Records:
    """Let a model complete the functions of a set, and write each sample down as it ends.

    Parameters
    ----------
    problems : ProblemSet
        What is completed.
    path : Path
        The file of the samples.
    model : mapping
        What the model is, which the file says.
    opening : Opening, optional
        What the model reads before each prompt, which the file says, too; absent is nothing.
    progress : callable
        Is told how many of how many samples there are.
    """
    wanted = {problem.id: range(drawing.num_samples) for problem in problems.problems}
    of: Record = {
        "model": dict(model),
        "problems": problems.name,
        "problems_sha256": problems.identity,
        **asdict(drawing),
    }
    if opening is not None:
        of = {**of, "experience": opening.describe()}
    total = len(wanted) * drawing.num_samples
    with recording(path, of) as file:
        done = {(row["problem"], row["sample"]) for row in file.rows}
        requests = [
            Request(
                problem.id,
                problem.prompt,
                numbers,
                opening.before(problem.prompt) if opening else "",
            )
            for problem in problems.problems
            if (numbers := [n for n in wanted[problem.id] if (problem.id, n) not in done])
        ]
        progress(len(file.rows), total)
        if requests:
            for completion in complete(engine, tokenizer, requests, drawing):
                file.append([_row(completion)])
                progress(len(file.rows), total)
        return file


def _row(completion: Completion) -> Record:
    return {
        "problem": completion.id,
        "sample": completion.sample,
        "completion": completion.text,
        "finish": completion.finish,
        "tokens": len(completion.tokens),
    }


def judge(
    path: Path, into: Path, problems: ProblemSet, judge: Judge, *, seed: int, progress: Progress
) -> list[Judged]:
    """Judge samples, and write each verdict down.

    Parameters
    ----------
    path, into : Path
        The files of the samples and of the verdicts.
    problems : ProblemSet
        The set that the samples are of.
    seed : int
        Of the inputs on which programs are tried.

    Raises
    ------
    FormatError
        If the samples are of other problems.
    SandboxError
        If the machine failed to run a program, again and again.
    """
    samples = read_records(path)
    by_id = {problem.id: problem for problem in problems.problems}
    if samples.of.get("problems_sha256") != problems.identity:
        raise FormatError(
            f"{samples.path} holds samples of other problems than {problems.name} is today "
            f"({samples.of.get('problems')}, {samples.of.get('problems_sha256')!s:.12}): pass those with --problems"
        )
    of: Record = {
        "problems_sha256": problems.identity,
        "samples_of": dict(samples.of),
        "input_seed": seed,
        **judge.describe(),
    }
    with recording(into, of) as file:
        done = {(row["problem"], row["sample"]) for row in file.rows}
        left = [row for row in samples.rows if (row["problem"], row["sample"]) not in done]
        progress(len(file.rows), len(samples.rows))
        for first in range(0, len(left), _AT_ONCE):
            rows = left[first : first + _AT_ONCE]
            file.append(_verdicts(rows, by_id, judge, seed, samples.path))
            progress(len(file.rows), len(samples.rows))
        return [_judged(row) for row in file.rows]


def read_judged(path: Path) -> list[Judged]:
    """Read a file of verdicts."""
    return [_judged(row) for row in read_records(path).rows]


def _verdicts(
    rows: Sequence[Record], problems: Mapping[str, Problem], judge: Judge, seed: int, path: Path
) -> list[Record]:
    asked = []
    for row in rows:
        problem, completion = problems.get(str(row.get("problem"))), row.get("completion")
        if problem is None or not isinstance(completion, str):
            raise FormatError(
                f"{path}: {str(row)[:80]} is no sample of a problem of its set: delete the line"
            )
        asked.append(Sample(problem, completion))
    found = judge.judge(asked, seed=seed)
    require_judged(found, "what is judged is written, so run this again on a quieter machine")
    return [_found(row, one) for row, one in zip(rows, found, strict=True)]


def _found(row: Record, found: Judgement) -> Record:
    return {
        "problem": row["problem"],
        "sample": row["sample"],
        "verdict": found.verdict,
        "trivial": found.trivial,
        "message": found.message,
    }


def _judged(row: Record) -> Judged:
    verdict: Any = row["verdict"]
    return Judged(str(row["problem"]), int(str(row["sample"])), verdict, row["trivial"] is True)
