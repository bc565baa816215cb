"""pass@k against exact fractions and a simulation, and intervals against what is known of them."""

import math
from fractions import Fraction

import numpy as np
import pytest

from nanochat.errors import InputError
from nanochat.evaluation.estimates import difference, pass_at_k, rate


@pytest.mark.parametrize("num_samples", range(1, 13))
def test_pass_at_k_is_the_exact_fraction(num_samples: int) -> None:
    for num_passed in range(num_samples + 1):
        for k in range(1, num_samples + 1):
            failing = math.comb(num_samples - num_passed, k)
            exact = 1 - Fraction(failing, math.comb(num_samples, k))

            assert pass_at_k(num_samples, num_passed, k) == pytest.approx(float(exact), abs=1e-15)


def test_pass_at_k_is_what_draws_give() -> None:
    rng = np.random.default_rng(0)
    samples = np.array([True] * 3 + [False] * 7)

    hits = [rng.permutation(samples)[:4].any() for _ in range(20_000)]

    assert pass_at_k(10, 3, 4) == pytest.approx(np.mean(hits), abs=0.01)


def test_the_mean_over_draws_of_pass_at_k_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    true, k = 0.2, 5

    found = [pass_at_k(20, int(rng.binomial(20, true)), k) for _ in range(20_000)]

    assert np.mean(found) == pytest.approx(1 - (1 - true) ** k, abs=0.005)


@pytest.mark.parametrize("k", [0, 6])
def test_a_k_that_the_samples_cannot_tell_is_refused(k: int) -> None:
    with pytest.raises(InputError, match=rf"pass@{k} cannot be told from 5 samples"):
        pass_at_k(5, 0, k)


def test_an_interval_covers_the_truth_nineteen_times_of_twenty() -> None:
    rng = np.random.default_rng(0)
    truth = 0.5
    covered = 0
    for _ in range(300):
        chances = rng.beta(2, 2, size=100)
        found = rate((rng.binomial(10, chances) / 10).tolist())
        covered += found.low <= truth <= found.high

    assert 0.90 <= covered / 300 <= 0.99


def test_a_rate_is_a_ratio_of_sums_not_a_mean_of_ratios() -> None:
    assert rate([1, 0], [1, 9]).value == 0.1


def test_no_success_among_many_is_not_certainly_none() -> None:
    none, all_of_them = rate([0] * 100, [10] * 100), rate([10] * 100, [10] * 100)

    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(0.0362, abs=1e-4)
    assert all_of_them.low == pytest.approx(0.9638, abs=1e-4)
    assert all_of_them.high == 1.0


def test_a_share_of_nothing_is_no_number() -> None:
    assert math.isnan(rate([0, 0], [0, 0]).value)


def test_pairs_make_the_interval_narrow() -> None:
    rng = np.random.default_rng(0)
    before = [float(value) for value in rng.random(100)]

    found = difference(before, [value + 0.05 for value in before])

    assert found.low == pytest.approx(0.05)
    assert found.high == pytest.approx(0.05)


def test_unequal_numbers_of_problems_are_not_compared() -> None:
    with pytest.raises(InputError, match="3 and 2 problems cannot be compared"):
        difference([1, 2, 3], [1, 2])
