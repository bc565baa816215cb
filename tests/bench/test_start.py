"""A start is timed whole, and taken apart into stages."""

import time

import pytest

from bench import start
from bench.start_probe import Stage


# It compiles every kernel, which half a minute goes to.
@pytest.mark.long
def test_the_case_gives_both_totals_what_bounds_them_and_stages_that_add_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[tuple[start._Start, float]] = []
    start_ = start._start

    def timed(caches: str) -> start._Start:
        began = time.monotonic()
        one = start_(caches)
        found.append((one, time.monotonic() - began))
        return one

    monkeypatch.setattr(start, "_start", timed)

    results = list(start.run(quick=True))

    first, second = results[:2]
    assert (first.target, second.target) == (20, 1.5)
    assert first.bound == second.ours
    assert second.ours >= (second.bound or 0) > 0
    assert start.table(results).row_count == len(results)
    (first_ever, _), (later, seconds), *_ = found
    assert set(Stage) <= set(later.stages)
    assert min(later.stages.values()) >= 0
    assert first_ever.kernels.keys() > later.kernels.keys() == set()
    assert later.stages[Stage.COMPILE] == 0
    assert sum(later.stages.values()) <= seconds
