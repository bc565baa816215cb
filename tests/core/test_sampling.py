import pickle
import re
from copy import deepcopy
from itertools import pairwise
from math import nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nanochat.draws import Draws, sample
from nanochat.errors import InputError, NumericError, ShapeError
from nanochat.generation.sampling import Sampler, Sampling, StopStrings, batch_samplers, fill_draws

properties = settings(deadline=None, derandomize=True, max_examples=60)

logit_rows = st.lists(
    st.floats(min_value=-30, max_value=30, width=32), min_size=1, max_size=67
).map(lambda values: np.array(values, np.float32))


def logits_of(*probabilities: float) -> NDArray[np.float32]:
    return np.log(np.array(probabilities, np.float32))


def support(row: NDArray[np.float32], how: Sampling, draws: int = 300) -> set[int]:
    """Return the tokens that come up in some draws, enough to meet each that is as likely as 5 %."""
    sampler = Sampler(how)
    return {sampler.next(row) for _ in range(draws)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"temperature": -0.1}, "temperature=-0.1 is not a number", id="cold"),
        pytest.param({"temperature": nan}, "temperature=nan is not a number", id="nan temperature"),
        pytest.param({"temperature": "0.7"}, "temperature='0.7' is not a number", id="text"),
        pytest.param({"top_k": -1}, "top_k=-1 is not an integer from 0", id="negative top_k"),
        pytest.param({"top_k": 40.0}, "top_k=40.0 is not an integer", id="float top_k"),
        pytest.param({"top_k": True}, "top_k=True is not an integer", id="bool top_k"),
        pytest.param({"top_p": 0.0}, "top_p=0.0 keeps no token", id="empty nucleus"),
        pytest.param({"top_p": 1.1}, "top_p=1.1 is not a number from 0 to 1", id="large top_p"),
        pytest.param({"top_p": nan}, "top_p=nan is not a number", id="nan top_p"),
        pytest.param({"min_p": 1.5}, "min_p=1.5 is not a number from 0 to 1", id="large min_p"),
        pytest.param({"min_p": nan}, "min_p=nan is not a number", id="nan min_p"),
        pytest.param(
            {"repetition_penalty": 0.0}, "repetition_penalty=0.0 is not", id="zero penalty"
        ),
        pytest.param(
            {"presence_penalty": 2.5}, "presence_penalty=2.5 is not a number from -2", id="presence"
        ),
        pytest.param(
            {"frequency_penalty": nan}, "frequency_penalty=nan is not", id="nan frequency"
        ),
        pytest.param({"logit_bias": [1]}, "logit_bias=[1] is no mapping", id="list of biases"),
        pytest.param({"logit_bias": {1: 101}}, "logit_bias[1]=101 is not a number", id="bias"),
        pytest.param({"logit_bias": {-1: 0.0}}, "logit_bias=-1 is not", id="negative token"),
        pytest.param({"logit_bias": {"5": 1.0}}, "logit_bias='5' is not", id="text for a token"),
        pytest.param({"seed": -1}, "seed=-1 is not an integer from 0", id="negative seed"),
        pytest.param({"seed": 2**63}, "is not an integer from 0", id="huge seed"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_value(
    values: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Sampling(**values)  # type: ignore[arg-type]  # wrong types are the point


@properties
@given(logit_rows)
def test_temperature_zero_takes_the_first_of_the_largest_logits(row: NDArray[np.float32]) -> None:
    token = Sampler(Sampling(temperature=0.0)).next(row)

    assert token == row.tolist().index(row.max())


@properties
@given(logit_rows, st.integers(0, 2**63 - 1))
def test_top_k_of_one_equals_greedy(row: NDArray[np.float32], seed: int) -> None:
    token = Sampler(Sampling(temperature=1.3, top_k=1, seed=seed)).next(row)

    assert token == Sampler(Sampling(temperature=0.0)).next(row)


@properties
@given(logit_rows, st.integers(0, 2**63 - 1))
def test_a_tiny_temperature_takes_one_of_the_largest_logits(
    row: NDArray[np.float32], seed: int
) -> None:
    token = Sampler(Sampling(temperature=1e-300, seed=seed)).next(row)

    assert row[token] == row.max()


@properties
@given(logit_rows, st.integers(1, 70), st.integers(0, 100))
def test_top_k_never_leaves_the_k_most_probable(
    row: NDArray[np.float32], count: int, seed: int
) -> None:
    sampler = Sampler(Sampling(temperature=5.0, top_k=count, seed=seed))
    most_probable = np.argsort(-row, kind="stable")[:count].tolist()

    tokens = {sampler.next(row) for _ in range(20)}

    assert tokens <= set(most_probable)


@properties
@given(logit_rows, st.floats(0.01, 0.99), st.integers(0, 100))
def test_top_p_never_takes_a_token_behind_more_than_p(
    row: NDArray[np.float32], top_p: float, seed: int
) -> None:
    sampler = Sampler(Sampling(temperature=1.0, top_p=top_p, seed=seed))
    weights = np.exp(row.astype(np.float64))
    probabilities = weights / weights.sum()

    tokens = {sampler.next(row) for _ in range(20)}

    ahead = [probabilities[probabilities > probabilities[token]].sum() for token in tokens]
    assert max(ahead) <= top_p + 1e-12


@properties
@given(logit_rows, st.floats(0.01, 1.0), st.integers(0, 100))
def test_min_p_never_takes_a_token_below_its_share_of_the_largest(
    row: NDArray[np.float32], min_p: float, seed: int
) -> None:
    sampler = Sampler(Sampling(temperature=1.0, min_p=min_p, seed=seed))

    tokens = [sampler.next(row) for _ in range(20)]

    shares = np.exp((row[tokens] - row.max()).astype(np.float64))
    assert shares.min() >= min_p * (1 - 1e-6)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        pytest.param(Sampling(temperature=1.0), {0, 1, 2, 3, 4}, id="all"),
        pytest.param(Sampling(temperature=1.0, top_k=3), {1, 2, 4}, id="top_k"),
        pytest.param(Sampling(temperature=1.0, top_p=0.55), {1, 4}, id="top_p"),
        pytest.param(Sampling(temperature=1.0, top_p=0.01), {4}, id="small top_p"),
        pytest.param(Sampling(temperature=1.0, min_p=0.45), {1, 2, 4}, id="min_p"),
        # Of the first three, 0.4 / 0.85 and 0.25 / 0.85 hold 76 %.
        pytest.param(Sampling(temperature=1.0, top_k=3, top_p=0.75), {1, 4}, id="top_k and top_p"),
        pytest.param(Sampling(temperature=1.0, top_k=2, min_p=0.9), {4}, id="top_k and min_p"),
    ],
)
def test_the_filters_keep_exactly_these(how: Sampling, expected: set[int]) -> None:
    row = logits_of(0.05, 0.25, 0.2, 0.1, 0.4)

    assert support(row, how) == expected


