"""What the log of a run tells when it is read: while it is being written, broken, or of a run that went wrong."""

import json
from pathlib import Path

import pytest

from nanochat.errors import FormatError, InputError
from nanochat.training.history import read_history
from nanochat.training.loop import Trainer
from tests.training.runs import quiet, recipe, write_log


def test_series_have_all_numbers_of_a_real_run(data: Path, tmp_path: Path) -> None:
    settings = recipe(steps=12, run={"sample_tokens": 8})
    assert Trainer(settings, data, tmp_path, num_threads=1, compile_model=False).run(quiet)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    evaluated = [line for line in lines if "stream_divergence" in line]

    history = read_history(tmp_path)

    for name in ("loss", "gradient_norm", "tokens_per_second"):
        series = history.series[name][""]
        assert series.values.tolist() == [line[name] for line in trained]
        assert series.steps.tolist() == [line["step"] for line in trained]
    sites = history.series["stream_divergence"]
    found = [[float(sites[str(i)].values[k]) for i in range(len(sites))] for k in range(2)]
    assert found == [line["stream_divergence"] for line in evaluated]
    assert (history.recipe, history.machine) == (lines[0]["recipe"], lines[0]["machine"])
    assert history.sample == (12, evaluated[-1]["sample"])
    assert (history.events, history.num_unreadable) == ([], 0)


def test_a_log_is_read_while_it_is_being_written(tmp_path: Path) -> None:
    write_log(tmp_path / "log.jsonl", {"step": 1, "loss": 2.0}, '{"step": 2, "lo')

    history = read_history(tmp_path)

    assert history.series["loss"][""].values.tolist() == [2.0]
    assert history.num_unreadable == 0


def test_the_loss_of_an_earlier_log_is_that_of_the_next_token(tmp_path: Path) -> None:
    line = {"step": 1, "loss": 2.5, "cross_entropy": 2.0, "ahead": 5.0}

    series = read_history(write_log(tmp_path / "log.jsonl", line)).series

    found = {name: places[""].values.tolist() for name, places in series.items()}
    assert found == {"loss": [2.0], "objective": [2.5], "ahead": [5.0]}


def test_lines_that_are_unreadable_elsewhere_are_counted(tmp_path: Path) -> None:
    steps = ["1.5", "true", "1e400"]
    broken = [f'{{"step": {step}}}\n' for step in steps]
    broken += ["nonsense\n", "[1]\n", "[" * 100_000 + "\n", "{}\n"]
    log = write_log(tmp_path / "log.jsonl", {"step": 1, "loss": 2.0}, *broken, {"step": 2})

    assert read_history(log).num_unreadable == 7


@pytest.mark.parametrize("text", ["", '{"st', '{"step": 0, "recipe": {"mod'])
def test_an_empty_log_is_that_of_a_run_that_has_just_begun(text: str, tmp_path: Path) -> None:
    history = read_history(write_log(tmp_path / "log.jsonl", text))

    assert (history.recipe, history.series) == ({}, {})


def test_numbers_that_are_not_finite_are_an_event_and_no_points(tmp_path: Path) -> None:
    lines = [
        '{"step": 1, "loss": 2.0}\n',
        '{"step": 2, "loss": NaN, "gain": NaN}\n',
        '{"step": 3, "loss": -Infinity}\n',
        f'{{"step": 4, "loss": 1{"0" * 400}}}\n',
        '{"step": 5, "recipe": {"steps": NaN}, "machine": {"threads": 1e999}}\n',
    ]

    history = read_history(write_log(tmp_path / "log.jsonl", *lines))

    assert list(history.series) == ["loss"]
    assert history.series["loss"][""].values.tolist() == [2.0]
    first = history.events[0]
    assert (first.step, first.kind) == (2, "not finite")
    assert first.text == "loss in 3 lines, of which this is the first"
    assert (history.recipe, history.machine) == ({"steps": "NaN"}, {"threads": "Infinity"})


def test_what_was_logged_again_replaces_what_was_before(tmp_path: Path) -> None:
    steps = [1, 2, 3, 2, 3]
    lines = [{"step": step, "loss": float(i)} for i, step in enumerate(steps)]

    series = read_history(write_log(tmp_path / "log.jsonl", *lines)).series["loss"][""]

    assert (series.steps.tolist(), series.values.tolist()) == ([1, 2, 3], [0.0, 3.0, 4.0])


def test_what_happened_to_a_run_is_told(tmp_path: Path) -> None:
    log = write_log(
        tmp_path / "log.jsonl",
        {"step": 5, "recipe": {}, "machine": {}},
        {"step": 6, "skipped_batch": 6, "because": "loss is nan at step 6"},
        {"step": 7, "sample": "first"},
        {"step": 8, "anomaly": "spike", "because": "loss is 9"},
        {"step": 8, "went_back": "norm is inf", "last_batch": 8},
        {"step": 9, "recipe": {}, "machine": {}},
        {"step": 9, "sample": "last <b>"},
    )

    history = read_history(log)

    assert [(event.step, event.kind, event.text) for event in history.events] == [
        (5, "begun", "from a snapshot of another run"),
        (6, "batch left out", "batch 6: loss is nan at step 6"),
        (8, "spike", "loss is 9"),
        (8, "went back", "norm is inf"),
        (9, "resumed", ""),
    ]
    assert history.sample == (9, "last <b>")
    assert history.series == {}


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        pytest.param(None, InputError, "is not there: pass the directory of a run", id="missing"),
        pytest.param("", InputError, "holds no log.jsonl: pass the directory", id="no log"),
        pytest.param("{}", FormatError, "1 line, none of which is a JSON object", id="JSON"),
        pytest.param("a\nb\n", FormatError, "2 lines, none of which is a JSON object", id="text"),
    ],
)
def test_what_is_no_log_is_refused(
    content: str | None, error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    if content == "":
        path.mkdir()
    elif content is not None:
        path.write_text(content)

    with pytest.raises(error, match=f"{path}.*{message}"):
        read_history(path)
