"""What is kept of texts is found again by its tokens, and by nothing else, until its pages are needed."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from nanochat.backends.reference.state import ReferenceState
from nanochat.generation.prefixes import Prefixes, shared_length
from nanochat.ops import Slot
from nanochat.rows import PAGE
from tests.parity.rows import stepping

ATTENTION = Slot(kind="attention", heads=1, key_dim=2)
DELTA = Slot(kind="delta", heads=1, key_dim=2, value_dim=2)


def new_state(*slots: Slot, pages: int = 400) -> ReferenceState:
    return ReferenceState(slots or (ATTENTION,), rows=4, capacity=1200, pages=pages)


def keep(
    prefixes: Prefixes,
    state: ReferenceState,
    ids: Sequence[int],
    *,
    salt: str = "",
    whole: bool = True,
) -> None:
    """Let a row read tokens, as far as they are not kept, keep them, and end the row."""
    found = prefixes.find(ids, salt=salt)
    if found.length:
        prefixes.use(ids, found, salt=salt)
    row = state.admit_pages(found.pages, found.length, found.recurrent)
    if len(ids) > found.length:
        with stepping(state, [row], [len(ids) - found.length]):
            pass
    prefixes.keep(ids, row, salt=salt, whole=whole)
    state.release(row)


def texts(count: int) -> Iterator[list[int]]:
    """Texts that share beginnings of all lengths."""
    rng = np.random.default_rng(2)
    made: list[list[int]] = [[]]
    for _ in range(count):
        old = made[rng.integers(len(made))]
        places = [len(old), int(rng.integers(len(old) + 1)), len(old) // PAGE * PAGE]
        at = int(rng.choice(places))
        new = rng.integers(0, 3, int(rng.choice([1, 5, PAGE, PAGE + 1, 300]))).tolist()
        made.append([*old[:at], *new][:1100])
        yield made[-1]


@pytest.mark.parametrize(
    ("left", "right"),
    [([], [1]), ([1], [1]), ([1] * 400, [1] * 300), ([1] * 300 + [2], [1] * 300 + [3])],
)
def test_the_shared_length_is_that_of_the_equal_tokens(left: list[int], right: list[int]) -> None:
    pairs = zip(left, right, strict=False)
    expected = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))

    assert shared_length(left, right) == shared_length(right, left) == expected


def test_what_is_found_is_the_longest_beginning_of_any_text() -> None:
    state = new_state()
    prefixes = Prefixes(state, copies=0)
    kept: list[list[int]] = []
    for ids in texts(60):
        longest = max((shared_length(ids, other) for other in kept), default=0)
        found = prefixes.find(ids, salt="")
        assert found.length == longest
        assert len(found.pages) == -(-longest // PAGE)
        keep(prefixes, state, ids)
        kept.append(ids)
        assert prefixes.find(ids, salt="").length == len(ids)


def test_full_pages_alone_are_kept_of_a_row_that_goes_on() -> None:
    state = new_state()
    prefixes = Prefixes(state, copies=0)
    ids = [*range(300)]

    keep(prefixes, state, ids, whole=False)

    assert prefixes.find(ids, salt="").length == 2 * PAGE
    assert prefixes.num_pages == 2


def test_a_text_that_goes_on_replaces_its_last_page() -> None:
    state = new_state()
    prefixes = Prefixes(state, copies=0)
    for length in (100, 120, 130, 250):
        keep(prefixes, state, [*range(length)])

    assert prefixes.num_pages == 2
    assert state.num_pages - state.free_pages == 2


@pytest.mark.parametrize("slots", [(ATTENTION,), (ATTENTION, DELTA)], ids=["attention", "delta"])
def test_all_pages_are_free_once_all_is_forgotten(slots: tuple[Slot, ...]) -> None:
    state = new_state(*slots)
    prefixes = Prefixes(state, copies=3)
    for number, ids in enumerate(texts(60)):
        keep(prefixes, state, ids, salt=str(number % 3))
    assert state.num_pages - state.free_pages == prefixes.num_pages > 20

    while prefixes.forget():
        pass

    assert (prefixes.num_pages, state.free_pages) == (0, state.num_pages)
    assert prefixes._roots == {}
    assert not prefixes._copied


def test_what_was_used_last_is_forgotten_last_and_the_ends_of_texts_first() -> None:
    state = new_state()
    prefixes = Prefixes(state, copies=0)
    first, second = [1] * 3 * PAGE, [2] * 2 * PAGE
    keep(prefixes, state, first)
    keep(prefixes, state, second)
    prefixes.use(first, prefixes.find(first[:PAGE], salt=""), salt="")

    lengths = []
    while prefixes.forget():
        lengths.append([prefixes.find(ids, salt="").length // PAGE for ids in (first, second)])

    assert lengths == [[2, 2], [1, 2], [1, 1], [1, 0], [0, 0]]


def test_another_salt_finds_nothing() -> None:
    state = new_state()
    prefixes = Prefixes(state, copies=0)
    keep(prefixes, state, [1] * 200, salt="mine")

    assert prefixes.find([1] * 200, salt="mine").length == 200
    assert prefixes.find([1] * 200, salt="").length == 0


def test_what_cannot_go_back_is_found_where_it_was_copied() -> None:
    state = new_state(ATTENTION, DELTA)
    prefixes = Prefixes(state, copies=2)
    ids = [*range(600)]
    keep(prefixes, state, ids[:150])
    keep(prefixes, state, ids[:512])

    assert [prefixes.find(ids[:n], salt="").length for n in (149, 150, 511, 512, 600)] == [
        0,
        150,
        150,
        512,
        512,
    ]
    assert prefixes.find([*ids[:200], 9], salt="").length == 150
    prefixes.use(ids, prefixes.find(ids[:150], salt=""), salt="")
    # The third copy takes the place of the one that was not used for longest.
    keep(prefixes, state, [700] * 50)
    assert [prefixes.find(ids[:n], salt="").length for n in (150, 512, 600)] == [150, 150, 150]
