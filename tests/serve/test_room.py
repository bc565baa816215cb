"""Keys and values take as much memory as was allowed, to the byte, and what is shared is there once."""

from typing import Any

import pytest

from nanochat.errors import InputError
from nanochat.generation.session import Session
from nanochat.lm import Model
from nanochat.ops import Storage
from nanochat.rows import PAGE
from nanochat.serve.room import find_room
from tests.parity.random_models import random_bundle

DELTA: dict[str, Any] = {"layer_pattern": ("delta", "attention")}


def model_of(backend: str, kv_cache: Storage = "float32", **options: Any) -> Model:
    bundle = random_bundle(seed=0, context_length=2048, **options)
    return Model.from_bundle(bundle, backend=backend, kv_cache=kv_cache)


def state_bytes(model: Model, rows: int, pages: int | None, capacity: int) -> int:
    state: Any = model.engine.new_state(rows=rows, capacity=capacity, pages=pages)
    return sum(array.nbytes for arrays in state.arrays for array in arrays)


@pytest.mark.parametrize("options", [{}, DELTA], ids=["attention", "delta"])
@pytest.mark.parametrize("kv_cache", ["float32", "float16", "int8"])
@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_the_bytes_of_a_room_are_those_of_its_state_and_copies(
    backend: str, kv_cache: Storage, options: dict[str, Any]
) -> None:
    model = model_of(backend, kv_cache, **options)
    most = 12_000_000

    room = find_room(model, rows=3, kv_memory=most)

    copies = room.copies * model.engine.new_state(rows=1, capacity=PAGE).row_bytes
    assert room.bytes == state_bytes(model, 3, room.pages, room.capacity) + copies <= most
    page = model.engine.new_state(rows=1, capacity=PAGE).page_bytes
    whole = find_room(model, rows=3, kv_memory=10**12)
    assert most - room.bytes < page or room.bytes == whole.bytes


def test_without_a_number_texts_have_room_at_their_longest() -> None:
    model = model_of("reference")

    room = find_room(model, rows=2, kv_memory=0)

    assert room.capacity == 2048
    # And one page for each row whose last page others begin with.
    assert room.pages == 2 * 2048 // PAGE + 2


@pytest.mark.parametrize(("share", "rows"), [(200, 32), (66, 8), (20, 2), (12, 1)])
def test_fewer_texts_are_written_where_each_remembers_much(share: int, rows: int) -> None:
    large: dict[str, Any] = {"delta_heads": 8, "delta_key_dim": 128, "delta_value_dim": 128}
    model = model_of("reference", **large, **DELTA)
    row = model.engine.new_state(rows=1, capacity=PAGE).row_bytes

    room = find_room(model, rows=0, kv_memory=share * row)

    # A state for each, two copies, and a state that nobody reads: half of what there is at most.
    assert room.rows == rows
    assert room.copies == 2 * rows


def test_a_long_context_is_cut_to_what_there_is_room_for() -> None:
    model = model_of("reference")
    page = model.engine.new_state(rows=1, capacity=PAGE).page_bytes

    room = find_room(model, rows=4, kv_memory=8 * page)

    assert (room.pages, room.capacity) == (7, 7 * PAGE)


def test_what_one_short_text_has_no_room_in_is_refused() -> None:
    with pytest.raises(InputError, match=r"pass a larger --kv-memory, a smaller --max-rows, or a"):
        find_room(model_of("reference"), rows=1, kv_memory=1000)


def test_rows_that_begin_alike_hold_their_beginning_once() -> None:
    model = model_of("numba")
    session = Session(model.engine, model.tokenizer, rows=64, capacity=1024)
    shared = [7 + i % 200 for i in range(900)]
    for number in range(64):
        own = [7 + (i * number) % 200 for i in range(97)]
        session.add([*shared, *own], max_tokens=3, ignore_eos=True)
    most = 0
    while not session.is_idle:
        session.step()
        most = max(most, session.load.pages_used)

    # Seven full pages, and of each row the page in which it parts from the others: no more than pages can share.
    assert most <= 7 + 64 + 1