@pytest.mark.parametrize("how", [Sampling(top_k=2), Sampling(top_p=0.39)], ids=["top_k", "top_p"])
def test_of_equal_tokens_a_filter_keeps_those_with_lower_ids(how: Sampling) -> None:
    row = np.zeros(5, np.float32)

    assert support(row, how) == {0, 1}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_up_as_often_as_their_probabilities_say(temperature: float) -> None:
    probabilities = np.array([0.05, 0.25, 0.2, 0.1, 0.4])
    sampler = Sampler(Sampling(temperature=temperature, seed=7))
    row = logits_of(*probabilities)
    draws = 5000

    counts = np.bincount([sampler.next(row) for _ in range(draws)], minlength=5)

    tempered = probabilities ** (1 / temperature)
    expected = draws * tempered / tempered.sum()
    # The 0.999 quantile of chi-square with 4 degrees of freedom.
    assert ((counts - expected) ** 2 / expected).sum() < 18.47


def test_successive_draws_are_independent() -> None:
    sampler = Sampler(Sampling(temperature=1.0, seed=11))
    row = np.zeros(3, np.float32)

    tokens = [sampler.next(row) for _ in range(4501)]

    pairs = np.bincount([3 * first + second for first, second in pairwise(tokens)], minlength=9)
    # The 0.999 quantile of chi-square with 8 degrees of freedom.
    assert ((pairs - 500) ** 2 / 500).sum() < 26.12


