"""This file holds rollouts: which problems a step draws, what a model writes for them, and what that earns."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat.evaluation.completing import Completion, Drawing, Request, complete, seed_of
from nanochat.generation.engine import Runner
from nanochat.generation.prompts import encode_prompt
from nanochat.judge.judge import Judge, Judgement, Sample
from nanochat.problems.problem import Problem, Split
from nanochat.problems.sets import ProblemSet
from nanochat.rl.advantages import have_signal
from nanochat.rl.recipe import Problems, Recipe, Reward
from nanochat.rl.rewards import reward_of, shared
from nanochat.rust.verdict import RUNS
from nanochat.text.codec import TextCodec

__all__ = ["Curriculum", "Group", "Rollouts", "described", "draw", "trained_on"]

# How many times the problems of a step are drawn at most, where those without a signal are replaced.
_MOST_DRAWN = 2


@dataclass(frozen=True, kw_only=True)
class Group:
    """Samples of one problem: what was written, what was found of it, and what it earned.

    Parameters
    ----------
    prompt : tuple of int
        The tokens of the problem's prompt.
    judgements : tuple of Judgement
        Of each completion; none where no judge was asked.
    rewards : tuple of float
        NaN of one that nobody could judge.
    """

    problem: Problem
    prompt: tuple[int, ...]
    completions: tuple[Completion, ...]
    judgements: tuple[Judgement, ...]
    rewards: tuple[float, ...]


class Curriculum:
    """The problems of each step, which follow from a seed and the step's number alone.

    Families count alike, however many instances they have.
    """

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        self._seed = seed
        self._families: dict[str, list[Problem]] = {}
        for problem in problems:
            self._families.setdefault(problem.family, []).append(problem)

    def of_step(self, step: int) -> Iterator[Problem]:
        """Problems without end, of which as many as there are families come from unlike ones; none comes twice."""
        generator = np.random.default_rng([self._seed, step])
        left = {
            name: [members[i] for i in generator.permutation(len(members))]
            for name, members in self._families.items()
        }
        while left:
            for name in generator.permutation(sorted(left)):
                yield left[name].pop()
                if not left[name]:
                    del left[name]


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """What a step has drawn.

    Parameters
    ----------
    groups : tuple of Group
        What is learnt from.
    left_out : tuple of Group
        Problems without a signal in whose place others were drawn, or that do not count.
    seconds : dict of str to float
        What drawing and judging took.
    """

    groups: tuple[Group, ...]
    left_out: tuple[Group, ...]
    seconds: Mapping[str, float]

    @property
    def rewards(self) -> NDArray[np.float64]:
        """The rewards of `groups`, (P, G)."""
        return np.array([group.rewards for group in self.groups])


def trained_on(problems: ProblemSet, settings: Problems) -> ProblemSet:
    """Those that a run draws from: of the split ``train``, of the levels, and perhaps none that is trivial."""
    train: tuple[Split, ...] = ("train",)
    return problems.select(levels=settings.levels, splits=train, nontrivial=settings.nontrivial)


def draw(
    engine: Runner[Any],
    tokenizer: TextCodec,
    problems: Iterator[Problem],
    judge: Judge | None,
    recipe: Recipe,
    step: int,
    *,
    clock: Callable[[], float],
) -> Rollouts:
    """Let a model complete the problems of a step, and judge what it writes.

    Parameters
    ----------
    problems : iterator of Problem
        Of the step, in their order: see `Curriculum`.
    judge : Judge, optional
        Without one, all rewards are 0.
    clock : callable
        Tells the time in seconds.
    """
    settings = recipe.rollout
    drawing = Drawing(
        num_samples=settings.samples,
        temperature=settings.temperature,
        top_p=1.0,
        max_tokens=settings.max_tokens,
        seed=seed_of(recipe.seed, "rollout", step),
    )
    seconds = {"drawing": 0.0, "judging": 0.0}
    kept: list[Group] = []
    left_out: list[Group] = []
    for _ in range(_MOST_DRAWN if settings.groups == "resample" else 1):
        wanted = [*islice(problems, settings.prompts - len(kept))]
        if not wanted:
            break
        begin = clock()
        written = _written(engine, tokenizer, wanted, drawing)
        seconds["drawing"] += clock() - begin
        begin = clock()
        found = _judged(wanted, written, tokenizer, judge, recipe, step)
        seconds["judging"] += clock() - begin
        signal = have_signal(np.array([group.rewards for group in found]))
        for group, is_told in zip(found, signal, strict=True):
            stays = is_told or settings.groups == "keep" or judge is None
            (kept if stays else left_out).append(group)
    return Rollouts(groups=tuple(kept), left_out=tuple(left_out), seconds=seconds)


def _written(
    engine: Runner[Any], tokenizer: TextCodec, problems: Sequence[Problem], drawing: Drawing
) -> dict[str, list[Completion]]:
    """The completions of each problem, in the order of their numbers."""
    requests = [
        Request(problem.id, problem.prompt, range(drawing.num_samples)) for problem in problems
    ]
    written: dict[str, list[Completion]] = {problem.id: [] for problem in problems}
    for completion in complete(engine, tokenizer, requests, drawing):
        written[completion.id].append(completion)
    for completions in written.values():
        completions.sort(key=lambda each: each.sample)
    return written


def _judged(
    problems: Sequence[Problem],
    written: Mapping[str, Sequence[Completion]],
    tokenizer: TextCodec,
    judge: Judge | None,
    recipe: Recipe,
    step: int,
) -> list[Group]:
    samples = [Sample(p, each.text) for p in problems for each in written[p.id]]
    seed = seed_of(recipe.seed, "judging", step)
    # What is right for the arguments of one step only is found out in another.
    found = [] if judge is None else judge.judge(samples, seed=seed)
    groups = []
    for number, problem in enumerate(problems):
        completions = written[problem.id]
        first = number * len(completions)
        judgements = found[first : first + len(completions)]
        rewards = _rewards(judgements, problem, recipe.reward) or [0.0] * len(completions)
        if recipe.reward.shuffled:
            np.random.default_rng(seed_of(seed, problem.id)).shuffle(rewards)
        groups.append(
            Group(
                problem=problem,
                prompt=tuple(encode_prompt(problem.prompt, tokenizer)),
                completions=tuple(completions),
                judgements=tuple(judgements),
                rewards=tuple(rewards),
            )
        )
    return groups


def _rewards(judgements: Sequence[Judgement], problem: Problem, settings: Reward) -> list[float]:
    if settings.kind == "teacher":
        return []
    kind, trivial = settings.kind, settings.trivial
    rewards = [reward_of(one, problem, kind, trivial=trivial) for one in judgements]
    if settings.shared:
        rewards = shared(rewards, judgements)
    return [math.nan if reward is None else reward for reward in rewards]


def described(rollouts: Rollouts) -> dict[str, object]:
    """What the log says of what was drawn."""
    groups: list[Group] = [*rollouts.groups, *rollouts.left_out]
    rewards = np.array([group.rewards for group in groups])
    judged = [one for group in groups for one in group.judgements]
    lengths = [len(each.tokens) for group in groups for each in group.completions]
    cut = [each.finish == "length" for group in groups for each in group.completions]
    found: dict[str, object] = {
        "reward": float(np.nanmean(rewards)),
        "reward_spread": float(np.nanstd(rewards)),
        "signal": float(have_signal(rewards).mean()),
        "sampled_tokens": sum(lengths),
        "length": float(np.mean(lengths)),
        "truncated": float(np.mean(cut)),
    }
    if not judged:
        return found
    count = Counter(one.verdict for one in judged)
    running = [one for one in judged if one.verdict in RUNS]
    trivial = sum(one.trivial for one in running)
    passed = [[one.verdict == "pass" for one in group.judgements] for group in groups]
    rewarded = {
        one.body
        for group in groups
        for one, reward in zip(group.judgements, group.rewards, strict=True)
        if reward > 0
    }
    return {
        **found,
        "verdicts": {verdict: n / len(judged) for verdict, n in count.items()},
        "rollout_passes": float(np.mean(passed)),
        "rollout_solved": float(np.any(passed, axis=1).mean()),
        "rollout_trivial": trivial / max(1, len(running)),
        "distinct_rewarded": len(rewarded),
    }
