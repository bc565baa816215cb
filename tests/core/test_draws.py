import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat.draws import Draws, log_sum_exp, require_finite, sample, top_logprobs, uniform
from nanochat.errors import InputError, NumericError, ShapeError
from tests.parity.random_draws import random_draws, random_logits, rows_of

# Bytes of 2**20 random numbers; each has two, its first and its last.
SHIFTS = pytest.mark.parametrize("shift", [44, 0], ids=["first byte", "last byte"])


def random_bytes(
    shift: int, seeds: range = range(1), positions: range = range(64)
) -> NDArray[np.int64]:
    """Some 8 of the 52 bits of the numbers of 4,096 tokens, (seeds, positions, tokens)."""
    ids = np.arange(4096)
    numbers = [[uniform(seed, place, ids) for place in positions] for seed in seeds]
    return (np.array(numbers) * 2.0**52).astype(np.int64) >> shift & 255


def deviation(counts: NDArray[np.int64]) -> float:
    """How many standard deviations the chi-square of counts that should be equal is too large."""
    expected = counts.sum() / counts.size
    square = ((counts - expected) ** 2 / expected).sum()
    return float((square - counts.size + 1) / np.sqrt(2 * counts.size - 2))


def paired(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each pair of half bytes comes up."""
    return np.bincount(((first >> 4) * 16 + (second >> 4)).ravel(), minlength=256)


@SHIFTS
def test_random_numbers_are_uniform(shift: int) -> None:
    found = random_bytes(shift, positions=range(256))

    assert abs(deviation(np.bincount(found.ravel(), minlength=256))) < 4


@SHIFTS
@pytest.mark.parametrize("apart", [1, 2, 64, 1024])
def test_tokens_have_independent_numbers(shift: int, apart: int) -> None:
    found = random_bytes(shift)

    assert abs(deviation(paired(found[..., apart:], found[..., :-apart]))) < 4


@SHIFTS
def test_positions_have_independent_numbers(shift: int) -> None:
    found = random_bytes(shift)

    assert abs(deviation(paired(found[:, 1:], found[:, :-1]))) < 4


@SHIFTS
def test_seeds_have_independent_numbers(shift: int) -> None:
    found = random_bytes(shift, seeds=range(64), positions=range(1))

    assert abs(deviation(paired(found[1:], found[:-1]))) < 4


def test_no_token_has_its_number_from_zeros_alone() -> None:
    # Mixing leaves zero as it is: seed, position and token must not all be zero in it.
    numbers = uniform(0, 0, np.arange(4096))

    assert numbers.argmin() != 0
    assert 1e-6 < numbers.min() < 1e-2


def test_a_seed_is_no_shift_of_positions() -> None:
    found = random_bytes(44, seeds=range(9), positions=range(9))

    for step in range(1, 9):
        assert abs(deviation(paired(found[:-step, step:], found[step:, :-step]))) < 4


def test_numbers_lie_between_0_and_1() -> None:
    found = uniform(2**63 - 1, 2**62, np.arange(2**20))

    assert 0 < found.min() < 1e-5
    assert 1 - 1e-5 < found.max() < 1


def test_numbers_are_those_of_every_machine() -> None:
    found = (uniform(2026, 7, np.array([0, 1, 65535, 2**31 - 1])) * 2.0**52).astype(np.int64)

    assert found.tolist() == [2525945942756349, 1014721557896482, 205973310659733, 180226044402481]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({}, [0.05, 0.25, 0.2, 0.1, 0.4], id="all"),
        pytest.param({"temperature": 0.5}, [0.0025, 0.0625, 0.04, 0.01, 0.16], id="temperature"),
        pytest.param({"top_k": 3}, [0, 0.25, 0.2, 0, 0.4], id="top_k"),
        pytest.param({"top_p": 0.66}, [0, 0.25, 0.2, 0, 0.4], id="top_p"),
        pytest.param({"min_p": 0.2}, [0, 0.25, 0.2, 0.1, 0.4], id="min_p"),
    ],
)
def test_tokens_are_drawn_as_often_as_their_probabilities_say(
    settings: dict[str, float], expected: list[float]
) -> None:
    rows = 8000
    draws = Draws.greedy(rows, vocab_size=5)
    draws.temperature[:] = 1.0
    for name, value in settings.items():
        getattr(draws, name)[:] = value
    draws.position[:] = np.arange(rows)
    logits = np.log(np.array([0.05, 0.25, 0.2, 0.1, 0.4], np.float32))

    counts = np.bincount(sample(np.tile(logits, (rows, 1)), draws).tokens, minlength=5)

    wanted = rows * np.array(expected) / sum(expected)
    kept = wanted > 0
    assert counts[~kept].sum() == 0
    # The 0.999 quantile of chi-square with 4 degrees of freedom.
    assert ((counts - wanted)[kept] ** 2 / wanted[kept]).sum() < 18.47


def test_rows_are_drawn_as_each_alone() -> None:
    rng = np.random.default_rng(0)
    draws = random_draws(60, 131, rng)
    logits = random_logits(60, 131, rng)

    together = sample(logits, draws)

    for row in range(60):
        alone = sample(logits[row], rows_of(draws, slice(row, row + 1)))
        assert alone.tokens[0] == together.tokens[row]
        assert alone.logprobs.tobytes() == together.logprobs[row : row + 1].tobytes()


def test_a_draw_depends_on_the_position_and_on_no_draw_before() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((50, 97)).astype(np.float32)
    draws = Draws.greedy(50, vocab_size=97)
    draws.temperature[:], draws.seed[:], draws.position[:] = 1.0, 3, np.arange(50)
    in_order = sample(logits, draws).tokens

    shuffled = rng.permutation(50)
    draws.position[:] = shuffled

    assert sample(logits[shuffled], draws).tokens.tolist() == in_order[shuffled].tolist()


def test_adjusted_logits_are_divided_or_multiplied_and_then_added_to() -> None:
    logits = np.array([[4.0, -1.0, 2.5, -1.5]], np.float32)
    draws = Draws.greedy(1, vocab_size=4)
    draws.num_adjusted[0] = 3
    draws.adjusted[0, :3] = [3, 0, 1]
    draws.factors[0, :3] = [2.0, 4.0, 2.0]

    # 2.5 is the largest until -1.5 * 2 + 6, 4 / 4 + 2 or -1 * 2 + 5 exceed it.
    found = []
    for addends in ([0.0, 0.0, 0.0], [6.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 5.0]):
        draws.addends[0, :3] = addends
        found.append(sample(logits, draws).tokens[0])

    assert found == [2, 3, 0, 1]


def test_an_adjusted_logit_that_overflows_stays_finite() -> None:
    logits = np.array([[-3e38, 3e38]], np.float32)
    draws = Draws.greedy(1, vocab_size=2)
    draws.temperature[:], draws.num_adjusted[:] = 1.0, 2
    draws.adjusted[0] = [0, 1]
    draws.factors[0] = [10.0, 0.1]

    assert sample(logits, draws).tokens.tolist() == [1]


def test_logprobs_are_those_of_the_raw_logits() -> None:
    rng = np.random.default_rng(0)
    draws = random_draws(40, 67, rng)
    logits = 3 * rng.standard_normal((40, 67)).astype(np.float32)

    drawn = sample(logits, draws)

    exact = np.exp(logits.astype(np.longdouble))
    expected = np.log(exact / exact.sum(1, keepdims=True))[np.arange(40), drawn.tokens]
    asked = draws.with_logprob
    np.testing.assert_allclose(drawn.logprobs[asked], expected[asked].astype(float), atol=1e-13)
    assert np.isnan(drawn.logprobs[~asked]).all()
    assert np.isnan(drawn.normalizers[~asked]).all()


def test_logprobs_of_logits_far_from_zero_are_finite() -> None:
    assert log_sum_exp(np.array([3e38, 3e38, -3e38], np.float32)) == pytest.approx(3e38)
    assert log_sum_exp(np.array([-1000.0, -1000.0], np.float32)) == -1000 + np.log(2)


def test_the_most_probable_tokens_come_first_and_of_equal_ones_the_lower_id() -> None:
    logits = np.array([1.0, 3.0, 2.0, 3.0, 2.0, 2.0], np.float32)

    ids, logprobs = top_logprobs(logits, 4)

    assert ids.tolist() == [1, 3, 2, 4]
    assert logprobs.tolist() == sorted(logprobs, reverse=True)
    assert top_logprobs(logits, 9)[0].tolist() == [1, 3, 2, 4, 5, 0]
    assert np.exp(top_logprobs(logits, 9)[1]).sum() == pytest.approx(1.0)
    assert top_logprobs(logits, 0)[0].size == 0


def test_the_drawn_tokens_number_is_its_number_among_the_alternatives() -> None:
    rng = np.random.default_rng(0)
    draws = random_draws(30, 500, rng)
    draws.with_logprob[:] = True
    logits = 3 * rng.standard_normal((30, 500)).astype(np.float32)

    drawn = sample(logits, draws)

    for row in range(30):
        ids, logprobs = top_logprobs(logits[row], 500, normalizer=drawn.normalizers[row])
        assert logprobs[ids == drawn.tokens[row]].tobytes() == drawn.logprobs[row].tobytes()


def test_columns_beyond_the_vocabulary_are_not_looked_at() -> None:
    logits = np.array([[[1.0, 2.0, np.nan, 9.0]], [[2.0, 1.0, np.inf, 9.0]]], np.float32)

    assert sample(logits, Draws.greedy(2, vocab_size=2)).tokens.tolist() == [1, 0]


def test_nothing_is_drawn_for_no_rows() -> None:
    drawn = sample(np.zeros((0, 5), np.float32), Draws.greedy(0, vocab_size=5))

    assert [len(values) for values in vars(drawn).values()] == [0, 0, 0]


def test_logits_are_not_changed() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((9, 67)).astype(np.float32)
    before = logits.copy()

    sample(logits, random_draws(9, 67, rng))

    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nothing_is_drawn_from_logits_that_are_not_finite(value: float) -> None:
    logits = np.zeros((3, 5), np.float32)
    logits[1, 3], logits[2, 3] = value, 1

    assert sample(logits, Draws.greedy(3, vocab_size=5)).tokens.tolist() == [0, -1, 3]
    with pytest.raises(NumericError, match=f"the logit of token 3 is {value}"):
        require_finite(logits[1])


@pytest.mark.parametrize("shape", [(2, 5), (3, 4), (1, 2, 9), (3, 0)])
def test_logits_must_fit_the_draws(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="these draws are for 3 rows of 5 tokens"):
        sample(np.zeros(shape, np.float32), Draws.greedy(3, vocab_size=5))


def test_a_negative_number_of_alternatives_is_refused() -> None:
    with pytest.raises(InputError, match="-1 alternatives were asked for: pass 0 or more"):
        top_logprobs(np.zeros(5, np.float32), -1)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1e6])
@pytest.mark.parametrize("top_k", [0, 3])
def test_what_is_not_allowed_is_never_drawn(temperature: float, top_k: int) -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((200, 70)).astype(np.float32)
    draws = Draws.greedy(200, vocab_size=70)
    draws.temperature[:], draws.top_k[:] = temperature, top_k
    draws.seed[:] = range(200)
    draws.masked[:] = True
    draws.allowed[:] = [1 << 5, 1 << 31, 1 << 2]

    tokens = sample(logits, draws).tokens

    assert set(tokens.tolist()) == {5, 63, 66}