def test_the_same_seed_gives_the_same_tokens() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 97)).astype(np.float32)

    first, second = Sampler(Sampling(seed=3)), Sampler(Sampling(seed=3))

    assert [first.next(row) for row in rows] == [second.next(row) for row in rows]


def test_another_seed_gives_other_tokens() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 97)).astype(np.float32)

    first, second = Sampler(Sampling(seed=3)), Sampler(Sampling(seed=4))

    assert [first.next(row) for row in rows] != [second.next(row) for row in rows]


def test_the_tokens_of_a_seed_are_those_of_every_machine() -> None:
    rows = np.random.default_rng(0).standard_normal((8, 97)).astype(np.float32)
    sampler = Sampler(Sampling(temperature=0.7, top_k=40, top_p=0.95, seed=2026), [1, 2, 3])

    assert [sampler.next(row) for row in rows] == [95, 67, 25, 70, 49, 44, 70, 85]


def test_filters_do_not_shift_the_draws_of_later_steps() -> None:
    rows = np.random.default_rng(0).standard_normal((20, 97)).astype(np.float32)
    filtered, free = Sampler(Sampling(top_k=1)), Sampler(Sampling())

    filtered.next(rows[0])
    free.next(rows[0])

    filtered.settings = free.settings
    assert [filtered.next(row) for row in rows] == [free.next(row) for row in rows]


def test_rounding_differences_between_backends_do_not_change_the_text() -> None:
    rng = np.random.default_rng(0)
    rows = 3 * rng.standard_normal((500, 4096)).astype(np.float32)
    other_rows = rows + 1e-5 * rng.standard_normal(rows.shape).astype(np.float32)
    how = Sampling(top_p=0.95, seed=1)

    first, second = Sampler(how), Sampler(how)

    assert [first.next(row) for row in rows] == [second.next(row) for row in other_rows]


def test_a_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    row = np.array([4.0, -1.0, 2.5, -1.5], np.float32)
    how = Sampling(temperature=0.0, repetition_penalty=2.0)

    # Prompt {0}: 4 / 2 is less than 2.5. Then 2 is seen, too: 2.5 / 2 is less than 4 / 2.
    sampler = Sampler(how, prompt_ids=[0])
    positive = [sampler.next(row), sampler.next(row)]
    # -1 * 2 is less than -1.5.
    negative = Sampler(how, prompt_ids=[0]).next(row[[1, 3]])

    assert (positive, negative) == ([2, 0], 1)


def penalized(
    logits: NDArray[np.float32], how: Sampling, prompt: list[int], answer: list[int]
) -> int:
    """Return the greedy token by the definitions of vLLM and OpenAI, token by token in float64."""
    scores = [float(logit) for logit in logits]
    for token in range(len(scores)):
        if token in prompt or token in answer:
            scores[token] *= (
                1 / how.repetition_penalty if scores[token] > 0 else how.repetition_penalty
            )
        count = answer.count(token)
        scores[token] -= how.presence_penalty * (count > 0) + how.frequency_penalty * count
        scores[token] += how.logit_bias.get(token, 0.0)
    return scores.index(max(scores))


@pytest.mark.parametrize(
    "penalties",
    [
        pytest.param({"presence_penalty": 0.3}, id="presence"),
        pytest.param({"frequency_penalty": 0.2}, id="frequency"),
        pytest.param({"frequency_penalty": -0.4, "presence_penalty": 1.0}, id="rewards"),
        pytest.param({"logit_bias": {3: 1.5, 11: -0.5}}, id="bias"),
        pytest.param(
            {
                "repetition_penalty": 1.3,
                "presence_penalty": 0.4,
                "frequency_penalty": 0.3,
                "logit_bias": {0: 0.7, 12: 1.0},
            },
            id="all",
        ),
    ],
)
def test_penalties_are_those_of_a_slow_computation(penalties: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    how = Sampling(temperature=0.0, **penalties)
    prompt = [0, 5, 5, 9]
    sampler = Sampler(how, prompt)
    logits = rng.standard_normal(13).astype(np.float32)

    answer: list[int] = []
    for _ in range(60):
        expected = penalized(logits, how, prompt, answer)
        answer.append(sampler.next(logits))
        assert answer[-1] == expected


def test_tokens_of_the_prompt_have_no_presence() -> None:
    how = Sampling(temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0)

    assert Sampler(how, prompt_ids=[1, 1]).next(np.array([0.9, 1.0], np.float32)) == 1


@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        pytest.param({1: -100.0}, {0, 2}, id="banned"),
        pytest.param({1: 100.0}, {1}, id="forced"),
        pytest.param({np.int64(0): np.float32(-100.0), 2: -100}, {1}, id="all others banned"),
    ],
)
def test_a_bias_bans_or_forces_a_token(bias: dict[int, float], expected: set[int]) -> None:
    row = np.array([1.0, 2.0, 0.5], np.float32)

    assert support(row, Sampling(temperature=1.0, logit_bias=bias)) == expected


