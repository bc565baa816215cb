"""A step that is repeated without Python gives the bits of one that is run by the model's code."""

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nanochat.backends.numba.ops import NumbaOps
from nanochat.config import ModelConfig
from nanochat.errors import ContextLengthError, InputError
from nanochat.generation.engine import Engine
from nanochat.generation.sampling import Sampling, batch_samplers
from nanochat.init import freeze
from tests.parity.cases import CASES
from tests.parity.random_models import random_weights

pytestmark = pytest.mark.usefixtures("all_cores")


AnyEngine = Engine[Any, Any, Any]


def engine(config: ModelConfig, *, threads: int = 1, repeats: bool = True) -> AnyEngine:
    ops = NumbaOps(num_threads=threads)
    weights = ops.prepare(freeze(random_weights(config)))
    made = Engine(config, weights, ops)
    if not repeats:
        made._repeats = None
    return made


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("option", CASES)
def test_repeated_steps_equal_steps_by_the_models_code(option: str, threads: int) -> None:
    config = CASES[option]
    found, expected = engine(config, threads=threads), engine(config, repeats=False)
    states = [each.prefill([1, 2, 3], capacity=12)[0] for each in (found, expected)]

    for token in (4, 0, 3, 1):
        logits = found.decode([token], states[0])
        np.testing.assert_array_equal(logits, expected.decode([token], states[1]))


@pytest.mark.parametrize("option", CASES)
def test_a_step_of_every_model_is_repeated(option: str) -> None:
    model = engine(CASES[option])
    state, _ = model.prefill([1, 2], capacity=4)

    model.decode([3], state)

    assert state.repeated["logits", 1].notes.complete


@pytest.mark.parametrize("option", CASES)
def test_a_step_of_several_tokens_a_row_is_repeated(option: str) -> None:
    model, expected = engine(CASES[option]), engine(CASES[option], repeats=False)
    states = [each.new_state(rows=2, capacity=30) for each in (model, expected)]
    for each, state in zip((model, expected), states, strict=True):
        for _ in range(2):
            each.extend(state, state.admit(), [1, 2])
    samplers = batch_samplers(Sampling(temperature=0.7), [[], []])
    vocab_size = model.config.vocab_size

    # Of one bucket, however the tokens are shared out.
    for counts in ([5, 2], [2, 6], [1, 5], [7, 1]):
        tokens = [[3] * count for count in counts]
        found, other = (
            each.draw(
                state,
                [0, 1],
                tokens,
                samplers,
                vocab_size=vocab_size,
                with_logits=True,
                drafted=[count - 1 for count in counts],
            )
            for each, state in zip((model, expected), states, strict=True)
        )
        np.testing.assert_array_equal(found.logits, other.logits)
        np.testing.assert_array_equal(found.tokens, other.tokens)
    assert [size for _, size in states[0].repeated] == [8]
    assert all(repeated.notes.complete for repeated in states[0].repeated.values())


def test_what_follows_the_exit_of_all_tokens_is_left_out() -> None:
    model = engine(CASES["adaptive_exit_of_all"])
    state, _ = model.prefill([1, 2], capacity=9)
    model.decode([3], state)
    model.decode([4], state)
    calls = [packed.call for packed in state.repeated["logits", 1].notes._program.calls]

    # With these weights all tokens leave after the first loop step.
    left_out = [
        call.kernel.__name__ for call in calls if call.unless is not None and call.unless[0]
    ]
    assert "integer_product" in left_out
    assert not {"append", "select", "leave"} & set(left_out)


def filled(model: AnyEngine, lengths: Sequence[int], *, rows: int) -> Any:
    """A state with a row of each length."""
    state = model.new_state(rows=rows, capacity=20)
    for length in lengths:
        model.extend(state, state.admit(), list(range(1, 1 + length)))
    return state


def test_a_step_is_noted_once_more_for_new_weights_and_then_repeated() -> None:
    model = engine(CASES["4_streams_static_lite"])
    state, _ = model.prefill([1, 2], capacity=9)
    model.decode([3], state)
    before = state.repeated["logits", 1].notes

    for name in ("norm", "layers.0.mixer_site.norm"):
        model.update(name, np.full(128, 2, np.float32))
    model.decode([4], state)
    after = state.repeated["logits", 1].notes
    model.decode([5], state)

    assert after is not before
    assert after.complete
    assert state.repeated["logits", 1].notes is after


def test_what_is_kept_does_not_grow_with_new_weights() -> None:
    model = engine(CASES["4_streams_static_lite"])
    assert isinstance(model.ops, NumbaOps)
    model.logits([1, 2])
    kept = len(model.ops._sites)

    for _ in range(3):
        model.update("norm", np.full(128, 2, np.float32))
        model.logits([1, 2])

    assert len(model.ops._sites) == kept


