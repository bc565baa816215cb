"""Texts that come, leave, begin alike and are put aside at random are to the last bit what each would be alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nanochat.generation.options import Piece
from nanochat.generation.session import Session, generate
from nanochat.ops import Ops
from tests.core.test_session import KINDS, TOKENIZER, AnyEngine, engine_of
from tests.parity.backends import loaded

FEW, MANY = 4, 200
CONTEXT = 1200


@pytest.fixture(scope="module", params=["numba"])
def ops(request: pytest.FixtureRequest) -> Iterator[Ops[Any, Any, Any]]:
    yield from loaded(request.param)


@pytest.mark.usefixtures("many_guesses")
@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_what_they_are_alone(
    ops: Ops[Any, Any, Any], kind: str, pytestconfig: pytest.Config
) -> None:
    engine = engine_of(ops, kind, context_length=CONTEXT)
    put_aside = 0
    for seed in range(MANY if pytestconfig.getoption("--long") else FEW):
        session, wanted, pieces = written(engine, np.random.default_rng(seed))
        put_aside += session.load.put_aside
        for row, (ids, options) in wanted.items():
            found = [(p.token, p.logprob) for p in pieces if p.row == row]
            alone = generate(engine, TOKENIZER, [ids], **{**options, "draft": False, "n": 1})
            assert found == [(p.token, p.logprob) for p in alone], (seed, row)
    assert put_aside > 0


def written(
    engine: AnyEngine, rng: np.random.Generator
) -> tuple[Session[Any], dict[int, tuple[list[int], Any]], list[Piece]]:
    """A session without work, prompt and options of each text that did not leave, and what was written."""
    begin = [rng.integers(5, 60, 900).tolist() for _ in range(2)]
    prompts: list[list[int]] = []
    for _ in range(20):
        if prompts and rng.random() < 0.4:
            prompts.append(prompts[rng.integers(len(prompts))])
        else:
            end = rng.integers(5, 60, rng.integers(0, 3)).tolist()
            prompts.append([*begin[rng.integers(2)][: rng.integers(1, 880)], *end])
    # Too few pages for all that are written at the same time.
    session: Session[Any] = Session(
        engine,
        TOKENIZER,
        rows=4,
        capacity=CONTEXT,
        pages=int(rng.integers(10, 16)),
        prompt_tokens=int(rng.integers(20, 300)),
    )
    wanted: dict[int, tuple[list[int], Any]] = {}
    pieces: list[Piece] = []
    while prompts or not session.is_idle:
        while prompts and rng.random() < 0.3:
            ids, options = prompts.pop(), random_options(rng)
            for number, row in enumerate(session.add(ids, **options)):
                wanted[row] = (ids, {**options, "seed": options["seed"] + number})
        if not session.is_idle:
            pieces += session.step()
        here = [row for row in wanted if session.holds(row)]
        if here and rng.random() < 0.05:
            row = here[rng.integers(len(here))]
            session.cancel(row)
            del wanted[row]
    return session, wanted, pieces


def random_options(rng: np.random.Generator) -> Any:
    options: dict[str, Any] = {
        "max_tokens": int(rng.integers(1, 120)),
        "temperature": 1.0,
        "logprobs": 0,
        "seed": int(rng.integers(3)),
        "n": int(rng.choice([1, 1, 1, 3])),
        "draft": bool(rng.random() < 0.4),
    }
    if rng.random() < 0.2:
        options["prompt_logprobs"] = 0
    if rng.random() < 0.1:
        options["cache_salt"] = "own"
    return options
