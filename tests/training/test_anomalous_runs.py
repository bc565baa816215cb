"""A run tells its anomalies in its log and on the terminal, and one that stopped around them tells the same."""

import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from nanochat.training.loop import Trainer
from nanochat.training.progress import progress
from nanochat.training.run_log import LogEntry, RunLog
from tests.training.runs import entries, quiet, recipe

RECIPE = recipe(steps=70, model={"num_layers": 1})


def trainer(data: Path, run: Path, *, resume: bool = False) -> Trainer:
    start = run if resume else None
    return Trainer(RECIPE, data, run, start=start, num_threads=1, compile_model=False)


def spoil(run: Trainer, then: Callable[[LogEntry], None] = quiet) -> Callable[[LogEntry], None]:
    """What shows a run, and makes its weights worse after step 63."""

    def show(entry: LogEntry) -> None:
        if entry.step == 63 and "loss" in entry.values:
            run.model.get_parameter("norm").data.mul_(30)
        then(entry)

    return show


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose loss is far higher at step 64."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run = trainer(data, folder)
    assert run.run(spoil(run))
    return folder


def test_a_spike_is_told_behind_its_step(whole: Path) -> None:
    lines = entries(whole)

    (place,) = (number for number, line in enumerate(lines) if "anomaly" in line)
    assert lines[place].keys() == {"step", "anomaly", "because"}
    assert (lines[place]["step"], lines[place]["anomaly"]) == (64, "spike")
    assert (lines[place - 1]["step"], "loss" in lines[place - 1]) == (64, True)


def kill() -> dict[str, object]:
    raise RuntimeError


def stop_at_the_step(_: Trainer, entry: LogEntry) -> None:
    if entry.step == 64 and "loss" in entry.values:
        raise RuntimeError


def stop_when_told(_: Trainer, entry: LogEntry) -> None:
    if "anomaly" in entry.values:
        raise RuntimeError


def kill_after_it(run: Trainer, entry: LogEntry) -> None:
    if "anomaly" in entry.values:
        run._advance = kill  # type: ignore[method-assign]


def interrupt_later(_: Trainer, entry: LogEntry) -> None:
    if entry.step == 67 and "loss" in entry.values:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("stop", [stop_at_the_step, stop_when_told, kill_after_it, interrupt_later])
def test_a_run_that_stops_around_a_spike_tells_of_it_once(
    stop: Callable[[Trainer, LogEntry], None], whole: Path, data: Path, tmp_path: Path
) -> None:
    run = trainer(data, tmp_path)
    with suppress(RuntimeError):
        assert not run.run(spoil(run, lambda entry: stop(run, entry)))
    assert run.step < 70

    resumed = trainer(data, tmp_path, resume=True)

    assert resumed.run(spoil(resumed))
    assert entries(tmp_path)[1:] == entries(whole)[1:]


# An evaluation with two.
BAD = {"exit_entropy": 0.0, "stream_divergence": [0.5, 0.0]}


def opened(path: Path, *, step: int) -> RunLog:
    return RunLog(path / "log.jsonl", step=step, batch=step)


def test_anomalies_are_untold_until_they_are_written(tmp_path: Path) -> None:
    with opened(tmp_path, step=-1) as log:
        log.write(0, {"recipe": {"model": {"loop_count": 4}}})
        log.write(100, BAD)
    with opened(tmp_path, step=100) as log:
        first, second = log.untold
        log.write(100, first)
    with opened(tmp_path, step=100) as log:
        assert log.untold == [second]
        log.write(100, second)
        assert not log.untold
    with opened(tmp_path, step=100) as log:
        log.write(101, BAD)
        assert not log.untold


def test_what_is_cut_from_a_log_is_no_past(tmp_path: Path) -> None:
    with opened(tmp_path, step=-1) as log:
        log.write(0, {"recipe": {"model": {"loop_count": 4}}})
        log.write(100, BAD)
        told = [*log.untold]
        for each in told:
            log.write(100, each)
        log.cut(99)
        log.write(100, BAD)

        assert log.untold == told


def test_an_anomaly_is_shown_as_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(RECIPE, 0, compiling=False) as (show, _):
        show(LogEntry(step=64, values={"anomaly": "spike", "because": "loss is 9: go back"}))

    assert "step 64: spike: loss is 9: go back\n" in capsys.readouterr().err
