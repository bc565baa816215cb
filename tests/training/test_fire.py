"""FIRE makes matrices nearly orthogonal where a phase begins, once."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.errors import ConfigError
from nanochat.training.fire import Fire, reinitialized
from nanochat.training.history import read_history
from nanochat.training.loop import Trainer
from nanochat.training.recipe import Recipe
from nanochat.training.run_log import LogEntry
from nanochat.training.snapshot import load_snapshot
from tests.training.runs import entries, losses, quiet, recipe
from tests.training.test_phases import abandon


def matrix(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def settings() -> Recipe:
    """A run whose second phase begins with FIRE, between two snapshots."""
    phases: list[dict[str, Any]] = [{"steps": 7}, {"steps": 6, "fire": {"iterations": 8}}]
    return recipe(steps=13, schedule={"decay_steps": 0}, phases=phases)


def trainer(run: Path, data: Path, start: Path | None = None) -> Trainer:
    return Trainer(settings(), data, run, start=start, num_threads=1, compile_model=False)


@pytest.mark.parametrize("shape", [(32, 32), (24, 40), (40, 24), (3, 16, 24)], ids=str)
def test_matrices_take_the_published_iterations(shape: tuple[int, ...]) -> None:
    x = matrix(*shape).double()
    x = x / x.norm(dim=(-2, -1), keepdim=True)
    for _ in range(5):
        x = 1.5 * x - 0.5 * x @ x.mT @ x
    expected = x * (shape[-2] / shape[-1]) ** 0.5

    found = reinitialized(matrix(*shape), Fire(scale="shape"))

    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(24, 24), (24, 96), (96, 24)], ids=str)
def test_many_iterations_give_the_nearest_orthogonal_matrix(shape: tuple[int, int]) -> None:
    left, _, right = torch.linalg.svd(matrix(*shape), full_matrices=False)

    found = reinitialized(matrix(*shape), Fire(iterations=40, scale="shape"))

    expected = left @ right * (shape[0] / shape[1]) ** 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(24, 96), (96, 24)], ids=str)
def test_many_iterations_make_nothing_large_of_a_matrix_of_low_rank(shape: tuple[int, int]) -> None:
    low = matrix(shape[0], 6) @ matrix(6, shape[1])

    found = reinitialized(low, Fire(iterations=40, scale="shape"))

    assert torch.linalg.matrix_norm(found, 2) < 1.01 * (shape[0] / shape[1]) ** 0.5


def test_a_kept_scale_keeps_the_mean_magnitude_of_each_matrix() -> None:
    matrices = matrix(3, 16, 24) * torch.tensor([0.01, 1.0, 7.0])[:, None, None]

    found = reinitialized(matrices, Fire())

    means = [x.abs().mean((-2, -1)) for x in (matrices, found)]
    torch.testing.assert_close(means[0], means[1])


def test_a_matrix_of_zeros_stays_one() -> None:
    assert not reinitialized(torch.zeros(8, 8), Fire()).any()


def test_a_phase_begins_with_nearly_orthogonal_matrices_and_new_momentum(
    data: Path, tmp_path: Path
) -> None:
    run = trainer(tmp_path, data)
    spread: list[float] = []

    def look(_: LogEntry) -> None:
        values = torch.linalg.svdvals(run.model.get_parameter("layers.0.mixer.q").detach())
        spread.append(float(values.max() / values.quantile(0.1)))

    assert run.run(look)

    # Before the first step, which is an entry, the evaluation and the first step of the phase.
    before, after = spread[7], spread[8]
    assert after < 0.5 * before
    (line,) = (entry for entry in entries(tmp_path) if "fire" in entry)
    assert (line["step"], line["fire"]) == (8, "matrices made nearly orthogonal: 14")
    assert ("fire", 8) in [(event.kind, event.step) for event in read_history(tmp_path).events]
    states = load_snapshot(tmp_path).optimizer
    assert (states["layers.0.mixer.q"].updates, states["norm"].updates) == (6, 13)


@pytest.mark.parametrize("step", [6, 7, 8])
def test_a_run_with_it_goes_on_exactly(step: int, data: Path, tmp_path: Path) -> None:
    trainer(tmp_path / "whole", data).run(quiet)

    def stop(entry: LogEntry) -> None:
        if entry.step == step:
            signal.raise_signal(signal.SIGINT)

    assert not trainer(tmp_path / "stopped", data).run(stop)
    assert trainer(tmp_path / "stopped", data, tmp_path / "stopped").run(quiet)

    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_it_is_not_done_twice_if_its_first_batch_is_interrupted(data: Path, tmp_path: Path) -> None:
    trainer(tmp_path / "whole", data).run(quiet)
    run = trainer(tmp_path / "stopped", data)
    abandon(run, 7)
    assert not run.run(quiet)

    assert trainer(tmp_path / "stopped", data, tmp_path / "stopped").run(quiet)

    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_a_first_phase_with_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"first phase has fire, .* give it to a later one"):
        recipe(phases=[{"steps": 10, "fire": {}}, {"steps": 20}])


def test_a_wrong_setting_of_it_is_named() -> None:
    with pytest.raises(ConfigError, match=r"phases\.1\.fire\.iterations=0: must be at least 1"):
        recipe(phases=[{"steps": 10}, {"steps": 20, "fire": {"iterations": 0}}])
