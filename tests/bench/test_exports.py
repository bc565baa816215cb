"""Every row of the table of exports: written, run in its runtime, and the same model."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bench.export_cases import CASES, FEW, ExportCase
from bench.exports import open_export, run, table


def name(case: ExportCase) -> str:
    return f"{case.label}, {case.model}"


def each_once() -> Iterator[Any]:
    """Each case, of which GGUF files are long whose type others have, and whose model others hold."""
    seen: set[tuple[str, str]] = set()
    for case in CASES:
        found = {("label", case.label), ("model", case.model)}
        is_long = case.kind == "gguf" and found <= seen
        yield pytest.param(case, id=name(case), marks=[pytest.mark.long] if is_long else [])
        if case.kind == "gguf":
            seen |= found


@pytest.mark.parametrize("case", [*each_once()])
def test_an_export_computes_the_model_in_its_runtimes(case: ExportCase, tmp_path: Path) -> None:
    with ExitStack() as stack:
        opened = list(open_export(case, tmp_path / "x", stack))

    assert len(opened) == 1 + len(case.runtimes)
    for one in opened:
        assert one.parity.ok, one.parity
        assert one.agreement.chooses_the_same, one.agreement
        assert one.agreement.writes_the_same, one.agreement


def test_few_are_one_of_each_format() -> None:
    assert {case.kind for case in FEW} == {case.kind for case in CASES}
    assert len({name(case) for case in CASES}) == len(CASES)


def test_a_table_has_a_row_for_each_export_and_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in FEW if (case.kind, case.model) == ("gguf", "nanochat-tiny"))
    monkeypatch.setattr("bench.exports.FEW", (case,))
    # Nobody reads these speeds.
    monkeypatch.setattr("bench.exports._LONG", 136)

    results = list(run(True))

    assert [result.unit for result in results] == [
        "RMS error of logits",
        "median RMS error of a token",
        "same most probable token",
        "same greedy text",
        "tokens/s",
        "bytes",
    ]
    assert all(result.ok for result in results)
    assert all(result.ours > 0 for result in results[2:])
    assert table(results).row_count == 1
