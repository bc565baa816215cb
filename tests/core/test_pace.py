"""Prompts are read as fast as texts that are being written can bear."""

from typing import Any

import pytest

from nanochat.generation.pace import Pace
from nanochat.generation.session import Session
from tests.core.test_session import TOKENIZER, random_engine


def test_without_anybody_to_wait_a_prompt_is_read_as_fast_as_it_can_be() -> None:
    pace = Pace(512, stretch=2.5)
    pace.note(1.0, num_writing=0, num_read=10)

    assert pace.tokens(num_writing=0, num_reading=1) == 512
    assert Pace(512).tokens(num_writing=8, num_reading=1) == 512


@pytest.mark.parametrize(
    ("step", "token", "expected"), [(0.01, 0.0001, 148), (0.01, 1.0, 4), (1.0, 1e-6, 512)]
)
def test_a_step_takes_no_longer_than_it_may(step: float, token: float, expected: int) -> None:
    pace = Pace(512, stretch=2.5)
    assert pace.tokens(num_writing=1, num_reading=0) == 128

    for _ in range(100):
        pace.note(step, num_writing=4, num_read=0)
        pace.note(step + 100 * token, num_writing=4, num_read=100)

    assert pace.tokens(num_writing=4, num_reading=0) == expected
    # Texts that wait for their prompts are let in faster.
    assert pace.tokens(num_writing=4, num_reading=4) >= expected


def test_a_session_reads_a_prompt_in_parts_beside_a_text_and_whole_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nanochat.generation.pace._SMOOTH", 0.0)
    engine, read = random_engine(context_length=600), []
    draw = engine.draw

    def watch(state: Any, rows: Any, tokens: Any, *rest: Any, **options: Any) -> Any:
        read.append(sorted(map(len, tokens)))
        return draw(state, rows, tokens, *rest, **options)

    engine.draw = watch  # type: ignore[method-assign]
    session = Session(engine, TOKENIZER, rows=2, stretch=1.0, prefix_cache=False)
    session.add([7] * 300, max_tokens=100)
    while len(read) < 4:
        session.step()
    assert read == [[300], [1], [1], [1]]

    read.clear()
    session.add([8] * 200, max_tokens=2)
    while not read or read[-1] != [1, 1]:
        session.step()

    parts = [counts[-1] for counts in read[:-1]]
    assert sum(parts) == 200
    # A step may take no longer at all, so that the rest is read as slowly as may be.
    assert set(parts[1:-1]) == {4}