def test_a_batch_is_repeated_row_by_row() -> None:
    config = CASES["grouped_query_attention"]
    model, plain = engine(config), engine(config, repeats=False)
    states = [filled(each, [3, 1], rows=2) for each in (model, plain)]

    for tokens in ([5, 6], [0, 2], [1, 1]):
        logits = model.decode(tokens, states[0])
        np.testing.assert_array_equal(logits, plain.decode(tokens, states[1]))


@pytest.mark.parametrize("option", ["grouped_query_attention", "loop_with_delta", "experts"])
@pytest.mark.parametrize("threads", [1, 2])
def test_steps_of_any_rows_are_repeated_whoever_comes_and_goes(option: str, threads: int) -> None:
    found, plain = engine(CASES[option], threads=threads), engine(CASES[option], repeats=False)
    states = [filled(each, [3, 1, 5, 2, 1], rows=9) for each in (found, plain)]

    for rows in ([0, 1, 2, 3, 4], [4, 2], [0, 1, 2, 3, 4], [3, 0, 1, 4, 2], [1], [2, 4]):
        tokens = [[row] for row in rows]
        logits = found.step(states[0], rows, tokens)
        np.testing.assert_array_equal(logits, plain.step(states[1], rows, tokens))
    for state, each in zip(states, (found, plain), strict=True):
        state.release(1)
        each.extend(state, state.admit(), [7, 8])
        state.fork(0), state.fork(2)
    for rows in ([6, 1, 5, 2, 0], [0, 1, 2, 3, 4, 5, 6], [5, 6]):
        tokens = [[row] for row in rows]
        logits = found.step(states[0], rows, tokens)
        np.testing.assert_array_equal(logits, plain.step(states[1], rows, tokens))


def test_steps_of_nearly_as_many_rows_have_one_list() -> None:
    model = engine(CASES["grouped_query_attention"])
    state = filled(model, [1] * 12, rows=12)

    for number in (1, 2, 3, 4, 5, 6, 7, 8, 11, 12):
        model.step(state, range(number), [[1]] * number)

    assert sorted(size for _, size in state.repeated) == [1, 2, 3, 4, 8, 12]


def test_a_repeated_step_refuses_what_the_first_one_refuses() -> None:
    config = CASES["grouped_query_attention"]
    model = engine(config)
    state, _ = model.prefill([1, 2], capacity=4)
    model.decode([3], state)

    with pytest.raises(InputError, match="token ids"):
        model.decode([config.vocab_size], state)
    model.decode([3], state)
    with pytest.raises(ContextLengthError):
        model.decode([3], state)


def test_a_state_is_freed_when_nobody_holds_it() -> None:
    model = engine(CASES["grouped_query_attention"])
    state, _ = model.prefill([1, 2], capacity=8)
    model.decode([3], state)
    model.decode([4], state)
    freed = weakref.ref(state)

    gc.disable()
    del state
    left = freed()
    gc.enable()

    assert left is None


def test_attention_of_a_repeated_step_is_cut_for_a_long_context() -> None:
    config = replace(CASES["grouped_query_attention"], context_length=100_000)
    model = engine(config, threads=2)
    state, _ = model.prefill([1, 2], capacity=100_000)
    model.decode([3], state)
    model.decode([3], state)
    program = state.repeated["logits", 1].notes._program
    chunks = 3
    growing = [i for i, c in enumerate(program.calls) if c.call.nanoseconds_per_position]
    short = program.table[growing, chunks].tolist()

    state.begin([0], [90_000])
    state.end()
    model.decode([3], state)

    assert short == [1, 1]
    # As many as there are key heads.
    assert program.table[growing, chunks].tolist() == [2, 2]


@pytest.mark.parametrize("method", ["logits", "prefill", "decode"])
def test_no_token_is_refused(method: str) -> None:
    model = engine(CASES["grouped_query_attention"])
    state, _ = model.prefill([1], capacity=4)
    options = {"logits": {}, "prefill": {"capacity": 4}, "decode": {"state": state}}[method]

    with pytest.raises(InputError, match="no token"):
        getattr(model, method)([], **options)


def test_two_states_of_one_model_do_not_share_their_steps() -> None:
    config = CASES["grouped_query_attention"]
    model = engine(config)
    first, _ = model.prefill([1, 2], capacity=8)
    again, _ = model.prefill([1, 2], capacity=8)

    once = [model.decode([token], first) for token in (3, 4, 5)]
    twice = [model.decode([token], again) for token in (3, 4, 5)]

    np.testing.assert_array_equal(once, twice)
