"""What a report says of runs, and what `nanochat report` answers."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanochat.training.history import read_history
from nanochat.training.loop import Trainer
from nanochat.training.report import comparison, html, summaries
from tests.training.runs import command_here, quiet, recipe, write_log

REAL = Path(__file__).parents[2] / "bench" / "results" / "training"


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs, which differ in their seed and a rate."""
    folder = tmp_path_factory.mktemp("runs")
    found = []
    for seed, rate in ((0, 0.02), (1, 0.01)):
        settings = recipe(seed=seed, steps=12, optimizer={"matrices": {"rate": rate}})
        run = folder / f"seed-{seed}"
        assert Trainer(settings, data, run, num_threads=1, compile_model=False).run(quiet)
        found.append(run)
    return found


def shown(*logs: Path) -> Any:
    """What the page of some runs shows."""
    return comparison([read_history(log) for log in logs])


def test_a_summary_says_what_a_real_run_has_reached(runs: list[Path]) -> None:
    lines = [json.loads(line) for line in (runs[0] / "log.jsonl").read_text().splitlines()]
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    bits = [line["held_out_bits_per_byte"] for line in lines if "held_out_bits_per_byte" in line]

    (summary,) = summaries([read_history(runs[0])])

    assert (summary["name"], summary["step"], summary["steps"]) == ("seed-0", 12, 12)
    assert summary["loss"] == [line["loss"] for line in lines if "loss" in line][-1]
    assert (summary["held_out_bits_per_byte"], summary["best"]) == (bits[-1], min(bits))
    assert summary["tokens"] == 12 * 2 * 64
    assert summary["tokens_per_second"] == pytest.approx(np.median(speeds))
    assert summary["seconds_in_steps"] == pytest.approx(sum(2 * 64 / speed for speed in speeds))
    assert summary["machine"] == lines[0]["machine"]


def test_a_run_that_has_just_begun_has_a_summary(tmp_path: Path) -> None:
    (summary,) = summaries([read_history(write_log(tmp_path / "new" / "log.jsonl"))])

    assert (summary["name"], summary["step"], summary["loss"]) == ("new", None, None)


def test_a_run_that_has_a_time_has_the_steps_that_were_decided(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [
        {"step": 0, "recipe": {"steps": 2**31}},
        {"step": 1, "loss": 2.0},
        {"step": 1, "decided_steps": 40, "decay_steps": 8},
    ]
    log = write_log(tmp_path / "log.jsonl", *lines)

    (summary,) = summaries([read_history(log)])

    assert (summary["step"], summary["steps"]) == (1, 40)
    assert [*read_history(log).series] == ["loss"]


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    places = ["a/run/log.jsonl", "b/run/log.jsonl", "other/log.jsonl", "b/third.jsonl"]
    logs = [write_log(tmp_path / place, {"step": 1}) for place in places]

    names = [summary["name"] for summary in summaries([*map(read_history, logs)])]

    assert names == ["a/run", "b/run", "other", "third"]


def test_the_settings_that_differ_have_the_names_of_set(runs: list[Path]) -> None:
    settings = shown(*runs)["settings"]

    differing = {name: values for name, values in settings if values[0] != values[1]}
    assert differing == {"seed": ["0", "1"], "optimizer.matrices.rate": ["0.02", "0.01"]}


def test_recipes_of_before_there_were_groups_have_todays_names() -> None:
    found = shown(REAL / "tiny-float.jsonl", REAL / "tiny-ternary.jsonl")

    differing = {name: values for name, values in found["settings"] if values[0] != values[1]}
    assert differing == {
        "steps": ["1100", "20000"],
        "schedule.decay_steps": ["330", "0"],
        "precision.weights": ["float", "ternary"],
        "machine.threads": ["1", "2"],
    }
    assert [run["parameters"] for run in found["runs"]] == [5771648, 5771648]


def test_charts_of_the_shipped_models_logs_stand_in_a_sensible_order() -> None:
    found = shown(REAL / "tiny-float.jsonl")

    assert [title for title, _ in found["charts"]] == [
        "Loss",
        "Optimizer",
        "Codes and streams",
        "Speed",
        "Other",
    ]
    assert found["charts"][0][1][:2] == ["held_out_bits_per_byte", "held_out_nats_per_token"]
    assert found["charts"][-1][1] == ["held_out_tokens"]


def test_a_number_that_nobody_knew_gets_a_chart_among_the_others(tmp_path: Path) -> None:
    line = {"step": 1, "rainfall": 0.5, "memory": {"mlp": 0.3, "attention": 0.4}}

    found = shown(write_log(tmp_path / "log.jsonl", {**line, "is_late": True}))

    assert found["charts"] == [["Other", ["memory", "rainfall"]]]
    assert found["runs"][0]["series"]["memory"]["mlp"] == {"x": [1], "y": [0.3]}


def test_a_long_series_keeps_its_extremes_and_the_means_between_them(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=50_000)
    values[12_345] = 99.0
    lines = [{"step": step, "loss": float(value)} for step, value in enumerate(values)]

    found = shown(write_log(tmp_path / "log.jsonl", *lines))["runs"][0]["series"]["loss"][""]

    assert len(found["x"]) <= 1002
    assert found["y"][found["x"].index(12_345)] == 99.0
    assert min(found["y"]) == pytest.approx(values.min(), rel=1e-5)
    assert [found["x"][0], found["x"][-1]] == [0, 49_999]
    assert np.mean(found["mean_y"]) == pytest.approx(values.mean(), abs=1e-5)


def test_many_events_are_cut_and_counted(tmp_path: Path) -> None:
    lines = [{"step": step, "went_back": "why"} for step in range(1000)]

    (run,) = shown(write_log(tmp_path / "log.jsonl", *lines))["runs"]

    assert (len(run["events"]), run["num_events"]) == (200, 1000)


def test_a_report_needs_no_torch() -> None:
    program = (
        "import sys, nanochat.training.report, nanochat.training.history, nanochat.cli.report;"
        "print('torch' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.stdout == "False\n", done.stderr


def data_of(page: str) -> Any:
    """What is embedded in a page."""
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match
    return json.loads(match[1])


def test_no_text_of_a_log_ends_the_element_that_holds_it(tmp_path: Path) -> None:
    text = "</script><script>alert(1)</script><!-- $style"
    log = write_log(tmp_path / "<script>" / "log.jsonl", {"step": 1, "sample": text})

    page = html([read_history(log)], made="today")

    assert data_of(page)["runs"][0]["sample"] == [1, text]
    assert page.count("<script") == 2
    assert not re.search(r"(src|href)=", page)


def test_the_command_writes_a_page_in_place_of_another(runs: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("old")

    done = command_here("report", *runs, runs[0], "--out", page)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"wrote {page}\n")
    assert [run["name"] for run in data_of(page.read_text())["runs"]] == ["seed-0", "seed-1"]


def test_the_command_prints_the_table_as_json(runs: list[Path]) -> None:
    done = command_here("report", *runs, "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"] == summaries([*map(read_history, runs)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["nowhere"], "error: nowhere is not there: pass", id="missing"),
        pytest.param(["log.jsonl", "--out", "log.jsonl"], "is the log of a run", id="overwritten"),
        pytest.param(["log.jsonl", "--json", "--out", "x"], "--json writes no page", id="both"),
    ],
)
def test_the_command_refuses_in_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_log(tmp_path / "log.jsonl", {"step": 1})
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)

    done = command_here("report", *words)

    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n'
