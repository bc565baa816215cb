"""This file holds what is learnt from: problems in an order of batches, and what a model makes of them.

Nothing is learnt from a problem that models are measured with.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from nanochat.errors import InputError
from nanochat.evaluation.completing import Drawing, Request, complete, seed_of
from nanochat.evaluation.programs import Opening
from nanochat.judge.judge import Judge, Judgement, Sample, require_judged
from nanochat.lm import Model
from nanochat.problems.problem import Problem, Split
from nanochat.problems.sets import ProblemSet, forbidden_for_training, load, measured_with

__all__ = ["Attempts", "Batch", "attempts", "batches", "require_trainable", "trainable"]


class Batch(NamedTuple):
    """Problems that are learnt from at once, of which epoch, and which batch of all, both from 1."""

    epoch: int
    number: int
    problems: Sequence[Problem]


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """What became of a problem."""

    problem: Problem
    found: Sequence[Judgement]

    @property
    def num_passed(self) -> int:
        """How many of the attempts are right."""
        return sum(one.verdict == "pass" for one in self.found)

    @property
    def is_mixed(self) -> bool:
        """Whether some are right and some are not: only then they show what makes the difference."""
        return 0 < self.num_passed < len(self.found)


def trainable(text: str, *, levels: Sequence[int] = ()) -> ProblemSet:
    """Those problems of a set that may be learnt from.

    Parameters
    ----------
    text : str
        See `nanochat.problems.sets.load`.
    levels : sequence of int
        Only those; all if there are none of these.

    Raises
    ------
    InputError
        If there are none.
    """
    every = load(text)
    train: Sequence[Split] = ("train",)
    found = every.select(splits=train)
    if not found.problems:
        raise InputError(
            f"nothing of {text} may be learnt from: {forbidden_for_training(every)}; pass other --problems"
        )
    chosen = found.select(levels=levels)
    if not chosen.problems:
        there = ", ".join(map(str, sorted({problem.level for problem in found.problems})))
        raise InputError(
            f"{text} has no problem of level {', '.join(map(str, levels))} that may be learnt from: choose --level "
            f"among {there}"
        )
    return chosen


def require_trainable(problems: ProblemSet) -> None:
    """Refuse problems that models are measured with.

    Raises
    ------
    InputError
        If one of them is.
    """
    if reason := forbidden_for_training(problems, measured_with()):
        raise InputError(
            f"a library is learnt from other problems than it is measured with: {reason}"
        )


def batches(problems: ProblemSet, *, size: int, epochs: int, seed: int) -> Iterator[Batch]:
    """Yield all problems, once in each epoch, in an order that follows from the seed and the epoch."""
    number = 0
    for epoch in range(1, epochs + 1):
        order = sorted(problems.problems, key=lambda problem: seed_of(seed, epoch, problem.id))
        for first in range(0, len(order), size):
            number += 1
            yield Batch(epoch, number, order[first : first + size])


def attempts(
    model: Model,
    batch: Batch,
    drawing: Drawing,
    judge: Judge,
    *,
    input_seed: int,
    opening: Opening | None,
    progress: Callable[[int, int], None],
) -> list[Attempts]:
    """Let a model try each problem of a batch some times.

    Parameters
    ----------
    drawing : Drawing
        How; the samples of another epoch are others.
    opening : Opening, optional
        What stands before the prompts.

    Raises
    ------
    SandboxError
        If the machine failed to run a program.
    """
    drawn = replace(drawing, seed=seed_of(drawing.seed, "epoch", batch.epoch))
    numbers = range(drawing.num_samples)
    requests = [
        Request(one.id, one.prompt, numbers, opening.before(one.prompt) if opening else "")
        for one in batch.problems
    ]
    texts: dict[tuple[str, int], str] = {}
    for completion in complete(model.engine, model.tokenizer, requests, drawn):
        texts[completion.id, completion.sample] = completion.text
        progress(len(texts), len(requests) * len(numbers))
    samples = [Sample(one, texts[one.id, number]) for one in batch.problems for number in numbers]
    found = judge.judge(samples, seed=input_seed)
    require_judged(found, "all batches before are written, so run this again on a quieter machine")
    size = len(numbers)
    return [
        Attempts(problem=one, found=found[place * size : (place + 1) * size])
        for place, one in enumerate(batch.problems)
    ]
