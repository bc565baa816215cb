"""Runs that learn from a teacher: a model of somebody else's, or their own of an earlier phase."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from nanochat.backends.torch.ops import TorchOps
from nanochat.cli import _nanochat
from nanochat.errors import ConfigError, TrainingError
from nanochat.init import init
from nanochat.lm import from_pretrained
from nanochat.model import forward
from nanochat.text.tokenizer import Tokenizer
from nanochat.training.loop import Trainer
from nanochat.training.model_directory import write_model_directory
from nanochat.training.module import LanguageModel
from nanochat.training.recipe import ENDLESS, Recipe, recipe_from_dict, recipe_to_dict
from nanochat.training.stored_logits import store_logits
from tests.training.runs import batch_of, entries, losses, quiet, recipe

SHORT: dict[str, Any] = {
    "schedule": {"warmup_steps": 0, "decay_steps": 0},
    "run": {"evaluation_windows": 1, "snapshot_every": 3},
}


@pytest.fixture
def teacher(data: Path, tmp_path: Path) -> Path:
    """A narrow model of random weights that reads the same tokens."""
    config = recipe(model={"num_layers": 1, "tie_embeddings": False}).model
    model = LanguageModel(config, init(config, np.random.default_rng(7)), TorchOps("cpu"))
    write_model_directory(model, Tokenizer.load(data), tmp_path / "teacher", name="teacher")
    return tmp_path / "teacher"


def trainer(settings: Recipe, data: Path, run: Path, **others: Any) -> Trainer:
    return Trainer(settings, data, run, num_threads=1, compile_model=False, **others)


def test_the_divergence_is_that_from_the_logits_of_the_teacher(
    data: Path, teacher: Path, tmp_path: Path
) -> None:
    settings = recipe(
        objective={"distillation": 1, "temperature": 2}, teacher={"model": str(teacher)}
    )
    run = trainer(settings, data, tmp_path / "run")
    inputs, targets, *_ = batch_of(run)

    found = run._terms(inputs, targets)

    def logits(model: LanguageModel) -> Tensor:
        with torch.no_grad():
            return forward(inputs, model.tree(), model.config, model.ops) / 2

    config = recipe(model={"num_layers": 1, "tie_embeddings": False}).model
    other = LanguageModel(config, init(config, np.random.default_rng(7)), TorchOps("cpu"))
    expected = torch.nn.functional.kl_div(
        logits(run.model).log_softmax(dim=-1), logits(other).softmax(dim=-1), reduction="none"
    )
    torch.testing.assert_close(
        found["distillation"].detach(), expected.sum(dim=-1).mean(), rtol=1e-3, atol=1e-5
    )
    torch.testing.assert_close(found["objective"], found["loss"] + 4 * found["distillation"])


def test_a_run_learns_from_a_teacher(data: Path, teacher: Path, tmp_path: Path) -> None:
    settings = recipe(
        steps=8, objective={"distillation": 10}, teacher={"model": str(teacher)}, **SHORT
    )

    assert trainer(settings, data, tmp_path / "run").run(quiet)

    found = [line["distillation"] for line in entries(tmp_path / "run") if "loss" in line]
    assert 0 < found[-1] < 0.8 * found[0]


@pytest.mark.parametrize("packing", ["windows", "best-fit"])
def test_stored_logits_of_the_whole_vocabulary_teach_as_their_model_does(
    packing: str, data: Path, teacher: Path, tmp_path: Path
) -> None:
    from_model = recipe(
        steps=4,
        data={"packing": packing},
        objective={"distillation": 1, "temperature": 2},
        teacher={"model": str(teacher)},
        **SHORT,
    )
    fields = recipe_to_dict(from_model) | {"teacher": {"logits": str(tmp_path / "logits")}}
    from_disk = recipe_from_dict(fields)
    store_logits(from_disk, data, tmp_path / "logits", model=str(teacher), count=300)

    trainer(from_model, data, tmp_path / "model").run(quiet)
    trainer(from_disk, data, tmp_path / "disk").run(quiet)

    found = [
        [line["distillation"] for line in entries(tmp_path / name) if "loss" in line]
        for name in ("model", "disk")
    ]
    # Logits of 16 bits.
    assert found[1] == pytest.approx(found[0], rel=0.02)
    assert len(found[0]) == 4


def test_few_logits_are_a_distribution_of_their_own(
    data: Path, teacher: Path, tmp_path: Path
) -> None:
    settings = recipe(
        steps=2,
        objective={"distillation": 1},
        teacher={"logits": str(tmp_path / "logits")},
        **SHORT,
    )
    store_logits(settings, data, tmp_path / "logits", model=str(teacher), count=3)
    run = trainer(settings, data, tmp_path / "run")
    inputs, targets, *_ = batch_of(run)

    found = run._terms(inputs, targets)["distillation"]

    with torch.no_grad():
        ours = forward(inputs, run.model.tree(), run.model.config, run.model.ops)
        other = from_pretrained(str(teacher), backend="reference")
        rows = [torch.from_numpy(other.engine.logits(row)) for row in inputs.tolist()]
    theirs = torch.stack(rows)
    values, ids = theirs.topk(3, dim=-1)
    logarithms = values.log_softmax(dim=-1)
    distance = logarithms - ours.log_softmax(dim=-1).gather(-1, ids)
    expected = (logarithms.exp() * distance).sum(dim=-1).mean()
    torch.testing.assert_close(found.detach(), expected, rtol=1e-3, atol=1e-5)


def test_a_sequence_that_the_teacher_has_not_read_is_named(
    data: Path, teacher: Path, tmp_path: Path
) -> None:
    settings = recipe(
        steps=2,
        objective={"distillation": 1},
        teacher={"logits": str(tmp_path / "logits")},
        **SHORT,
    )
    store_logits(settings, data, tmp_path / "logits", model=str(teacher), count=3)
    other = recipe_from_dict(recipe_to_dict(settings) | {"seed": 1})

    with pytest.raises(TrainingError, match="has no logits of a sequence of this batch: store"):
        trainer(other, data, tmp_path / "run").run(quiet)


def test_logits_that_cannot_teach_are_refused(data: Path, teacher: Path, tmp_path: Path) -> None:
    logits = tmp_path / "logits"
    settings = recipe(
        steps=2, objective={"distillation": 1}, teacher={"logits": str(logits)}, **SHORT
    )
    with pytest.raises(ConfigError, match=r"teacher\.logits=.* holds no logits .*: pass what"):
        trainer(settings, data, tmp_path / "run")
    store_logits(settings, data, logits, model=str(teacher), count=3)
    wide = recipe(
        steps=2,
        model={"vocab_size": 320},
        objective={"distillation": 1},
        teacher={"logits": str(logits)},
        **SHORT,
    )

    with pytest.raises(ConfigError, match=r"300 tokens .* of 320: set model\.vocab_size=300"):
        trainer(wide, data, tmp_path / "run")


# No file may be larger, as if the disk were full.
FULL = """
import resource, signal, sys
from nanochat.cli import main

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000,) * 2)
sys.exit(main())
"""


def test_a_command_stores_logits_and_on_a_full_disk_none(
    data: Path, teacher: Path, tmp_path: Path
) -> None:
    logits, config = tmp_path / "logits", tmp_path / "recipe.json"
    settings = recipe(steps=2, objective={"distillation": 1}, **SHORT)
    fields = recipe_to_dict(settings) | {"teacher": {"logits": str(logits)}}
    config.write_text(json.dumps(fields))
    words = ["data", "logits", config, "--data", data, "--model", teacher, "--out", logits]
    words += ["--count", 3, "--device", "cpu"]

    full = subprocess.run(
        [sys.executable, "-c", FULL, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert full.returncode == 1
    last = full.stderr.splitlines()[-1]
    assert f"error: cannot write {logits}: " in last
    assert last.endswith("free space or pass another path")
    assert not logits.exists()

    result = CliRunner().invoke(_nanochat, [*map(str, words)])

    assert result.exit_code == 0, result.output
    assert f"wrote {logits}, " in result.stderr
    assert trainer(recipe_from_dict(fields), data, tmp_path / "run").run(quiet)


def test_logits_of_a_run_without_an_end_are_refused(data: Path, teacher: Path) -> None:
    settings = recipe(steps=ENDLESS, objective={"distillation": 1})

    with pytest.raises(ConfigError, match=r"with a budget .*: pass steps in its place"):
        store_logits(settings, data, Path("logits"), model=str(teacher))


def in_phases(**changes: Any) -> Recipe:
    """The model of the first three steps teaches the last four."""
    fields: dict[str, Any] = {
        "steps": 7,
        "phases": [{"steps": 3}, {"steps": 4, "objective": {"distillation": 1}}],
        "teacher": {"phase": 1},
    }
    return recipe(**{**fields, **SHORT, **changes})


@pytest.mark.parametrize("weights", ["ternary", "float"])
def test_an_earlier_phase_is_a_teacher(weights: str, data: Path, tmp_path: Path) -> None:
    assert trainer(in_phases(precision={"weights": weights}), data, tmp_path).run(quiet)

    lines = [line for line in entries(tmp_path) if "loss" in line]
    assert ["distillation" in line for line in lines] == [False] * 3 + [True] * 4
    # At its first step the model is its own teacher.
    assert lines[3]["distillation"] == pytest.approx(0, abs=1e-5)
    assert lines[6]["distillation"] > 1e-4


@pytest.mark.parametrize("step", [3, 6])
def test_a_run_with_an_earlier_phase_as_its_teacher_goes_on_exactly(
    step: int, data: Path, tmp_path: Path
) -> None:
    settings = in_phases()
    trainer(settings, data, tmp_path / "whole").run(quiet)
    broken = trainer(settings, data, tmp_path / "broken")

    def stop(entry: Any) -> None:
        if entry.step == step and "loss" in entry.values:
            raise KeyboardInterrupt

    assert not broken.run(stop)
    resumed = trainer(settings, data, tmp_path / "broken", start=tmp_path / "broken")

    assert resumed.run(quiet)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")


def test_a_branch_without_the_model_of_the_phase_is_refused(data: Path, tmp_path: Path) -> None:
    trainer(in_phases(), data, tmp_path / "whole").run(quiet)
    phases = [{"steps": 3}, {"steps": 6, "objective": {"distillation": 1}}]
    settings = in_phases(steps=9, phases=phases)
    branch = trainer(settings, data, tmp_path / "branch", start=tmp_path / "whole")

    with pytest.raises(
        TrainingError, match=r"is not the model of the end of teacher\.phase, step 3"
    ):
        branch.run(quiet)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"distillation": 1}}, r"distillation=1 has no teacher: set teacher\.model"),
        ({"teacher": {"model": "x"}}, r"teacher\.model='x' teaches nothing: set objective\.dist"),
        ({"teacher": {"phase": 1}}, r"teacher\.phase=1 teaches nothing"),
        (
            {"teacher": {"phase": 1, "model": "x"}, "objective": {"distillation": 1}},
            r"teacher\.model='x' and teacher\.phase=1: choose one",
        ),
        (
            {"teacher": {"phase": 1}, "objective": {"distillation": 1}},
            r"teacher\.phase=1 does not end before phase 1 learns from it",
        ),
    ],
    ids=str,
)
def test_a_teacher_that_cannot_teach_is_refused(
    changes: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(recipe(**changes), data, tmp_path / "run")


def test_a_teacher_of_another_vocabulary_is_refused(
    data: Path, teacher: Path, tmp_path: Path
) -> None:
    settings = recipe(
        model={"vocab_size": 320},
        objective={"distillation": 1},
        teacher={"model": str(teacher)},
    )

    with pytest.raises(ConfigError, match=r"300 tokens and the model of 320: set model\.vocab"):
        trainer(settings, data, tmp_path / "run")
