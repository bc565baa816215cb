"""A run leaves out what is not finite, goes back where that does not help, and ends where nothing helps."""

import json
import math
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.errors import TrainingError
from nanochat.training.loop import Trainer
from nanochat.training.run_log import LogEntry
from nanochat.training.snapshot import load_snapshot, snapshot_steps
from tests.training.runs import entries, losses, quiet, recipe


def trainer(data: Path, folder: Path, *, resume: bool = False, **changes: object) -> Trainer:
    start = folder if resume else None
    return Trainer(recipe(**changes), data, folder, start=start, num_threads=1, compile_model=False)


def spoil(run: Trainer, is_bad: Callable[[int], bool]) -> None:
    """Give a parameter infinite gradients of the batches with such numbers."""

    def change(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * (float("inf") if is_bad(run.step + run.setbacks.skipped) else 1)

    run.model.get_parameter("norm").register_hook(change)


def lines(run: Path, name: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in found if name in line]


def test_a_bad_batch_is_left_out(data: Path, tmp_path: Path) -> None:
    run = trainer(data, tmp_path)
    spoil(run, lambda batch: batch == 12)

    assert run.run(quiet)

    (skipped,) = lines(tmp_path, "skipped_batch")
    assert skipped == {
        "step": 12,
        "skipped_batch": 12,
        "because": "gradient_norm is inf at step 12",
    }
    assert load_snapshot(tmp_path).setbacks.skipped == 1
    assert sorted(losses(tmp_path)) == list(range(1, 31))


def test_a_run_that_left_out_batches_resumes_with_the_same_losses(
    data: Path, tmp_path: Path
) -> None:
    for name, stop in (("whole", None), ("stopped", 14)):
        run = trainer(data, tmp_path / name)
        spoil(run, lambda batch: batch in (7, 12))
        if stop is not None:
            # A step that ends as one that is killed does.
            def until(advance: Any = run._advance, run: Trainer = run) -> dict[str, object]:
                if run.step == 14:
                    raise RuntimeError
                found: dict[str, object] = advance()
                return found

            run._advance = until  # type: ignore[method-assign]
            with pytest.raises(RuntimeError):
                run.run(quiet)
            run = trainer(data, tmp_path / name, resume=True)
            spoil(run, lambda batch: batch in (7, 12))
            assert (run.step, run.setbacks.skipped) == (10, 1)
        assert run.run(quiet)

    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_a_run_whose_batches_all_are_bad_goes_back_and_reads_others(
    data: Path, tmp_path: Path
) -> None:
    run = trainer(data, tmp_path)
    spoil(run, lambda batch: 12 <= batch < 16)

    assert run.run(quiet)

    (back,) = lines(tmp_path, "went_back")
    assert (back["step"], back["went_back"]) == (
        10,
        "gradient_norm is inf at step 12: batches 10 to 15 are left out",
    )
    assert load_snapshot(tmp_path).setbacks.skipped == 6
    # Its log is as if the steps from there had been the first.
    assert [line["step"] for line in lines(tmp_path, "loss")] == list(range(1, 31))


def is_bad(batch: int) -> bool:
    return 12 <= batch < 16


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that leaves out three batches after step 12, and goes back to step 10 at the fourth."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run = trainer(data, folder)
    spoil(run, is_bad)
    assert run.run(quiet)
    return folder


PLACES: dict[str, Callable[[Trainer, LogEntry], bool]] = {
    "between them": lambda _, entry: entry.values.get("skipped_batch") == 13,
    "back": lambda _, entry: "went_back" in entry.values,
    "a step later": lambda run, entry: entry.step == 11 and run.setbacks.returns == 1,
}


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "interrupted"])
@pytest.mark.parametrize("place", PLACES)
def test_a_run_that_stops_around_bad_batches_goes_on_as_if_it_had_not(
    place: str, killed: bool, whole: Path, data: Path, tmp_path: Path
) -> None:
    run = trainer(data, tmp_path)
    spoil(run, is_bad)

    def stop(entry: LogEntry) -> None:
        if PLACES[place](run, entry) and killed:
            run._advance = die  # type: ignore[method-assign]
        elif PLACES[place](run, entry):
            signal.raise_signal(signal.SIGINT)

    def die() -> dict[str, object]:
        raise RuntimeError

    with suppress(RuntimeError):
        assert not run.run(stop)
    assert run.step < 30

    resumed = trainer(data, tmp_path, resume=True)
    spoil(resumed, is_bad)

    assert resumed.run(quiet)
    assert entries(tmp_path)[1:] == entries(whole)[1:]
    assert snapshot_steps(tmp_path) == snapshot_steps(whole)


