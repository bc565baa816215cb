"""Texts of a session are to the bit what each would be alone, whatever a model is made of."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nanochat.generation.engine import Engine
from nanochat.generation.session import Session, generate
from nanochat.init import freeze
from nanochat.ops import Ops
from tests.parity.backends import exact_pairs, loaded
from tests.parity.cases import CASES
from tests.parity.random_models import random_tokenizer, random_weights

AnyOps = Ops[Any, Any, Any]

TOKENIZER = random_tokenizer()


@pytest.fixture(scope="module")
def ops(request: pytest.FixtureRequest) -> Iterator[AnyOps]:
    yield from loaded(request.param)


def logged(pieces: Any) -> dict[int, list[tuple[int, float | None]]]:
    found: dict[int, list[tuple[int, float | None]]] = defaultdict(list)
    for piece in pieces:
        found[piece.row].append((piece.token, piece.logprob))
    return found


@pytest.mark.parametrize(("ops", "case"), exact_pairs(one_of=5), indirect=["ops"])
def test_texts_have_the_bits_that_they_have_alone(ops: AnyOps, case: str) -> None:
    config = replace(CASES[case], vocab_size=TOKENIZER.vocab_size)
    engine = Engine(config, ops.prepare(freeze(random_weights(config))), ops)
    ids = np.random.default_rng(5).integers(5, 60, 30).tolist()
    assert ops.is_exact
    # They share beginnings, and there is a page too few.
    session = Session(engine, TOKENIZER, rows=3, capacity=60, pages=2, prompt_tokens=7)
    # Log-probabilities tell any bit of the logits.
    options: Any = {"max_tokens": 6, "temperature": 1.0, "logprobs": 0}
    prompts = [ids[:25], [*ids[:20], 9, 8], ids[:25], [7], [*ids, 6]]
    expected = [logged(generate(engine, TOKENIZER, [one], seed=3, **options))[0] for one in prompts]

    pieces = []
    rows = []
    for number, prompt in enumerate(prompts):
        rows += session.add(prompt, seed=3, **options)
        gone = session.add(ids[: 10 + number], seed=number, **options)
        # Members change at every step.
        for _ in range(2):
            pieces += session.step()
        if session._places.find(gone[0]) is not None:
            session.cancel(gone[0])
    while not session.is_idle:
        pieces += session.step()

    found = logged(pieces)
    assert [found[row] for row in rows] == expected
    assert session.load.put_aside > 0