def test_a_bias_of_a_token_outside_the_vocabulary_is_an_error() -> None:
    sampler = Sampler(Sampling(logit_bias={4: 1.0, 5: 1.0}))

    with pytest.raises(InputError, match="logit_bias id 5 is not below the vocabulary of 5"):
        sampler.next(np.zeros(5, np.float32))


def test_no_seed_is_a_random_one_that_repeats_the_text() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 97)).astype(np.float32)
    first, second = Sampling(seed=None), Sampling(seed=None)

    again = Sampler(Sampling(seed=first.seed))

    sampler = Sampler(first)
    assert [again.next(row) for row in rows] == [sampler.next(row) for row in rows]
    assert first.seed != second.seed


def test_settings_can_be_copied_compared_and_hashed() -> None:
    how = Sampling(logit_bias={3: 1.0})

    assert pickle.loads(pickle.dumps(how)) == how == deepcopy(how)
    assert hash(how) == hash(Sampling(logit_bias={3: 1.0}))
    assert how != Sampling(logit_bias={3: 2.0})


def test_a_mapping_of_biases_that_changes_later_changes_no_settings() -> None:
    bias = {3: 1.0}
    how = Sampling(logit_bias=bias)

    bias[3] = -100.0

    assert how.logit_bias == {3: 1.0}


def test_logits_are_not_changed() -> None:
    row = np.array([4.0, -1.0, 2.5], np.float32)

    Sampler(Sampling(repetition_penalty=2.0), prompt_ids=[0]).next(row)

    assert row.tolist() == [4.0, -1.0, 2.5]


def test_extreme_logits_raise_no_warning() -> None:
    row = np.array([-3e38, 3e38, 0.0, 3e38], np.float32)
    how = Sampling(temperature=1e-6, repetition_penalty=10.0, top_p=0.9, min_p=0.1)

    assert Sampler(how, prompt_ids=[3]).next(row) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_an_error(value: float) -> None:
    row = np.array([0.0, value, 1.0], np.float32)

    with pytest.raises(NumericError, match="the logit of token 1 is"):
        Sampler(Sampling()).next(row)


@pytest.mark.parametrize("shape", [(0,), (1, 5), ()])
def test_logits_must_be_one_row(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="one sampler per row"):
        Sampler(Sampling()).next(np.zeros(shape, np.float32))


def test_a_negative_prompt_id_is_an_error() -> None:
    with pytest.raises(InputError, match="prompt id -1 is negative"):
        Sampler(Sampling(), prompt_ids=[5, -1])


def test_a_prompt_id_outside_the_vocabulary_is_an_error() -> None:
    for how in (Sampling(), Sampling(repetition_penalty=1.1)):
        for token in (5, 2**40):
            with pytest.raises(InputError, match=f"prompt id {token} is not below the vocabulary"):
                Sampler(how, prompt_ids=[token]).next(np.zeros(5, np.float32))


def test_a_pushed_token_must_be_of_the_vocabulary() -> None:
    sampler = Sampler(Sampling(presence_penalty=1.0))

    with pytest.raises(InputError, match="pushed id -1 is negative"):
        sampler.push(-1)
    sampler.push(2**40)
    with pytest.raises(InputError, match="is not below the vocabulary of 5 tokens"):
        sampler.next(np.zeros(5, np.float32))


def test_row_i_of_a_batch_draws_with_the_seed_plus_i() -> None:
    rows = np.random.default_rng(0).standard_normal((30, 97)).astype(np.float32)
    prompts = [[1], [2, 3], []]

    batch = batch_samplers(Sampling(seed=10), prompts)

    alone = Sampler(Sampling(seed=11), prompts[1])
    assert [batch[1].next(row) for row in rows] == [alone.next(row) for row in rows]


