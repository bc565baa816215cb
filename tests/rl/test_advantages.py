"""Advantages are those of their papers, and samples that nobody could judge change nothing."""

import math

import numpy as np
import pytest

from nanochat.rl.advantages import advantages, have_signal
from nanochat.rl.recipe import Advantage

REWARDS = np.array([[1.0, 0.0, 0.0, 1.0], [0.2, 0.2, 1.0, 0.0], [0.0] * 4, [1.0] * 4])


def test_group_relative_advantages_are_those_of_trl() -> None:
    # trl/trainer/grpo_trainer.py, version 1.16: (rewards - mean) / (std + 1e-4), with torch's std, of a sample.
    centred = REWARDS - REWARDS.mean(axis=1, keepdims=True)
    expected = centred / (REWARDS.std(axis=1, ddof=1, keepdims=True) + 1e-4)

    assert np.allclose(advantages(REWARDS, "grpo"), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["reinforce", "dr-grpo"])
def test_without_a_deviation_a_reward_counts_as_it_is(kind: Advantage) -> None:
    assert np.allclose(advantages(REWARDS, kind)[0], [0.5, -0.5, -0.5, 0.5])


def test_maximum_likelihood_estimates_the_gradients_of_all_pass_at_k() -> None:
    # The gradient of log p cut at order N is the sum over k of (1 / k) d pass@k (MaxRL, equation 7). Of a policy that
    # passes with probability p, d pass@k = k (1 - p)^(k - 1), and a passing sample's score is 1 / p, a failing one's
    # -1 / (1 - p).
    p, size = 0.3, 5
    expected = sum((1 - p) ** (k - 1) for k in range(1, size + 1))
    found = 0.0
    for passed in range(size + 1):
        rewards = np.array([[1.0] * passed + [0.0] * (size - passed)])
        scores = np.where(rewards == 1, 1 / p, -1 / (1 - p))
        gradient = float((advantages(rewards, "maxrl") * scores).sum() / size)
        found += math.comb(size, passed) * p**passed * (1 - p) ** (size - passed) * gradient

    # The mean that is taken off holds the sample itself, which costs the order N.
    assert found == pytest.approx(expected - (1 - p) ** (size - 1), rel=1e-4)


@pytest.mark.parametrize("kind", ["reinforce", "dr-grpo", "grpo", "maxrl"])
def test_equal_rewards_are_worth_nothing(kind: Advantage) -> None:
    assert np.allclose(advantages(REWARDS, kind)[2:], 0.0, atol=1e-9)
    assert have_signal(REWARDS).tolist() == [True, True, False, False]


@pytest.mark.parametrize("kind", ["reinforce", "dr-grpo", "grpo", "maxrl"])
def test_a_sample_that_nobody_could_judge_changes_nothing(kind: Advantage) -> None:
    unjudged = np.array([[1.0, np.nan, 0.0, 0.0], [np.nan, np.nan, np.nan, 1.0], [np.nan] * 4])

    found = advantages(unjudged, kind)

    assert np.allclose(found[0, [0, 2, 3]], advantages(np.array([[1.0, 0.0, 0.0]]), kind)[0])
    assert found[0, 1] == 0
    assert np.allclose(found[1:], 0.0, atol=1e-9)
    assert have_signal(unjudged).tolist() == [True, False, False]
