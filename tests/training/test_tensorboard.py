"""TensorBoard's own reader finds in its files what the log of a run says, however often the run was interrupted."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import nanochat
from nanochat.errors import BackendError
from nanochat.training.loop import Trainer
from nanochat.training.recipe import recipe_to_dict
from nanochat.training.run_log import LogEntry
from nanochat.training.snapshot import remove_snapshot, snapshot_steps
from nanochat.training.tensorboard import TensorBoard
from tests.training.runs import command_here, options, recipe

RECIPE = recipe(
    steps=14, schedule={"decay_steps": 0}, model={"num_layers": 1}, run={"sample_tokens": 4}
)


def read(run: Path) -> EventAccumulator:
    """All that is in the files, not a part of it chosen at random."""
    found = EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def scalars(run: Path) -> list[tuple[str, int, float]]:
    found = read(run)
    names = found.Tags()["scalars"]
    return sorted((n, each.step, each.value) for n in names for each in found.Scalars(n))


def texts(run: Path, name: str) -> list[tuple[int, str]]:
    return [
        (each.step, each.tensor_proto.string_val[0].decode())
        for each in read(run).Tensors(f"{name}/text_summary")
    ]


def purges(run: Path) -> list[int]:
    """The steps from which on a file says that those before it do not count."""
    files = sorted((run / "tensorboard").iterdir())
    events = [each for path in files for each in EventFileLoader(str(path)).Load()]
    return [each.step for each in events if each.HasField("session_log")]


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def logged(run: Path) -> list[tuple[str, int, float]]:
    """The numbers of a log, as the reader has them."""
    found = []
    for line in log(run):
        step = line.pop("step")
        lists = {name: each for name, each in line.items() if isinstance(each, list)}
        parts = {f"{n}/{i}": x for n, each in lists.items() for i, x in enumerate(each)}
        found += [(n, step, x) for n, x in {**line, **parts}.items() if isinstance(x, int | float)]
    return sorted(found)


def assert_same(run: Path) -> None:
    found, expected = scalars(run), logged(run)
    assert [each[:2] for each in found] == [each[:2] for each in expected]
    # Files hold float32.
    assert [each[2] for each in found] == pytest.approx([each[2] for each in expected], rel=1e-6)


def train(data: Path, run: Path, *, stop: int | None = None, resume: bool = False) -> None:
    """A run, or what is left of it after it was killed in the step behind that."""

    def kill(entry: LogEntry) -> None:
        if entry.step == stop and "loss" in entry.values:
            trainer._advance = die  # type: ignore[method-assign]

    def die() -> dict[str, object]:
        raise RuntimeError

    start = run if resume else None
    trainer = Trainer(RECIPE, data, run, start=start, num_threads=1, compile_model=False)
    with TensorBoard(run, trainer.step) as board:

        def show(entry: LogEntry) -> None:
            board(entry)
            kill(entry)

        if stop is None:
            assert trainer.run(show)
        else:
            with pytest.raises(RuntimeError):
                trainer.run(show)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by `nanochat.train`."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    nanochat.train(
        recipe_to_dict(RECIPE),
        data=data,
        out=folder,
        num_threads=1,
        compile_model=False,
        tensorboard=True,
    )
    return folder


def test_every_number_of_the_log_is_a_scalar(whole: Path) -> None:
    assert_same(whole)
    assert ("stream_divergence/1", 14) in {each[:2] for each in scalars(whole)}


def test_the_recipe_and_samples_are_texts(whole: Path) -> None:
    (first,) = texts(whole, "recipe")
    samples = texts(whole, "sample")

    assert (first[0], json.loads(first[1])) == (0, log(whole)[0]["recipe"])
    assert [step for step, _ in samples] == [10, 14]
    assert samples[1][1] == "".join(
        f"    {x}\n" for x in str(log(whole)[-1]["sample"]).splitlines()
    )


def test_a_run_that_was_killed_and_resumed_has_each_step_once(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, stop=8)
    train(data, tmp_path, stop=13, resume=True)
    assert ("loss", 13) in {each[:2] for each in scalars(tmp_path)}

    train(data, tmp_path, resume=True)

    assert_same(tmp_path)


def test_steps_behind_a_snapshot_that_a_run_goes_back_to_are_dropped(tmp_path: Path) -> None:
    with TensorBoard(tmp_path, 0) as board:
        for step, loss in ((1, 3.0), (2, 2.0), (3, 9.0)):
            board(LogEntry(step=step, values={"loss": loss}))
        board(LogEntry(step=1, values={"went_back": "loss is nan", "last_batch": 3}))
        board(LogEntry(step=2, values={"loss": 1.0}))

    assert scalars(tmp_path) == [("last_batch", 1, 3.0), ("loss", 1, 3.0), ("loss", 2, 1.0)]


def test_a_run_that_begins_anew_has_nothing_of_what_stood_there(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, stop=8)
    for step in snapshot_steps(tmp_path):
        remove_snapshot(tmp_path, step)

    train(data, tmp_path, stop=3)

    assert_same(tmp_path)
    # This reader drops no texts, whatever a file says.
    assert purges(tmp_path) == [0, 0]


def test_an_entry_is_in_the_file_at_once(tmp_path: Path) -> None:
    with TensorBoard(tmp_path, 0) as board:
        board(LogEntry(step=1, values={"loss": 3.0}))

        assert scalars(tmp_path) == [("loss", 1, 3.0)]


def test_the_command_writes_and_goes_on(data: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps({**recipe_to_dict(RECIPE), "steps": 2}))
    words = [*options(data, tmp_path / "run"), "--tensorboard"]

    first = command_here(*words, tmp_path / "recipe.json", "--set", "schedule.warmup_steps=0")
    second = command_here(*words, "--resume")

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert_same(tmp_path / "run")


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package tensorboard."""
    for name in [each for each in sys.modules if "tensorboard" in each]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)


@pytest.mark.usefixtures("absent")
def test_the_command_says_how_to_install_what_is_missing_before_anything_else(
    tmp_path: Path,
) -> None:
    words = ["--preset", "tiny", "--out", tmp_path / "run", "--tensorboard"]

    result = command_here("train", *words)

    assert result.returncode == 1
    assert result.stderr.startswith(
        "error: the package tensorboard must be installed: pip install "
    )
    assert result.stderr.count("\n") == 1


@pytest.mark.usefixtures("absent")
def test_python_is_told_how_to_install_what_is_missing_before_anything_else() -> None:
    with pytest.raises(
        BackendError, match=r"needs the package tensorboard: pip install .*\[tensor"
    ):
        nanochat.train({"preset": "no such"}, tensorboard=True)
