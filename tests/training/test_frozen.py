"""Models that a run reads besides its own: what they say, and what cannot be one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nanochat.backends.torch.ops import TorchOps
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, ModelNotFoundError, NanochatError
from nanochat.init import init
from nanochat.text.tokenizer import Tokenizer
from nanochat.training.frozen import FrozenModel
from nanochat.training.loop import Trainer
from nanochat.training.model_directory import write_model_directory
from nanochat.training.module import LanguageModel
from nanochat.training.objectives.filtering import kept_rows
from tests.training.runs import MODEL, batch_of, quiet, recipe

Write = Callable[..., Path]


@pytest.fixture
def other(data: Path, tmp_path: Path) -> Write:
    """Writes a model of random weights that reads the same tokens, or others."""

    def write(tokenizer: Tokenizer | None = None, **changes: object) -> Path:
        config = ModelConfig(**{"vocab_size": 300, **MODEL, **changes})  # type: ignore[arg-type]
        weights = init(config, np.random.default_rng(7))
        model = LanguageModel(config, weights, TorchOps("cpu"))
        path = tmp_path / "other"
        write_model_directory(model, tokenizer or Tokenizer.load(data), path, name="other")
        return path

    return write


def test_a_frozen_model_has_the_losses_that_it_had_in_training(data: Path, other: Write) -> None:
    config = recipe().model
    model = LanguageModel(config, init(config, np.random.default_rng(7)), TorchOps("cpu"))
    tokens = torch.arange(66).view(2, 33) * 4
    tokens[1, 9:12] = -1
    inputs, targets = tokens[:, :-1].clamp(min=0), tokens[:, 1:]

    frozen = FrozenModel.load(
        str(other()), Tokenizer.load(data), setting="reference.model", length=32, device="cpu"
    )

    def losses(outputs: object) -> Tensor:
        return model.ops.cross_entropy(outputs.steps[0], outputs.table, targets)  # type: ignore[attr-defined]

    expected: Tensor = model(inputs, losses)
    torch.testing.assert_close(
        frozen.losses(inputs, targets), expected.detach(), rtol=1e-4, atol=1e-4
    )


def test_the_excess_is_over_the_loss_of_the_reference(
    data: Path, other: Write, tmp_path: Path
) -> None:
    settings = recipe(objective={"keep_tokens": 0.25}, reference={"model": str(other())})
    trainer = Trainer(settings, data, tmp_path / "run", num_threads=1, compile_model=False)
    inputs, targets, *_ = batch_of(trainer)
    frozen = FrozenModel.load(
        settings.reference.model, trainer.shards.tokenizer, setting="", length=64, device="cpu"
    )

    def losses(outputs: object) -> Tensor:
        return trainer.model.ops.cross_entropy(outputs.steps[0], outputs.table, targets)  # type: ignore[attr-defined]

    found = trainer._terms(inputs, targets)

    ours: Tensor = trainer.model(inputs, losses)
    rows = kept_rows(ours - frozen.losses(inputs, targets), 16)
    torch.testing.assert_close(found["kept_loss"], ours.flatten()[rows].mean())


def test_a_run_with_a_reference_ends(data: Path, other: Write, tmp_path: Path) -> None:
    settings = recipe(
        steps=2,
        schedule={"warmup_steps": 0, "decay_steps": 0},
        objective={"keep_tokens": 0.5},
        reference={"model": str(other(num_layers=1))},
        run={"evaluation_windows": 1},
    )

    assert Trainer(settings, data, tmp_path / "run", num_threads=1, compile_model=False).run(quiet)


def refusal(data: Path, tmp_path: Path, **changes: object) -> str:
    with pytest.raises(NanochatError) as caught:
        Trainer(recipe(**changes), data, tmp_path / "run", compile_model=False)
    assert not (tmp_path / "run").exists()
    return str(caught.value)


def test_a_reference_of_other_tokens_is_refused(data: Path, other: Write, tmp_path: Path) -> None:
    path = other(Tokenizer.train(["another text"] * 3, vocab_size=270))

    said = refusal(data, tmp_path, objective={"keep_tokens": 0.5}, reference={"model": str(path)})

    assert "its tokenizer is another than that of the data" in said


def test_a_reference_that_reads_too_little_is_refused(
    data: Path, other: Write, tmp_path: Path
) -> None:
    path = other(context_length=32)

    said = refusal(data, tmp_path, objective={"keep_tokens": 0.5}, reference={"model": str(path)})

    assert "reads 32 tokens at most, and sequences may have 64" in said
    assert "data.length=32" in said


def test_a_reference_that_is_not_there_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        Trainer(
            recipe(objective={"keep_tokens": 0.5}, reference={"model": "./nowhere"}),
            data,
            tmp_path / "run",
            compile_model=False,
        )


def test_a_reference_that_chooses_nothing_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"chooses no tokens .*: set objective\.keep_tokens=0\.5"):
        Trainer(recipe(reference={"model": "x"}), data, tmp_path / "run", compile_model=False)
