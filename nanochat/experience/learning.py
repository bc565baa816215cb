"""This file holds learning: from batch to batch, into a file from which an interrupted run goes on."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from nanochat.errors import InputError
from nanochat.evaluation.completing import Drawing
from nanochat.evaluation.evaluate import model_record
from nanochat.experience.attempts import Attempts, Batch, attempts, batches, require_trainable
from nanochat.experience.leaks import Secret, secrets_of
from nanochat.experience.lessons import Counts, contrast, merge
from nanochat.experience.library import Example, Library, kept, lines_of, read_library
from nanochat.experience.opening import Experience
from nanochat.experience.writer import Writer
from nanochat.judge.judge import Judge
from nanochat.lm import Model
from nanochat.problems.problem import Problem
from nanochat.problems.sets import ProblemSet

__all__ = ["Learning", "Method", "learn", "learn_references"]

Method = Literal["lessons", "examples"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How a library is learnt.

    Parameters
    ----------
    drawing : Drawing
        How attempts are drawn; 2 or more for lessons, which need right and wrong ones.
    batch_size : int
        Problems between two writings of the file; of lessons, also between two merges.
    epochs : int
        How often each problem is tried.
    budget : int
        See `nanochat.experience.library.Library`.
    most_lessons : int
        That one problem may teach.
    input_seed : int
        Of the arguments that programs are tried with.
    """

    drawing: Drawing = field(default_factory=lambda: Drawing(num_samples=8))
    batch_size: int = 16
    epochs: int = 1
    budget: int = 512
    most_lessons: int = 2
    input_seed: int = 0


def learn(
    model: Model,
    problems: ProblemSet,
    learning: Learning,
    judge: Judge,
    path: Path,
    *,
    writer: Writer | None,
    progress: Progress,
) -> Library:
    """Learn from what a model makes of problems, and write the library after each batch.

    A library depends on the model, the problems, the settings and the writer's answers: a run that was interrupted ends
    with the file that it would have ended with.

    Parameters
    ----------
    path : Path
        The library's file. One that is there is gone on with.
    writer : Writer or None
        Who writes lessons; without one, examples are collected: functions that the model has completed rightly.

    Raises
    ------
    InputError
        If models are measured with the problems, or the file holds another library, or lessons need more samples.
    """
    if writer is not None and learning.drawing.num_samples < 2:
        raise InputError(
            f"{learning.drawing.num_samples} attempt is right or wrong, and lessons need both: take --samples 2 or more"
        )
    require_trainable(problems)
    library = _begun(path, _learnt_from(model, problems, learning, writer), learning.budget)
    every = [
        *batches(
            problems, size=learning.batch_size, epochs=learning.epochs, seed=learning.drawing.seed
        )
    ]
    work = _Work(model, learning, judge, progress)
    for batch in islice(every, len(library.batches), None):
        progress("batches", batch.number - 1, len(every))
        library = (
            work.collect(library, batch) if writer is None else work.teach(library, batch, writer)
        )
        library.save(path)
    progress("batches", len(every), len(every))
    return library


def learn_references(problems: ProblemSet, path: Path, *, budget: int) -> Library:
    """Make a library of the problems' own references, which says so.

    Raises
    ------
    InputError
        If models are measured with the problems, or none has a reference, or the file holds another library.
    """
    require_trainable(problems)
    library = _begun(path, {**_of_problems(problems), "source": "references"}, budget)
    if library.batches:
        return library
    examples = [
        _example(problem, problem.reference) for problem in problems.problems if problem.reference
    ]
    if not examples:
        raise InputError(f"no problem of {problems.name} has a reference: leave --references out")
    library = replace(library, examples=tuple(examples), batches=({"examples": len(examples)},))
    library.save(path)
    return library


