"""Compiled draws are those of the reference, to the last pick, in one call or in a step that is repeated."""

import numpy as np
import pytest

from nanochat.backends.numba.ops import NumbaOps
from nanochat.backends.numba.runtime.vectors import precise_exp
from nanochat.backends.numba.sampling.race import _uniform, keys
from nanochat.draws import Draws, sample, uniform
from tests.parity.random_draws import random_draws, random_logits

pytestmark = pytest.mark.usefixtures("all_cores")


@pytest.mark.parametrize(
    ("vocab_size", "rows"), [(31, 3000), (129, 3000), (1023, 1200), (32_768, 60), (65_537, 36)]
)
@pytest.mark.parametrize("threads", [1, 2])
def test_picks_are_those_of_the_reference(vocab_size: int, rows: int, threads: int) -> None:
    rng = np.random.default_rng(vocab_size + threads)
    logits, draws = random_logits(rows, vocab_size, rng), random_draws(rows, vocab_size, rng)

    found = NumbaOps(num_threads=threads).sample(logits, draws)

    np.testing.assert_array_equal(found.tokens, sample(logits, draws).tokens)


def test_random_numbers_are_those_of_the_definition() -> None:
    seeds = np.random.default_rng(0).integers(0, 2**63 - 1, 50)

    for seed in [0, 1, 2**63 - 1, *seeds.tolist()]:
        for position in (0, 1, 2**40):
            numbers = [_uniform(np.uint32(token), *keys(seed, position)) for token in (0, 7, 65535)]
            assert numbers == uniform(seed, position, np.array([0, 7, 65535])).tolist()


@pytest.mark.parametrize(
    ("vocab_size", "top_p", "kept"), [(1000, 0.5, 500), (512, 0.25, 128), (4096, 1 / 4096, 1)]
)
def test_what_float32_sums_leave_open_is_decided_exactly(
    vocab_size: int, top_p: float, kept: int
) -> None:
    rows = 12 * kept
    draws = Draws.greedy(rows, vocab_size=vocab_size)
    draws.temperature[:], draws.top_p[:], draws.position[:] = 0.7, top_p, np.arange(rows)

    tokens = NumbaOps(num_threads=1).sample(np.zeros((rows, vocab_size), np.float32), draws).tokens

    assert tokens.max() < kept
    # The first and last of those kept are missed with a probability of 6e-6 each.
    assert {0, kept - 1} <= set(tokens.tolist())


@pytest.mark.parametrize("top_k", [0, 1, 2, 3, 150])
@pytest.mark.parametrize("factor", [3e38, -3e38, 1e-40, -1e-40])
def test_logits_at_the_ends_of_float32_are_drawn_as_by_the_reference(
    factor: float, top_k: int
) -> None:
    rng = np.random.default_rng(0)
    logits = (factor * rng.uniform(0.99, 1.0, (40, 200))).astype(np.float32)
    draws = Draws.greedy(40, vocab_size=200)
    draws.temperature[:], draws.top_p[:], draws.top_k[:] = 1e6, 0.9, top_k
    draws.position[:] = np.arange(40)

    found = NumbaOps(num_threads=1).sample(logits, draws)

    np.testing.assert_array_equal(found.tokens, sample(logits, draws).tokens)


def test_settings_that_are_no_numbers_end() -> None:
    logits = np.random.default_rng(0).standard_normal((40, 200)).astype(np.float32)
    draws = Draws.greedy(40, vocab_size=200)
    draws.temperature[:20], draws.top_p[10:30], draws.min_p[20:] = np.nan, np.nan, np.nan
    draws.temperature[20:] = 1.0

    tokens = NumbaOps(num_threads=1).sample(logits, draws).tokens

    assert 0 <= tokens.min() <= tokens.max() < 200


def test_a_repeated_step_draws_from_what_lies_in_the_arrays_then() -> None:
    rng = np.random.default_rng(0)
    ops = NumbaOps(num_threads=2)
    logits, draws = random_logits(24, 300, rng), random_draws(24, 300, rng)
    drawn, notes = ops.launch.note(lambda: ops.sample(logits, draws))
    assert notes.complete

    for _ in range(20):
        logits[:] = random_logits(24, 300, rng)
        for name, array in vars(random_draws(24, 300, rng)).items():
            if name != "vocab_size":
                getattr(draws, name)[:] = array
        notes.repeat(2)

        expected = sample(logits, draws)
        np.testing.assert_array_equal(drawn.tokens, expected.tokens)
        np.testing.assert_allclose(drawn.logprobs, expected.logprobs, rtol=1e-13)


def test_a_repeated_step_draws_nothing_from_a_logit_that_is_not_finite_and_goes_on() -> None:
    ops = NumbaOps(num_threads=1)
    logits = np.zeros((2, 300), np.float32)
    drawn, notes = ops.launch.note(lambda: ops.sample(logits, Draws.greedy(2, vocab_size=300)))

    logits[1, 299] = np.nan
    notes.repeat(1)
    assert drawn.tokens.tolist() == [0, -1]
    logits[1, 299] = 1.0
    notes.repeat(1)
    assert drawn.tokens.tolist() == [0, 299]


def test_the_precise_exponential_has_the_digits_of_float64() -> None:
    x = np.concatenate([np.linspace(-708, 709, 5001), [-0.0, 0.0, 1e-300, -1e-9]])

    found = np.array([precise_exp(number) for number in x])

    np.testing.assert_allclose(found, np.exp(x), rtol=4e-16)
    assert precise_exp(0.0) == 1.0
    assert precise_exp(-1e308) == precise_exp(-708.0) < 1e-307
    assert np.isnan(precise_exp(np.nan))
