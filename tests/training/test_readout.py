"""Which tokens of a batch the head reads."""

import numpy as np
import pytest

from nanochat.training.objectives.readout import counted_rows


@pytest.mark.parametrize(
    ("targets", "farthest", "rows"),
    [
        ([[1, 2, 3]], 1, None),
        ([[1, 2, -1]], 1, [0, 1]),
        ([[-1, -1, 3], [-1, 2, 3]], 1, [2, 4, 5]),
        ([[-1, -1, 3], [4, 5, -1]], 2, [1, 2, 3, 4]),
        ([[-1, -1, -1]], 1, []),
    ],
    ids=str,
)
def test_the_rows_that_count_are_those_with_a_target(
    targets: list[list[int]], farthest: int, rows: list[int] | None
) -> None:
    found = counted_rows(np.array(targets), farthest)

    assert (None if found is None else found.tolist()) == rows