def test_rows_of_draws_are_what_each_sampler_would_draw() -> None:
    logits = np.random.default_rng(0).standard_normal((3, 97)).astype(np.float32)
    how = Sampling(seed=10, repetition_penalty=3.0, top_p=0.9)
    prompts = [[1], list(range(40)), []]
    batch, alone = batch_samplers(how, prompts), batch_samplers(how, prompts)
    draws = Draws.greedy(5, vocab_size=97)
    rows = np.concatenate([logits, logits[:2]])

    for _ in range(20):
        fill_draws(draws, batch)
        tokens = sample(rows, draws).tokens
        for sampler, token in zip(batch, tokens[:3], strict=True):
            sampler.push(int(token))

        expected = [sampler.next(row) for sampler, row in zip(alone, logits, strict=True)]
        assert tokens.tolist() == [*expected, *logits[:2].argmax(1)]


def test_a_sampler_asks_for_log_probabilities_when_it_is_told_to() -> None:
    draws = Draws.greedy(3, vocab_size=5)

    fill_draws(draws, [Sampler(Sampling()), Sampler(Sampling(), with_logprob=True)])

    assert draws.with_logprob.tolist() == [False, True, False]


def test_a_seed_beyond_the_last_goes_on_with_the_first() -> None:
    batch = batch_samplers(Sampling(seed=2**63 - 1), [[], []])

    assert [sampler.seed for sampler in batch] == [2**63 - 1, 0]


def streamed(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    """Return all that is emitted for `pieces`, and whether a stop string ended it."""
    stream = StopStrings(stops)
    results = [stream.push(piece) for piece in pieces]
    stopped = any(stopped for _, stopped in results)
    return "".join(text for text, _ in results) + stream.flush(), stopped


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        pytest.param([], ["a", "b"], ("ab", False), id="no stop strings"),
        pytest.param(["x"], ["ab", "xcd", "x"], ("ab", True), id="inside a piece"),
        pytest.param(["</s>"], ["a<", "/", "s", ">b"], ("a", True), id="across pieces"),
        pytest.param(["</s>"], ["a<", "/", "t>"], ("a</t>", False), id="a false start"),
        pytest.param(["</s>"], ["a</s"], ("a</s", False), id="text ends within a start"),
        pytest.param(["aab"], ["aa", "aab"], ("aa", True), id="a start inside a start"),
        pytest.param(["bcd", "c"], ["abcd"], ("ab", True), id="the first complete one wins"),
        pytest.param(["c", "abc"], ["xabc"], ("x", True), id="the longer of two that end alike"),
        pytest.param(["\N{SNOWMAN}"], ["a\N{SNOWMAN}b"], ("a", True), id="beyond ASCII"),
    ],
)
def test_text_ends_at_the_first_stop_string(
    stops: list[str], pieces: list[str], expected: tuple[str, bool]
) -> None:
    assert streamed(stops, pieces) == expected


@properties
@given(
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.text("ab", max_size=30),
    st.lists(st.integers(0, 30), max_size=8),
)
def test_where_the_text_is_cut_into_pieces_does_not_matter(
    stops: list[str], text: str, cuts: list[int]
) -> None:
    bounds = [0, *sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(bounds)]

    assert streamed(stops, pieces) == streamed(stops, [text])


@properties
@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.text("ab", max_size=30))
def test_what_is_emitted_starts_the_text_and_holds_no_stop_string(
    stops: list[str], text: str
) -> None:
    emitted, stopped = streamed(stops, list(text))

    assert text.startswith(emitted)
    assert not any(stop in emitted for stop in stops)
    assert stopped == any(stop in text for stop in stops)


def test_nothing_is_emitted_after_a_stop_string() -> None:
    stream = StopStrings(["x"])
    stream.push("ax")

    assert (stream.push("more"), stream.flush()) == (("", True), "")


@pytest.mark.parametrize(
    ("stops", "message"),
    [
        pytest.param("</s>", "pass ['</s>']", id="one string"),
        pytest.param(["a", ""], "stop holds an empty string", id="empty"),
    ],
)
def test_stop_strings_that_cannot_work_are_refused(stops: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        StopStrings(stops)
