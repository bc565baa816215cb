from typing import Any

import numpy as np
import pytest

from nanochat.draws import Draws, sample, top_logprobs
from nanochat.errors import ShapeError
from nanochat.ops import Ops
from tests.parity.random_draws import random_draws, random_logits


@pytest.mark.parametrize("vocab_size", [1, 2, 3, 67, 128, 257, 1000, 4096])
def test_all_backends_pick_the_same(ops: Ops[Any, Any, Any], vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    logits = random_logits(600, vocab_size, rng)
    draws = random_draws(600, vocab_size, rng)

    found, expected = ops.sample(ops.array(logits), draws), sample(logits, draws)

    assert found.tokens.dtype == np.int64
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(found.normalizers, expected.normalizers, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", [(6, 80), (6, 1, 80), (1, 6, 80), (2, 3, 80)])
def test_rows_may_be_sequences_or_tokens_of_one_and_wider_than_the_vocabulary(
    ops: Ops[Any, Any, Any], shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    logits, draws = random_logits(6, 80, rng), random_draws(6, 67, rng)
    expected = sample(logits[:, :67].copy(), draws).tokens
    logits[:, 67:] = np.nan

    found = ops.sample(ops.array(logits.reshape(shape)), draws).tokens

    assert found.tolist() == expected.tolist()


def test_the_drawn_tokens_number_is_its_number_among_the_alternatives(
    ops: Ops[Any, Any, Any],
) -> None:
    rng = np.random.default_rng(0)
    logits, draws = random_logits(30, 300, rng), random_draws(30, 300, rng)
    draws.with_logprob[:] = True

    drawn = ops.sample(ops.array(logits), draws)

    for row, normalizer in enumerate(drawn.normalizers):
        ids, logprobs = top_logprobs(logits[row], 300, normalizer=normalizer)
        assert logprobs[ids == drawn.tokens[row]].tobytes() == drawn.logprobs[row].tobytes()


def test_logits_are_not_changed(ops: Ops[Any, Any, Any]) -> None:
    rng = np.random.default_rng(0)
    before = random_logits(30, 300, rng)
    logits = ops.array(before)

    ops.sample(logits, random_draws(30, 300, rng))

    np.testing.assert_array_equal(ops.numpy(logits), before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nothing_is_drawn_from_logits_that_are_not_finite(
    ops: Ops[Any, Any, Any], value: float
) -> None:
    logits = np.zeros((3, 300), np.float32)
    logits[1, 290], logits[2, 3] = value, 1

    drawn = ops.sample(ops.array(logits), Draws.greedy(3, vocab_size=300))

    assert drawn.tokens.tolist() == [0, -1, 3]


@pytest.mark.parametrize("shape", [(2, 5), (3, 4), (1, 2, 9)])
def test_logits_must_fit_the_draws(ops: Ops[Any, Any, Any], shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="these draws are for 3 rows of 5 tokens"):
        ops.sample(ops.array(np.zeros(shape, np.float32)), Draws.greedy(3, vocab_size=5))