class _Work:
    def __init__(self, model: Model, learning: Learning, judge: Judge, progress: Progress) -> None:
        self._model = model
        self._learning = learning
        self._judge = judge
        self._progress = progress

    def collect(self, library: Library, batch: Batch) -> Library:
        """The library with examples of those problems of a batch that have none."""
        there = {example.problem for example in library.examples}
        left = [problem for problem in batch.problems if problem.id not in there]
        found = self._attempts(batch._replace(problems=left), None)
        new = [example for group in found if (example := _passing(group))]
        entry = {**_entry(batch, found), "examples": len(new)}
        return replace(
            library, examples=(*library.examples, *new), batches=(*library.batches, entry)
        )

    def teach(self, library: Library, batch: Batch, writer: Writer) -> Library:
        """The library with what a batch teaches."""
        found = self._attempts(batch, self._opening(library))
        mixed = [group for group in found if group.is_mixed]
        secrets = {secret for group in mixed for secret in self._secrets(group.problem)}
        counts = Counts()
        new: list[str] = []
        for number, group in enumerate(mixed):
            self._progress("writing lessons", number, len(mixed))
            new += contrast(
                writer,
                group,
                library.lessons,
                most=self._learning.most_lessons,
                secrets=secrets,
                counts=counts,
            )
        merged = library.lessons
        if new:
            merged = merge(writer, merged, new, batch=batch.number, secrets=secrets, counts=counts)
        fitting = kept(merged, budget=library.budget, count=self._count)
        entry = {
            **_entry(batch, found),
            "mixed": len(mixed),
            "new_lessons": len(new),
            "left_out": len(merged) - len(fitting),
            "tokens": self._count(lines_of(fitting)),
            "answers": counts.answers,
            "refused": counts.refused,
            "failed": counts.failed,
        }
        numbered = tuple(
            replace(lesson, id=f"L{number}") for number, lesson in enumerate(fitting, 1)
        )
        return replace(library, lessons=numbered, batches=(*library.batches, entry))

    def _attempts(self, batch: Batch, opening: Experience | None) -> list[Attempts]:
        return attempts(
            self._model,
            batch,
            self._learning.drawing,
            self._judge,
            input_seed=self._learning.input_seed,
            opening=opening,
            progress=lambda done, total: self._progress("writing programs", done, total),
        )

    def _opening(self, library: Library) -> Experience | None:
        if not library.lessons:
            return None
        room = self._model.config.context_length - self._learning.drawing.max_tokens
        return Experience(library, self._model.tokenizer, room=room)

    def _secrets(self, problem: Problem) -> frozenset[Secret]:
        seed = self._learning.input_seed
        return secrets_of(problem, seed=seed, expected=self._judge.expected(problem, seed=seed))

    def _count(self, text: str) -> int:
        return len(self._model.tokenizer.encode(text)) if text else 0


def _begun(path: Path, learnt_from: Mapping[str, object], budget: int) -> Library:
    """The library of a file, as far as it was learnt, or a new one."""
    new = Library(learnt_from=json.loads(json.dumps(learnt_from)), budget=budget)
    if not path.exists():
        return new
    old = read_library(path)
    before, now = ({"budget": one.budget, **one.learnt_from} for one in (old, new))
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise InputError(
                f"{path} was learnt with {name}={before.get(name)!r:.60}, not {now.get(name)!r:.60}: pass another "
                "--out, or --overwrite"
            )
    return old


def _of_problems(problems: ProblemSet) -> dict[str, object]:
    return {"problems": problems.name, "problems_sha256": problems.identity}


def _learnt_from(
    model: Model, problems: ProblemSet, learning: Learning, writer: Writer | None
) -> dict[str, object]:
    return {
        **_of_problems(problems),
        "source": "attempts",
        "model": model_record(model),
        **asdict(learning.drawing),
        "batch_size": learning.batch_size,
        "input_seed": learning.input_seed,
        **(
            {"most_lessons": learning.most_lessons, "writer": dict(writer.describe())}
            if writer
            else {}
        ),
    }


def _entry(batch: Batch, found: Sequence[Attempts]) -> dict[str, object]:
    return {
        "epoch": batch.epoch,
        "problems": len(found),
        "attempts": sum(len(group.found) for group in found),
        "passed": sum(group.num_passed for group in found),
    }


def _passing(group: Attempts) -> Example | None:
    """An attempt that is right, and if possible no constant or argument as it came."""
    right = [one for one in group.found if one.verdict == "pass"]
    right.sort(key=lambda one: one.trivial)
    return _example(group.problem, right[0].body) if right else None


def _example(problem: Problem, body: str) -> Example:
    return Example(problem=problem.id, family=problem.family, prompt=problem.prompt, body=body)
