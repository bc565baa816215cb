"""What a step draws follows from its number, and what is learnt from weighs what it says."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from nanochat.evaluation.completing import Completion
from nanochat.judge.judge import Judgement
from nanochat.problems.sets import load
from nanochat.problems.soundness import is_trivial
from nanochat.rl.batches import learnt, microbatches
from nanochat.rl.evaluation import held_out
from nanochat.rl.recipe import Advantage, Policy, Problems, Recipe, Reward, Rollout
from nanochat.rl.rollouts import Curriculum, Group, Rollouts, trained_on
from tests.judge.completions import LARGER

TEMPLATES = load("templates")


def test_only_what_may_be_trained_on_is_drawn() -> None:
    every = trained_on(TEMPLATES, Problems()).problems
    chosen = trained_on(TEMPLATES, Problems(levels=(1,), nontrivial=True)).problems

    assert {problem.split for problem in every} == {"train"}
    assert {problem.level for problem in chosen} == {1}
    assert any(map(is_trivial, every))
    assert not any(map(is_trivial, chosen))


def test_what_is_not_learnt_from_is_not_measured_with() -> None:
    every, chosen = (
        held_out(Recipe(model="m", steps=9, problems=Problems(levels=(0,), nontrivial=nontrivial)))
        for nontrivial in (False, True)
    )

    assert set(chosen) == {"train", "other-types", "other-names", "held-out"}
    assert {p.level for problems in chosen.values() for p in problems} == {0}
    assert any(is_trivial(problem) for problem in every["held-out"])
    assert not any(is_trivial(p) for problems in chosen.values() for p in problems)
    assert {len(problems) for problems in chosen.values()} == {40}


def test_the_problems_of_a_step_are_of_unlike_families_and_follow_from_its_number() -> None:
    curriculum = Curriculum(trained_on(TEMPLATES, Problems()).problems, seed=3)
    steps = [[*islice(curriculum.of_step(step), 24)] for step in range(4)]
    again = [*islice(Curriculum(trained_on(TEMPLATES, Problems()).problems, seed=3).of_step(2), 24)]
    other = [*islice(Curriculum(trained_on(TEMPLATES, Problems()).problems, seed=4).of_step(2), 24)]

    for problems in steps:
        assert len({problem.family for problem in problems}) == 24
    assert again == steps[2] != other
    assert len({tuple(problems) for problems in map(tuple, steps)}) == 4


def test_no_problem_comes_twice_in_a_step() -> None:
    few = [replace(LARGER, id=f"{n}", family=f"{n % 2}") for n in range(5)]

    found = [*Curriculum(few, seed=0).of_step(0)]

    assert sorted(problem.id for problem in found) == ["0", "1", "2", "3", "4"]
    assert {problem.family for problem in found[:2]} == {"0", "1"}


def group(rewards: Sequence[float], lengths: Sequence[int], finishes: Sequence[str] = ()) -> Group:
    completions = [
        Completion(
            id="larger",
            sample=number,
            text="",
            finish=finishes[number] if finishes else "closed",  # type: ignore[arg-type]
            tokens=(7,) * length,
            logprobs=(-1.0,) * length,
        )
        for number, length in enumerate(lengths)
    ]
    return Group(
        problem=LARGER,
        prompt=(1, 2, 3),
        completions=tuple(completions),
        judgements=(Judgement("wrong"),) * len(lengths),
        rewards=tuple(rewards),
    )


def rollouts(*groups: Group) -> Rollouts:
    return Rollouts(groups=groups, left_out=(), seconds={})


def recipe(**policy: Any) -> Recipe:
    return Recipe(
        model="m",
        steps=9,
        rollout=Rollout(prompts=2, samples=4, max_tokens=10),
        policy=Policy(**policy),
    )


TWO = rollouts(group([1, 0, 0, 0], [1, 2, 3, 4]), group([1, 1, 0, 0], [5, 6, 7, 8]))


@pytest.mark.parametrize(
    ("normaliser", "weights"),
    [
        ("sequence", [1 / (8 * length) for length in range(1, 9)]),
        ("token", [1 / 36] * 8),
        ("constant", [1 / 80] * 8),
    ],
)
def test_a_token_weighs_what_its_normaliser_says(normaliser: str, weights: list[float]) -> None:
    found = learnt(TWO, recipe(normaliser=normaliser), 0)

    assert np.allclose([each.weight for each in found], weights)


def test_the_normaliser_is_that_of_the_advantage() -> None:
    kinds: tuple[Advantage, ...] = ("maxrl", "dr-grpo", "grpo", "reinforce")
    found = [Policy(advantage=kind).normalised_by for kind in kinds]

    assert found == ["constant", "constant", "sequence", "token"]


@pytest.mark.parametrize(("chosen", "sign"), [("negatives", 1), ("positives", -1)])
def test_of_samples_that_are_chosen_the_sum_is_that_of_all(chosen: str, sign: int) -> None:
    lengths = [1, 2, 3, 4, 5, 6, 7, 8]
    rewards = [1.0, 0, 0, 0, 0, 0, 0, 0]
    one = rollouts(group(rewards if sign > 0 else [1 - each for each in rewards], lengths))
    whole = learnt(one, recipe(), 0)
    samples = [learnt(one, recipe(**{chosen: 2}), step) for step in range(3000)]

    assert {len(each) for each in samples} == {3}
    assert all(sign * each[0].advantage > 0 for each in samples)
    assert len({tuple(len(s.tokens) for s in each) for each in samples}) == 21
    # What is minimised is linear in this.
    sums = [[s.weight * s.advantage * len(s.tokens) for s in each] for each in (whole, *samples)]
    assert np.mean([sum(each) for each in sums[1:]]) == pytest.approx(sum(sums[0]), abs=0.01)


def test_samples_worth_nothing_cost_no_time_unless_something_else_is_asked_of_them() -> None:
    alike = rollouts(group([0, 0], [3, 3]))

    assert learnt(alike, recipe(), 0) == []
    assert len(learnt(alike, recipe(kl=0.1), 0)) == 2
    assert len(learnt(alike, recipe(entropy=0.1), 0)) == 2
    assert len(learnt(alike, recipe(entropy=0.1, negatives=1), 0)) == 1


def test_what_was_cut_off_is_wrong_or_no_sample() -> None:
    cut = rollouts(group([1, 0, 0], [3, 10, 3], ["closed", "length", "closed"]))
    masked = replace(recipe(), reward=Reward(truncated="mask"))

    assert [len(each.tokens) for each in learnt(cut, recipe(), 0)] == [3, 10, 3]
    assert [len(each.tokens) for each in learnt(cut, masked, 0)] == [3, 3]


def test_a_sample_that_nobody_could_judge_is_not_learnt_from() -> None:
    found = learnt(rollouts(group([1, float("nan"), 0], [3, 3, 3])), recipe(kl=0.1), 0)

    assert len(found) == 2


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("size", [1, 64, 1000])
def test_however_samples_are_put_side_by_side_their_tokens_weigh_the_same(
    size: int, full: bool
) -> None:
    samples = learnt(TWO, recipe(), 0)

    found = [*microbatches(samples, size, full=full)]

    assert all(batch.tokens.shape == batch.targets.shape for batch in found)
    assert all(batch.tokens.size <= max(size, 32) for batch in found)
    targets = torch.from_numpy(np.concatenate([batch.targets.flatten() for batch in found]))
    assert int((targets >= 0).sum()) == 36
    total = sum(float((batch.weights * batch.advantages).sum()) for batch in found)
    expected = sum(each.weight * each.advantage * len(each.tokens) for each in samples)
    assert total == pytest.approx(expected, rel=1e-5)
    for batch in found:
        # The token before a target is the one that it follows.
        rows, places = np.nonzero(batch.targets[:, 1:] >= 0)
        later = places[batch.targets[rows, places] >= 0] + 1
        assert (batch.tokens[rows[: len(later)], later] >= 0).all()
        assert (batch.drawn[batch.targets >= 0] == -1).all()
        assert (batch.tokens[batch.targets >= 0] > 0).all()
    if full and size == 1000:
        assert len({batch.tokens.shape for batch in found}) == 1
