"""Documents are packed as best-fit-decreasing does, and cut only if they are longer than a sequence."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nanochat.data.packing import Packed, pack

sizes_and_length = st.tuples(
    st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 20)
)


def packed(sizes: list[int], length: int) -> list[list[tuple[int, int]]]:
    starts = np.cumsum([0, *sizes])
    found: Packed = pack(starts[:-1], int(starts[-1]), length)
    return [found.pieces(sequence) for sequence in range(len(found.firsts) - 1)]


def one_by_one(sizes: list[int], length: int) -> list[list[int]]:
    """Best-fit-decreasing as its definition says: a list of sizes for each sequence."""
    rows: list[list[int]] = []
    pieces = [min(length, size - cut) for size in sizes for cut in range(0, size, length)]
    for piece in sorted(pieces, reverse=True):
        fitting = [row for row in rows if sum(row) + piece <= length]
        if not fitting:
            rows.append([piece])
        else:
            max(fitting, key=sum).append(piece)
    return rows


@given(sizes_and_length)
def test_sequences_are_those_of_best_fit_decreasing(case: tuple[list[int], int]) -> None:
    sizes, length = case

    found = [[size for _, size in row] for row in packed(sizes, length)]

    assert sorted(found) == sorted(one_by_one(sizes, length))


@given(sizes_and_length)
def test_every_token_is_in_one_piece(case: tuple[list[int], int]) -> None:
    sizes, length = case

    rows = packed(sizes, length)

    tokens = [token for row in rows for start, size in row for token in range(start, start + size)]
    assert sorted(tokens) == list(range(sum(sizes)))
    assert all(sum(size for _, size in row) <= length for row in rows)


@given(sizes_and_length)
def test_a_document_is_cut_only_if_it_is_longer_than_a_sequence(
    case: tuple[list[int], int],
) -> None:
    sizes, length = case
    starts = np.cumsum([0, *sizes]).tolist()

    pieces = {piece for row in packed(sizes, length) for piece in row}

    short = {(start, size) for start, size in zip(starts, sizes, strict=False) if size <= length}
    assert short <= pieces


def test_a_hundred_thousand_documents_leave_less_than_a_thousandth_of_the_room() -> None:
    sizes = np.random.default_rng(0).integers(1, 3000, size=100_000)
    starts = np.cumsum(sizes) - sizes

    rows = len(pack(starts, int(sizes.sum()), 1024).firsts) - 1

    assert rows * 1024 < 1.001 * sizes.sum()