def test_a_run_that_was_interrupted_around_bad_batches_goes_on_in_its_process(
    whole: Path, data: Path, tmp_path: Path
) -> None:
    run = trainer(data, tmp_path)
    spoil(run, is_bad)

    def stop(entry: LogEntry) -> None:
        if entry.values.keys() & {"skipped_batch", "went_back"}:
            signal.raise_signal(signal.SIGINT)

    finished = [run.run(stop) for _ in range(5)]

    assert finished == [False] * 4 + [True]
    assert entries(tmp_path)[1:] == entries(whole)[1:]


def test_going_back_repeats_no_evaluation(whole: Path) -> None:
    assert [line["step"] for line in lines(whole, "held_out_tokens")] == [10, 20, 30]


def fail_evaluations(run: Trainer, times: int) -> None:
    """Let the first evaluations at step 20 find a number that is not finite."""
    evaluate = run.evaluate
    failures = iter(range(times))

    def pretend(*words: Any) -> dict[str, object]:
        if run.step == 20 and next(failures, None) is not None:
            run._require_finite({"held_out_nats_per_token": math.nan})
        return evaluate(*words)

    run.evaluate = pretend  # type: ignore[assignment, method-assign]


def test_an_evaluation_that_is_not_finite_sends_the_run_behind_the_snapshot_of_its_step(
    data: Path, tmp_path: Path
) -> None:
    run = trainer(data, tmp_path)
    fail_evaluations(run, 1)

    assert run.run(quiet)

    (back,) = lines(tmp_path, "went_back")
    assert back["step"] == 15
    assert back["went_back"].startswith("held_out_nats_per_token is nan at step 20: batches 15 to")
    assert [line["step"] for line in lines(tmp_path, "loss")] == list(range(1, 31))


def test_a_run_ends_whose_evaluation_is_never_finite_and_does_not_begin_again(
    data: Path, tmp_path: Path
) -> None:
    run = trainer(data, tmp_path)
    fail_evaluations(run, 10)
    with pytest.raises(TrainingError, match=r"^held_out_nats_per_token is nan at step 20"):
        run.run(quiet)
    resumed = trainer(data, tmp_path, resume=True)
    fail_evaluations(resumed, 10)
    seen: list[LogEntry] = []

    with pytest.raises(TrainingError, match=r"^held_out_nats_per_token is nan at step 20"):
        resumed.run(seen.append)

    assert len(lines(tmp_path, "went_back")) == 2
    assert not seen


def test_parameters_that_are_not_finite_are_not_saved_and_the_run_goes_back(
    data: Path, tmp_path: Path
) -> None:
    run = trainer(data, tmp_path)
    save = run.save
    spoiled: list[int] = []

    def spoil_once() -> None:
        if run.step == 15 and not spoiled:
            spoiled.append(run.step)
            run.model.get_parameter("layers.1.mixer.q").data[0, 0] = float("inf")
        save()

    run.save = spoil_once  # type: ignore[method-assign]

    assert run.run(quiet)

    (back,) = lines(tmp_path, "went_back")
    assert back["step"] == 10
    assert back["went_back"].startswith("layers.1.mixer.q is inf at step 15")


def test_a_run_ends_where_going_back_does_not_help(data: Path, tmp_path: Path) -> None:
    run = trainer(data, tmp_path)
    spoil(run, lambda batch: batch >= 12)

    with pytest.raises(TrainingError, match=r"^gradient_norm is inf at step 10: must be finite"):
        run.run(quiet)

    assert len(lines(tmp_path, "went_back")) == 2
    assert load_snapshot(tmp_path).step == 10


def test_the_snapshot_of_the_best_evaluation_is_kept(data: Path, tmp_path: Path) -> None:
    run = trainer(data, tmp_path, run={"keep_snapshots": 1, "evaluate_every": 4})
    evaluate, bits = run.evaluate, iter([3.0, 2.0, 2.5, 2.7, 2.6, 2.9, 2.8, 3.0])

    def pretend(*words: Any) -> dict[str, object]:
        return {**evaluate(*words), "held_out_bits_per_byte": next(bits)}

    run.evaluate = pretend  # type: ignore[assignment, method-assign]

    assert run.run(quiet)

    # The best was that of step 8, at which no snapshot was due.
    assert {path.name for path in (tmp_path / "snapshots").iterdir()} == {"8", "30"}
