"""The type of products is that which is faster here, unless a run asks for one; a slow one is warned of."""

import logging
import signal
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from nanochat.training.loop import Trainer
from nanochat.training.plan import plan
from nanochat.training.products import Speeds, measured, with_products
from nanochat.training.recipe import Recipe
from nanochat.training.run_log import LogEntry
from tests.training.runs import command_here, entries, options, recipe

FAST, SLOW = Speeds(float32=100.0, bfloat16=180.0), Speeds(float32=100.0, bfloat16=11.0)


def asks(products: str) -> Recipe:
    return recipe(precision={"products": products})


@pytest.mark.parametrize(("speeds", "chosen"), [(FAST, "bfloat16"), (SLOW, "float32")])
def test_auto_is_what_is_faster(
    speeds: Speeds, chosen: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert with_products(asks("auto"), speeds).precision.products == chosen
    assert not caplog.records


def test_a_little_faster_is_not_enough_for_what_rounds_more() -> None:
    speeds = Speeds(float32=100.0, bfloat16=110.0)

    assert with_products(asks("auto"), speeds).precision.products == "float32"


def test_what_a_run_asks_for_is_kept_and_warned_of_where_it_is_slow(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert with_products(asks("bfloat16"), FAST).precision.products == "bfloat16"
        assert not caplog.records
        assert with_products(asks("bfloat16"), SLOW).precision.products == "bfloat16"

    assert caplog.messages == [
        "products in bfloat16 take 9.1 times as long here as in float32 (100 GFLOP/s in float32, 11 in bfloat16): pass "
        "--set precision.products=auto"
    ]


def test_each_phase_has_its_own() -> None:
    phases = [{"steps": 3, "precision": {"products": "auto"}}, {"steps": 3}]
    settings = recipe(steps=6, schedule={"decay_steps": 0}, phases=phases)

    first, second = with_products(settings, FAST).phases

    assert first.changes == {"precision": {"products": "bfloat16"}}
    assert second.changes == {}
    assert settings.phases[0].changes == {"precision": {"products": "auto"}}


def test_both_speeds_are_measured() -> None:
    found = measured(256, torch.device("cpu"))

    assert 0.1 < found.float32 < 1e5
    assert 0.1 < found.bfloat16 < 1e5


def test_a_run_says_what_it_took_and_goes_on_with_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(entry: LogEntry) -> None:
        if entry.step == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("nanochat.training.loop.measured", lambda *_: FAST)
    settings = recipe(steps=5, precision={"products": "auto"}, schedule={"decay_steps": 0})
    assert not Trainer(settings, data, tmp_path, num_threads=1, compile_model=False).run(stop)
    monkeypatch.setattr("nanochat.training.loop.measured", lambda *_: SLOW)

    planned = plan(data=data, out=tmp_path, resume=True)
    resumed = planned.trainer(num_threads=1, compile_model=False)

    assert (resumed.step, resumed.recipe.precision.products) == (2, "bfloat16")
    assert resumed.model.ops.dtype == torch.bfloat16
    first = entries(tmp_path)[0]
    assert first["recipe"]["precision"]["products"] == "bfloat16"
    assert first["machine"]["gflops"] == asdict(FAST)


def test_the_command_says_it_aloud(data: Path, tmp_path: Path) -> None:
    words = ["--preset", "tiny", "--set", "steps=1", "--set", "schedule.warmup_steps=0"]

    result = command_here(*options(data, tmp_path / "run"), *words, "--set", "data.length=64")

    assert result.returncode == 0, result.stderr
    assert "products in " in result.stderr
    assert "GFLOP/s in float32" in result.stderr
