"""What every case of `python -m bench` has in common: its lines, its drawing and its exit code."""

import doctest
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from bench import result
from bench.__main__ import main
from bench.case import Case
from bench.plot import draw
from bench.result import Result, json_line, table

MET = Result(case="parity", what="met", unit="s", ours=0.5, target=1.0, ok=True)
MISSED = Result(case="parity", what="<missed>", unit="s", ours=2.0, peer=0.0, target=1.0, ok=False)


def some_results(quick: bool) -> Iterator[Result]:
    yield MET
    if not quick:
        yield MISSED


@pytest.fixture(autouse=True)
def one_case(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(run=some_results, table=table, plot=draw)
    monkeypatch.setitem(sys.modules, "bench.parity", SimpleNamespace(**vars(case)))


def test_a_line_is_stamped_with_the_machine_and_the_commit() -> None:
    values = json.loads(json_line(MET))

    assert list(values) == [
        "case",
        "what",
        "unit",
        "ours",
        "low",
        "high",
        "peer",
        "peer_name",
        "ratio",
        "bound",
        "target",
        "ok",
        "machine",
        "commit",
    ]
    assert values["machine"]["cores"] >= 1


def test_a_line_is_valid_json_when_a_number_is_infinite() -> None:
    line = json_line(Result(case="parity", what="x", unit="s", ours=float("inf"), ok=False))

    assert json.loads(line)["ours"] is None


def test_json_prints_one_object_a_line() -> None:
    done = CliRunner().invoke(main, ["parity", "--json"])

    assert [json.loads(line)["what"] for line in done.stdout.splitlines()] == ["met", "<missed>"]
    assert done.exit_code == 0


def test_results_are_written_beside_the_table(tmp_path: Path) -> None:
    path = tmp_path / "parity.jsonl"

    done = CliRunner().invoke(main, ["parity", "--results", str(path)])

    assert [json.loads(line)["what"] for line in path.read_text().splitlines()] == [
        "met",
        "<missed>",
    ]
    assert "what" in done.stdout.splitlines()[0]


def test_results_of_a_run_that_fails_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(quick: bool) -> Iterator[Result]:
        yield from some_results(quick)
        raise RuntimeError

    case = Case(run=failing, table=table, plot=draw)
    monkeypatch.setitem(sys.modules, "bench.parity", SimpleNamespace(**vars(case)))
    path = tmp_path / "parity.jsonl"

    done = CliRunner().invoke(main, ["parity", "--results", str(path)])

    assert done.exit_code == 1
    assert len(path.read_text().splitlines()) == 2


def test_check_lists_the_missed_targets_and_exits_1() -> None:
    done = CliRunner().invoke(main, ["parity", "--check"])

    assert "missed: <missed>: 2 s, target 1.0" in done.stderr
    assert done.exit_code == 1


def test_check_exits_0_if_all_targets_are_met() -> None:
    assert CliRunner().invoke(main, ["parity", "--check", "--quick"]).exit_code == 0


def test_the_examples_show_what_they_say() -> None:
    assert doctest.testmod(result).failed == 0


def test_a_case_imports_no_other() -> None:
    code = "import sys; sys.argv[1:] = ['start', '--help']; from bench import __main__"
    code += "; from bench.case import Case; Case.of('start'); print(*sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "bench.start" in done.stdout.split()
    assert {"torch", "onnxruntime", "bench.cpu"}.isdisjoint(done.stdout.split())


def test_a_package_that_is_missing_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "bench.parity")
    monkeypatch.setitem(sys.modules, "tests.parity.cases", None)

    done = CliRunner().invoke(main, ["parity"])

    assert done.exit_code == 1
    assert "parity needs the package tests.parity.cases" in done.stderr
    assert "pip install -e '.[dev]'" in done.stderr


def test_a_table_keeps_its_columns_in_a_pipe() -> None:
    done = CliRunner().invoke(main, ["parity"])

    assert "…" not in done.stdout
    assert "what" in done.stdout.splitlines()[0]
    assert "ok" in done.stdout.splitlines()[0]


def test_a_plot_is_a_well_formed_drawing_with_every_result(tmp_path: Path) -> None:
    path = tmp_path / "parity.svg"

    CliRunner().invoke(main, ["parity", "--plot", str(path)])

    texts = [element.text for element in ElementTree.parse(path).iter() if element.text]
    assert {"met", "<missed>"} <= set(texts)
