"""Rows come and go, share pages until one writes, and no mistake of one harms the others."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat.backends.reference.ops import ReferenceOps
from nanochat.backends.reference.state import ReferenceState
from nanochat.errors import ContextLengthError, InputError, MemoryShortageError
from nanochat.ops import Slot
from nanochat.rows import PAGE, Group, Step, num_pages, step_of_spans
from tests.parity.rows import stepping

OPS = ReferenceOps()
SLOTS = (
    Slot(kind="attention", heads=1, key_dim=2),
    Slot(kind="conv", taps=3, features=2),
    Slot(kind="delta", heads=1, key_dim=2, value_dim=2),
)


def new_state(*, rows: int = 3, capacity: int = 300, pages: int | None = None) -> ReferenceState:
    return ReferenceState(SLOTS, rows=rows, capacity=capacity, pages=pages)


def read(
    state: ReferenceState, rows: Sequence[int], counts: Sequence[int], number: float = 1.0
) -> None:
    """Let rows read tokens whose keys, values and all else are this number."""
    total = sum(counts)
    x = np.full((1, total, 2), number, np.float32)
    heads, scalars = x[:, :, None], x[:, :, :1]
    with stepping(state, rows, counts):
        OPS.append_kv(heads, heads, state=state, slot=0)
        OPS.short_conv(x, np.ones((2, 3), np.float32), state=state, slot=1)
        zero = np.zeros(1, np.float32)
        OPS.delta_rule(heads, heads, heads, scalars, scalars, zero, zero, state=state, slot=2)


def admitted(state: ReferenceState, length: int, number: float = 1.0) -> int:
    row = state.admit()
    if length:
        read(state, [row], [length], number)
    return row


def keys(state: ReferenceState, row: int) -> list[float]:
    """The first number of every key of a row."""
    kept: list[float] = state.kept(0, row, state.length(row))[0][:, 0, 0].tolist()
    return kept


def picture(state: ReferenceState) -> list[object]:
    """All that can be seen of a state."""
    rows = [
        (
            row,
            keys(state, row),
            [array[row].tolist() for slot in state.arrays[1:] for array in slot],
        )
        for row in state.rows
    ]
    return [rows, state.free_rows, state.free_pages, state.table.tolist(), state.step]


# What is refused.


def some_rows() -> tuple[ReferenceState, Any, Any]:
    """Row 0 with 130 positions, row 1 with 5, row 2 that was released, one free page; and snapshots of no use."""
    state = new_state(pages=4)
    admitted(state, 130, 3.0), admitted(state, 5, 4.0), admitted(state, 1, 5.0)
    dropped = state.snapshot(2)
    state.drop(dropped)
    state.release(2)
    other = new_state()
    return state, dropped, other.snapshot(other.admit())


MISTAKES: dict[str, tuple[type[Exception], str, Callable[[ReferenceState, Any, Any], object]]] = {
    "released twice": (InputError, "row 2 is not held", lambda s, _d, _o: s.release(2)),
    "released unknown": (InputError, "row 7 is not held", lambda s, _d, _o: s.release(7)),
    "length": (InputError, r"the rows are \[0, 1\]", lambda s, _d, _o: s.length(2)),
    "fork": (InputError, "row 2 is not held", lambda s, _d, _o: s.fork(2)),
    "snapshot": (InputError, "row 2 is not held", lambda s, _d, _o: s.snapshot(2)),
    "step": (InputError, "row 2 is not held", lambda s, _d, _o: s.begin([0, 2], [1, 1])),
    "negative row": (InputError, "row -1 is not held", lambda s, _d, _o: s.begin([-1], [1])),
    "named twice": (InputError, "each once", lambda s, _d, _o: s.begin([0, 1, 0], [1, 1, 1])),
    "too few counts": (
        InputError,
        "2 rows? |with 1 counts",
        lambda s, _d, _o: s.begin([0, 1], [1]),
    ),
    "too many counts": (InputError, "with 2 counts", lambda s, _d, _o: s.begin([0], [1, 1])),
    "no row": (InputError, "one row or more", lambda s, _d, _o: s.begin([], [])),
    "no token": (InputError, "row 1 gets 0 tokens", lambda s, _d, _o: s.begin([0, 1], [1, 0])),
    "less than no token": (InputError, "gets -1 tokens", lambda s, _d, _o: s.begin([0], [-1])),
    "capacity": (
        ContextLengthError,
        "130 tokens seen and 171 more do not fit into a state of 300",
        lambda s, _d, _o: s.begin([1, 0], [1, 171]),
    ),
    "pages": (
        MemoryShortageError,
        "2 pages of 128 positions are needed, and 1 of 4 are free",
        lambda s, _d, _o: s.begin([0, 1], [127, 124]),
    ),
    "dropped": (InputError, "has been dropped", lambda s, dropped, _o: s.admit(dropped)),
    "dropped twice": (InputError, "has been dropped", lambda s, dropped, _o: s.drop(dropped)),
    "another's": (InputError, "of another state", lambda s, _d, other: s.admit(other)),
    "another's dropped": (InputError, "of another state", lambda s, _d, other: s.drop(other)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_leaves_all_rows_and_pages_as_they_were(mistake: str) -> None:
    error, message, make = MISTAKES[mistake]
    state, dropped, other = some_rows()
    before = picture(state)

    with pytest.raises(error, match=message):
        make(state, dropped, other)

    assert picture(state) == before
    read(state, [1, 0], [1, 127], 6.0)
    assert keys(state, 1) == [4.0] * 5 + [6.0]
    assert keys(state, 0) == [3.0] * 130 + [6.0] * 127


BEGINNINGS: dict[str, Callable[[ReferenceState, Any], int]] = {
    "admit": lambda state, _: state.admit(),
    "fork": lambda state, _: state.fork(1),
    "snapshot": lambda state, snapshot: state.admit(snapshot),
}


@pytest.mark.parametrize("begin", BEGINNINGS)
def test_no_row_is_admitted_when_all_are_held(begin: str) -> None:
    state = new_state(rows=2, pages=2)
    admitted(state, 5), admitted(state, 6)
    snapshot = state.snapshot(0)
    before = picture(state)

    with pytest.raises(InputError, match="all 2 rows are held: release one"):
        BEGINNINGS[begin](state, snapshot)

    assert picture(state) == before
    state.drop(snapshot)
    state.release(0)
    state.release(1)
    assert (state.free_rows, state.free_pages) == (2, 2)


@pytest.mark.parametrize("name", ["rows", "capacity", "pages"])
def test_a_state_of_nothing_is_refused(name: str) -> None:
    sizes = {"rows": 1, "capacity": 1, "pages": 1, name: 0}

    with pytest.raises(InputError, match=f"{name}=0 of a state: pass 1 or more"):
        new_state(**sizes)


# Rows and pages.


def test_a_state_has_pages_for_every_row_to_be_full() -> None:
    state = new_state(rows=3, capacity=300)

    read(state, [state.admit() for _ in range(3)], [300] * 3)

    assert state.free_pages == 0
    assert state.num_pages == 3 * num_pages(300) == 9


def test_pages_are_taken_when_a_position_needs_them() -> None:
    state = new_state()
    row = state.admit()
    taken = []

    for count in (1, PAGE - 1, 1, PAGE - 1, 1):
        read(state, [row], [count])
        taken.append(state.num_pages - state.free_pages)

    assert taken == [1, 1, 2, 2, 3]


def test_the_numbers_and_pages_of_released_rows_are_used_again() -> None:
    state = new_state(rows=3, pages=3)
    for number in (1.0, 2.0, 3.0):
        admitted(state, 100, number)

    state.release(1)
    state.release(0)
    again = [admitted(state, 120, 4.0), admitted(state, 50, 5.0)]

    assert again == [0, 1]
    assert keys(state, 0) == [4.0] * 120
    assert keys(state, 1) == [5.0] * 50
    assert keys(state, 2) == [3.0] * 100
    assert state.free_pages == 0


def test_a_released_row_names_no_page() -> None:
    state = new_state(capacity=300, pages=4)
    row = admitted(state, 200)

    state.release(row)

    assert state.table.tolist() == [[4, 4, 4]] * 4


# Forks.


def test_a_fork_shares_all_pages_and_copies_none() -> None:
    state = new_state()
    row = admitted(state, 200, 2.0)
    free = state.free_pages

    fork = state.fork(row)

    assert state.free_pages == free
    assert state.table[fork].tolist() == state.table[row].tolist()
    assert keys(state, fork) == [2.0] * 200


@pytest.mark.parametrize("first", [0, 1], ids=["row", "fork"])
def test_the_first_that_writes_copies_the_last_page(first: int) -> None:
    state = new_state()
    state.fork(admitted(state, 200, 2.0))
    shared = state.table[0].tolist()
    taken = []

    for row in (first, 1 - first):
        free = state.free_pages
        read(state, [row], [1], 3.0 + row)
        taken.append(free - state.free_pages)

    assert taken == [1, 0]
    assert keys(state, 0) == [2.0] * 200 + [3.0]
    assert keys(state, 1) == [2.0] * 200 + [4.0]
    assert state.table[1 - first].tolist() == shared
    assert state.table[first, 0] == shared[0]


def test_a_page_that_is_full_is_shared_for_ever() -> None:
    state = new_state()
    row = admitted(state, PAGE, 2.0)
    fork = state.fork(row)

    read(state, [row, fork], [1, 1], 3.0)

    assert state.table[row, 0] == state.table[fork, 0]
    assert state.num_pages - state.free_pages == 3


@pytest.mark.parametrize(("snapshots", "copies"), [(0, 7), (1, 8)])
def test_of_eight_rows_that_write_to_a_page_at_once_the_last_need_not_copy(
    snapshots: int, copies: int
) -> None:
    state = new_state(rows=8, pages=1 + copies)
    admitted(state, 5, 2.0)
    for _ in range(7):
        state.fork(0)
    for _ in range(snapshots):
        state.snapshot(0)

    read(state, state.rows, [1] * 8, 3.0)

    assert state.free_pages == 0
    assert [keys(state, row) for row in state.rows] == [[2.0] * 5 + [3.0]] * 8


def test_eight_rows_that_write_to_a_page_are_refused_where_seven_copies_have_no_room() -> None:
    state = new_state(rows=8, pages=7)
    admitted(state, 5, 2.0)
    for _ in range(7):
        state.fork(0)
    before = picture(state)

    with pytest.raises(MemoryShortageError, match=r"7 pages .* and 6 of 7 are free"):
        state.begin(state.rows, [1] * 8)

    assert picture(state) == before
    read(state, state.rows[:6], [1] * 6, 3.0)


def test_pages_that_are_shared_are_free_when_the_last_holder_goes() -> None:
    state = new_state()
    state.fork(admitted(state, 200))
    snapshot = state.snapshot(0)
    state.release(0)
    state.drop(snapshot)
    before = state.free_pages
    state.release(1)

    assert state.num_pages - before == 2
    assert state.free_pages == state.num_pages


def test_what_a_fork_remembers_besides_positions_is_its_own() -> None:
    state = new_state()
    row = admitted(state, 4, 2.0)
    before = [array[row].copy() for slot in state.arrays[1:] for array in slot]

    read(state, [state.fork(row)], [3], 5.0)

    for array, kept in zip((a for slot in state.arrays[1:] for a in slot), before, strict=True):
        np.testing.assert_array_equal(array[row], kept)
        assert (array[1] != kept).any()


# Snapshots.


def test_a_snapshot_is_what_the_row_was_whatever_it_reads_later() -> None:
    state = new_state()
    row = admitted(state, 5, 2.0)
    snapshot = state.snapshot(row)
    before = [array[row].copy() for slot in state.arrays[1:] for array in slot]
    read(state, [row], [200], 3.0)
    state.release(row)
    admitted(state, 10, 7.0)

    again = state.admit(snapshot)

    assert (again, snapshot.length) == (1, 5)
    assert keys(state, again) == [2.0] * 5
    for array, kept in zip((a for slot in state.arrays[1:] for a in slot), before, strict=True):
        np.testing.assert_array_equal(array[again], kept)


def test_several_rows_may_begin_with_a_snapshot() -> None:
    state = new_state(rows=3, pages=4)
    snapshot = state.snapshot(admitted(state, 5, 2.0))
    rows = [0, state.admit(snapshot), state.admit(snapshot)]

    for row in rows:
        read(state, [row], [1], 3.0 + row)

    assert [keys(state, row)[-1] for row in rows] == [3.0, 4.0, 5.0]
    assert state.free_pages == 0
    state.drop(snapshot)
    assert state.free_pages == 1


def test_an_empty_row_may_be_forked() -> None:
    state = new_state()

    fork = state.fork(state.admit())
    read(state, [fork], [2])

    assert [state.length(row) for row in state.rows] == [0, 2]


# A step that was begun and not ended, since an operation refused what it was given.


def test_the_tokens_of_an_unfinished_step_do_not_count() -> None:
    state = new_state(pages=4)
    row = admitted(state, 5, 2.0)
    state.begin([row], [200])

    read(state, [row], [1], 3.0)

    assert keys(state, row) == [2.0] * 5 + [3.0]


def test_pages_of_an_unfinished_step_give_no_room_to_other_rows() -> None:
    state = new_state(rows=2, pages=3)
    admitted(state, 5), admitted(state, 5)
    state.begin([0], [200])

    with pytest.raises(MemoryShortageError, match=r"1 pages .* and 0 of 3 are free"):
        state.begin([0, 1], [1, 200])
    read(state, [0, 1], [200, 1])

    assert [state.length(row) for row in (0, 1)] == [205, 6]


def test_a_fork_does_not_share_the_pages_of_an_unfinished_step() -> None:
    state = new_state(rows=2, pages=5)
    row = admitted(state, PAGE, 2.0)
    state.begin([row], [100])
    fork = state.fork(row)

    read(state, [row], [1], 3.0)
    read(state, [fork], [1], 4.0)

    assert keys(state, row) == [2.0] * PAGE + [3.0]
    assert keys(state, fork) == [2.0] * PAGE + [4.0]
    state.release(row)
    state.release(fork)
    assert state.free_pages == 5


def test_a_shared_page_is_copied_also_after_an_unfinished_step() -> None:
    state = new_state(rows=2, pages=5)
    fork = state.fork(admitted(state, 5, 2.0))
    state.begin([0], [200])

    read(state, [0], [1], 3.0)
    read(state, [fork], [1], 4.0)

    assert keys(state, 0) == [2.0] * 5 + [3.0]
    assert keys(state, fork) == [2.0] * 5 + [4.0]


# Steps.


def arrays_of(step: Step) -> dict[str, list[int]]:
    return {name: array.tolist() for name, array in vars(step).items()}


def test_a_step_says_of_each_token_whose_and_where_it_is() -> None:
    state = new_state()
    for length in (3, 0, 130):
        admitted(state, length)

    step = state.begin([2, 0, 1], [1, 2, 3])

    assert step is state.step
    assert arrays_of(step) == {
        "rows": [2, 0, 1],
        "starts": [130, 3, 0],
        "counts": [1, 2, 3],
        "offsets": [0, 1, 3],
        "spans": [0, 1, 1, 2, 2, 2],
        "positions": [130, 3, 4, 0, 1, 2],
    }
    assert step.token_rows.tolist() == [2, 0, 0, 1, 1, 1]
    assert step.last_tokens.tolist() == [0, 2, 5]


def test_parts_are_the_tokens_of_each_row() -> None:
    step = step_of_spans([4, 1], [7, 0], [2, 3])

    assert step.parts() == [(4, 7, slice(0, 2)), (1, 0, slice(2, 5))]


def group_of(group: Group) -> tuple[list[int], list[int], int, list[list[int]] | None, int]:
    tokens: NDArray[np.int64] | None = group.tokens
    where = None if tokens is None else tokens.tolist()
    return group.rows.tolist(), group.starts.tolist(), group.count, where, group.end


def test_groups_are_spans_of_equally_many_tokens() -> None:
    step = step_of_spans([5, 3, 4, 1], [9, 0, 2, 20], [2, 1, 2, 1])

    assert [group_of(group) for group in step.groups()] == [
        ([5, 4], [9, 2], 2, [[0, 1], [3, 4]], 11),
        ([3, 1], [0, 20], 1, [[2], [5]], 21),
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_spans_that_are_all_equally_long_are_one_group_in_order(count: int) -> None:
    step = step_of_spans([2, 0], [5, 6], [count, count])

    assert [group_of(group) for group in step.groups()] == [
        ([2, 0], [5, 6], count, None, 6 + count)
    ]


def test_a_step_ends_once() -> None:
    state = new_state()
    row = admitted(state, 2)
    state.begin([row], [3])

    state.end()
    state.end()

    assert state.length(row) == 5
    assert state.step is None


def test_the_bytes_of_pages_and_rows_are_those_of_the_arrays() -> None:
    state = new_state(rows=5, pages=7)
    arrays = [array for arrays in state.arrays for array in arrays]

    # With one page and one row that nobody reads.
    assert state.page_bytes * 8 + state.row_bytes * 6 == sum(array.nbytes for array in arrays)
    assert state.page_bytes == 128 * 2 * 2 * 4


# Going back.


def test_a_row_that_is_cut_short_goes_on_as_if_it_had_read_no_more() -> None:
    state = new_state()
    row = admitted(state, 120, 3.0)
    whole = state.recurrent(row)
    before = picture(state)

    read(state, [row], [150], 4.0)
    state.truncate(row, 120, whole)

    assert picture(state) == before
    read(state, [row], [10], 5.0)
    assert keys(state, row) == [3.0] * 120 + [5.0] * 10


def test_a_row_that_is_cut_short_leaves_pages_to_others_that_share_them() -> None:
    state = ReferenceState(SLOTS[:1], rows=2, capacity=300, pages=6)
    first = state.admit()
    with stepping(state, [first], [200]):
        x = np.full((1, 200, 1, 2), 7.0, np.float32)
        OPS.append_kv(x, x, state=state, slot=0)
    second = state.fork(first)

    state.truncate(second, 10)

    assert (state.length(first), state.length(second), state.free_pages) == (200, 10, 4)
    assert keys(state, first) == [7.0] * 200


@pytest.mark.parametrize("length", [0, 6, -1])
def test_a_row_is_cut_to_some_of_its_positions(length: int) -> None:
    state = new_state()
    row = admitted(state, 5)
    before = picture(state)

    with pytest.raises(InputError, match="cannot be continued after"):
        state.truncate(row, length, state.recurrent(row))
    with pytest.raises(InputError, match="take a snapshot there"):
        state.truncate(row, 3)

    assert picture(state) == before
