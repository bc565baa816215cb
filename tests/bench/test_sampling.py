"""The case `sampling` times what it has compared first."""

from bench import sampling


def test_the_case_times_all_settings_and_has_one_target() -> None:
    results = list(sampling.run(quick=True))

    assert len({result.what for result in results}) == len(results) == 12
    assert [result.target for result in results if result.target is not None] == [60.0]
    assert all(0 < result.ours < (result.peer or 0) for result in results)
    assert sampling.table(results).row_count == 12
