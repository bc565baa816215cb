"""A run that is interrupted loses nothing: neither what was saved, nor the evaluation that it was in."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from nanochat.data.batch import Layout
from nanochat.errors import SaveError
from nanochat.training.interruption import Interruption
from nanochat.training.loop import Trainer
from nanochat.training.recipe import Recipe, recipe_to_dict
from nanochat.training.run_log import LogEntry, RunLog
from nanochat.training.snapshot import load_snapshot, snapshot_steps
from tests.training.runs import entries, options, quiet, recipe

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def trainer(data: Path, run: Path, settings: Recipe, *, resume: bool = False) -> Trainer:
    start = run if resume else None
    return Trainer(settings, data, run, start=start, num_threads=1, compile_model=False)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve steps that was not interrupted."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert trainer(data, run, recipe(steps=12)).run(quiet)
    return run


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("step", [10, 12])
def test_a_run_that_is_stopped_in_an_evaluation_has_saved_and_makes_up_for_it(
    number: signal.Signals, step: int, whole: Path, data: Path, tmp_path: Path
) -> None:
    run = trainer(data, tmp_path, recipe(steps=12))
    seen: list[int] = []

    def interrupt(done: int, _: int) -> None:
        if run.step == step:
            seen.append(done)
            signal.raise_signal(number)

    finished = run.run(quiet, interrupt)
    saved = load_snapshot(tmp_path).step
    has_model = (tmp_path / "model").exists()
    resumed = trainer(data, tmp_path, recipe(steps=12), resume=True).run(quiet)

    # The first call is before the first batch, which is not waited for twice.
    assert seen == [0, 2]
    assert (finished, saved, has_model, resumed) == (False, step, False, True)
    assert entries(tmp_path)[1:] == entries(whole)[1:]
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_the_last_step_is_saved_before_it_is_evaluated(data: Path, tmp_path: Path) -> None:
    saved: list[int] = []

    def look(done: int, _: int) -> None:
        if not done:
            saved.append(load_snapshot(tmp_path).step)

    trainer(data, tmp_path, recipe(steps=12)).run(quiet, look)

    assert saved == [10, 12]


def test_an_evaluation_is_watched_to_its_end(data: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    trainer(
        data, tmp_path, recipe(steps=3, schedule={"decay_steps": 0}, run={"evaluation_windows": 5})
    ).run(quiet, lambda done, total: seen.append((done, total)))

    # Of five sequences and six that were trained on, whole batches of two.
    assert seen == [(0, 6), (2, 6), (4, 6), (6, 6)]


def test_the_last_evaluation_reads_no_more_than_was_trained_on(data: Path, tmp_path: Path) -> None:
    run = trainer(
        data, tmp_path, recipe(steps=5, schedule={"decay_steps": 0}, run={"evaluation_windows": 1})
    )

    run.run(quiet)

    assert run.held_out.num_tokens > 100 * 64
    assert entries(tmp_path)[-1]["held_out_tokens"] == 5 * 2 * 64


def test_a_long_run_is_evaluated_on_all_held_out_text(data: Path, tmp_path: Path) -> None:
    run = trainer(
        data,
        tmp_path,
        recipe(steps=100, data={"length": 256, "batch_size": 1}, schedule={"decay_steps": 0}),
    )

    total = run.held_out.num_in_order(Layout(length=256))
    run.step = 100

    assert total < 100
    assert run.evaluate(run._num_windows())["held_out_tokens"] == total * 256


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_does_not_wait_for_the_step_and_loses_no_step_before_it(
    number: signal.Signals, whole: Path, data: Path, tmp_path: Path
) -> None:
    run = trainer(data, tmp_path, recipe(steps=12))
    after: list[str] = []

    def interrupt(gradient: torch.Tensor) -> torch.Tensor:
        if run.step == 8:
            signal.raise_signal(number)
            signal.raise_signal(number)
            after.append("the second signal")
        return gradient

    hook = run.model.get_parameter("layers.0.mixer.q").register_hook(interrupt)
    finished = run.run(quiet)
    saved = load_snapshot(tmp_path)
    kept = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    hook.remove()

    assert (finished, saved.step, after) == (False, 8, [])
    assert all(torch.equal(saved.parameters[name], value) for name, value in kept.items())
    assert run.run(quiet)
    assert entries(tmp_path)[1:] == entries(whole)[1:]


def test_signals_cut_no_rounding_and_no_way_back_from_it(
    whole: Path, data: Path, tmp_path: Path
) -> None:
    run = trainer(data, tmp_path, recipe(steps=12))

    class _Interrupted(TorchFunctionMode):
        def __torch_function__(
            self,
            function: Callable[..., object],
            types: object,
            arguments: Sequence[object] = (),
            options: Mapping[str, object] | None = None,
        ) -> object:
            # What rounds, and what puts the latent numbers back.
            if function is torch.Tensor.copy_ and run.step == 8:
                signal.raise_signal(signal.SIGINT)
            return function(*arguments, **(options or {}))

    with _Interrupted():
        finished = run.run(quiet)
    saved = load_snapshot(tmp_path).step

    assert (finished, saved) == (False, 9)
    assert run.run(quiet)
    assert entries(tmp_path)[1:] == entries(whole)[1:]


def test_a_run_that_was_stopped_before_its_first_step_goes_on(
    whole: Path, data: Path, tmp_path: Path
) -> None:
    def interrupt(_: LogEntry) -> None:
        signal.raise_signal(signal.SIGINT)

    finished = trainer(data, tmp_path, recipe(steps=12)).run(interrupt)
    saved = load_snapshot(tmp_path).step
    resumed = trainer(data, tmp_path, recipe(steps=12), resume=True).run(quiet)

    assert (finished, saved, resumed) == (False, 0, True)
    assert entries(tmp_path)[1:] == entries(whole)[1:]


def test_a_finished_run_that_is_resumed_writes_its_model_again(
    whole: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")

    assert trainer(data, tmp_path / "run", recipe(steps=12), resume=True).run(quiet)

    assert entries(tmp_path / "run") == entries(whole)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_an_evaluation_after_an_interrupted_run_is_not_interrupted(
    data: Path, tmp_path: Path
) -> None:
    run = trainer(data, tmp_path, recipe(steps=12))
    assert not run.run(lambda _: signal.raise_signal(signal.SIGINT))

    assert run.evaluate(8)["held_out_tokens"]


@pytest.mark.parametrize("step", [0, 5, 8, 10], ids="step {}".format)
@pytest.mark.parametrize("place", ["write", "save"])
def test_a_run_that_its_disk_ended_goes_on_in_its_process(
    place: str,
    step: int,
    whole: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = trainer(data, tmp_path, recipe(steps=12))
    owner = RunLog if place == "write" else Trainer
    function = getattr(owner, place)

    def refuse(*words: object) -> None:
        if run.step == step:
            raise SaveError
        function(*words)

    with monkeypatch.context() as patched:
        patched.setattr(owner, place, refuse)
        with suppress(SaveError):
            run.run(quiet)

    assert run.run(quiet)
    assert entries(tmp_path)[1:] == entries(whole)[1:]
    assert snapshot_steps(tmp_path) == snapshot_steps(whole)


def test_signals_cut_neither_what_is_not_abandonable_nor_what_cleans_up() -> None:
    done: list[str] = []

    with Interruption() as interruption:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        done.append("written")
        with suppress(KeyboardInterrupt), interruption.abandonable():
            try:
                signal.raise_signal(signal.SIGTERM)
                done.append("computed")
            finally:
                signal.raise_signal(signal.SIGTERM)
                done.append("cleaned up")

    assert done == ["written", "cleaned up"]


def test_a_compiler_that_the_signal_ended_is_no_error() -> None:
    def compile_and_fail(interruption: Interruption) -> None:
        with interruption.abandonable():
            signal.raise_signal(signal.SIGINT)
            raise RuntimeError

    with Interruption() as interruption, pytest.raises(KeyboardInterrupt):
        compile_and_fail(interruption)


def test_the_signals_are_given_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]

    with Interruption():
        inside = [signal.getsignal(number) for number in SIGNALS]

    assert [signal.getsignal(number) for number in SIGNALS] == before != inside


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupted_command_saves_and_says_how_to_go_on(
    number: signal.Signals, data: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "recipe.json"
    settings.write_text(
        json.dumps(recipe_to_dict(recipe(steps=100_000, run={"snapshot_every": 100_000})))
    )
    run = tmp_path / "run"
    words = [*options(data, run), str(settings)]

    with subprocess.Popen(
        [sys.executable, "-m", "nanochat", *words], stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not (run / "log.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        _, messages = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "--resume" in messages
    assert "Traceback" not in messages
    assert list(run.glob("snapshots/*/snapshot.json"))
