"""Texts whose tokens are guessed are to the bit what they are without, whatever a model is made of."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nanochat.backends.reference.ops import ReferenceOps
from nanochat.errors import InputError
from nanochat.generation.engine import Engine
from nanochat.generation.options import Piece
from nanochat.generation.sampling import Sampling, batch_samplers
from nanochat.generation.session import Session, generate
from nanochat.init import freeze
from nanochat.model import training_outputs
from nanochat.ops import Ops
from tests.parity.backends import backends_under_test, exact_backends, exact_pairs, loaded
from tests.parity.cases import CASES
from tests.parity.random_models import random_tokenizer, random_weights

AnyOps = Ops[Any, Any, Any]

TOKENIZER = random_tokenizer()


@pytest.fixture(scope="module")
def ops(request: pytest.FixtureRequest) -> Iterator[AnyOps]:
    yield from loaded(request.param)


def engine_of(ops: AnyOps, case: str) -> Engine[Any, Any, Any]:
    config = replace(CASES[case], vocab_size=TOKENIZER.vocab_size)
    return Engine(config, ops.prepare(freeze(random_weights(config))), ops)


def told(pieces: list[Piece]) -> list[tuple[int, float | None, str | None]]:
    return [(piece.token, piece.logprob, piece.finish_reason) for piece in pieces]


def written(session: Session[Any], rows: list[int]) -> list[list[Piece]]:
    pieces: dict[int, list[Piece]] = {row: [] for row in rows}
    while not session.is_idle:
        for piece in session.step():
            pieces[piece.row].append(piece)
    return [pieces[row] for row in rows]


@pytest.mark.usefixtures("many_guesses")
@pytest.mark.parametrize(("ops", "case"), exact_pairs(one_of=7), indirect=["ops"])
def test_texts_that_are_guessed_have_the_bits_of_others(ops: AnyOps, case: str) -> None:
    engine = engine_of(ops, case)
    ids = np.random.default_rng(5).integers(5, 60, 9).tolist()
    options: Any = {"max_tokens": 24, "temperature": 1.0, "logprobs": 0, "repetition_penalty": 1.1}
    options["ignore_eos"] = True
    prompts = [ids, [*ids[:5], 9], [7]]
    expected = [
        list(generate(engine, TOKENIZER, [prompt], seed=3 + row, **options))
        for row, prompt in enumerate(prompts)
    ]
    session = Session(engine, TOKENIZER, rows=2, capacity=33, pages=2)
    rows = []
    for number, prompt in enumerate(prompts):
        # Right, but for some; and one text is not guessed at all.
        tokens = [piece.token + (place % 5 == 4) for place, piece in enumerate(expected[number])]
        draft: Any = {"prediction": tokens, "draft": number != 2}
        rows += session.add(prompt, seed=3 + number, **options, **draft)

    found = written(session, rows)

    assert [told(pieces) for pieces in found] == [told(pieces) for pieces in expected]
    last = [pieces[-1] for pieces in found]
    assert all(piece.drafted > piece.accepted > 5 for piece in last[:2])
    assert last[2].drafted == 0
    assert session.load.pages_used - session.load.pages_kept == 0


@pytest.mark.usefixtures("many_guesses")
@pytest.mark.parametrize("ops", exact_backends(), indirect=True)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_extra_heads_guess_changes_no_text(ops: AnyOps, temperature: float) -> None:
    engine = engine_of(ops, "ahead")
    prompts = [[5, 6, 7], [9, 8]]
    options: Any = {"max_tokens": 24, "temperature": temperature, "logprobs": 0, "ignore_eos": True}
    expected = [list(generate(engine, TOKENIZER, [ids], seed=2, **options)) for ids in prompts]
    session = Session(engine, TOKENIZER, rows=2, heads=True)
    rows = [
        *session.add(prompts[0], seed=2, **options, draft="heads"),
        *session.add(prompts[1], seed=2, **options),
    ]

    found = written(session, rows)

    assert [told(pieces) for pieces in found] == [told(pieces) for pieces in expected]
    # Two heads have guessed, of which the weights are random.
    assert found[0][-1].drafted > 5
    assert found[1][-1].drafted == 0


@pytest.mark.parametrize("ops", exact_backends(), indirect=True)
def test_extra_heads_say_what_they_say_in_training(ops: AnyOps) -> None:
    config = replace(CASES["ahead"], vocab_size=TOKENIZER.vocab_size)
    weights = freeze(random_weights(config))
    engine = Engine(config, ops.prepare(weights), ops)
    ids = [5, 6, 7, 8, 9]
    state = engine.new_state(rows=1, capacity=9, ahead=True)
    row = state.admit()
    samplers = batch_samplers(Sampling(temperature=0.0), [ids])
    engine.step(state, [row], [ids[:2]])

    choices = engine.draw(
        state, [row], [ids[2:]], samplers, vocab_size=config.vocab_size, drafted=[2]
    )

    assert choices.ahead is not None
    found = engine.ahead(choices.ahead[2:], samplers, vocab_size=config.vocab_size)
    reference = ReferenceOps()
    leaves = reference.prepare(weights)
    trained = training_outputs(reference.tokens(np.array([ids])), leaves, config, reference)
    logits = [reference.project(x, trained.table)[0][0, -1] for x in trained.ahead]
    assert found.tolist() == [[int(np.argmax(row)) for row in logits]]


@pytest.mark.skipif("torch" not in backends_under_test(), reason="torch is not under test")
@pytest.mark.parametrize("ops", ["torch"], indirect=True)
def test_where_texts_are_not_exact_drafts_are_refused(ops: AnyOps) -> None:
    engine = engine_of(ops, next(iter(CASES)))

    for options in ({"draft": True}, {"prediction": "abc"}):
        with pytest.raises(InputError, match="load the model with backend numba"):
            list(generate(engine, TOKENIZER, [[5]], max_tokens=3, **options))
