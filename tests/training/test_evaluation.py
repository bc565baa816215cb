"""What an evaluation says of a model is what the model that is written does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nanochat
from nanochat.data.batch import Layout
from nanochat.data.prepare import prepare
from nanochat.errors import TrainingError
from nanochat.text.tokenizer import Tokenizer
from nanochat.training.loop import Trainer
from nanochat.training.progress import progress
from nanochat.training.run_log import LogEntry
from tests.training.runs import quiet, recipe


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, dict[str, Any]]:
    """A run of a few steps, and the last evaluation in its log."""
    folder = tmp_path_factory.mktemp("run")
    settings = recipe(steps=20, run={"sample_tokens": 12}, optimizer={"matrices": {"rate": 0.01}})
    trainer = Trainer(settings, data, folder, num_threads=1, compile_model=False)
    found: dict[str, Any] = {}

    def look(entry: LogEntry) -> None:
        if "sample" in entry.values:
            found.update(entry.values)

    assert trainer.run(look)
    return trainer, found


def test_accuracy_and_perplexity_are_those_of_the_model_that_is_written(
    trained: tuple[Trainer, dict[str, Any]],
) -> None:
    trainer, found = trained
    model = nanochat.from_pretrained(trainer.directory / "model", backend="reference")
    right, nats, count = 0, 0.0, 0
    for _, batch, _ in trainer.held_out.in_order(1, Layout(length=64)):
        targets = batch.targets
        logits = model.logits(batch.inputs[0]).astype(np.float64)
        right += int((logits.argmax(axis=-1) == targets[0]).sum())
        top = logits.max(axis=-1)
        partition = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
        nats += float((partition - logits[np.arange(64), targets[0]]).sum())
        count += 64
        if count == found["held_out_tokens"]:
            break

    # A token or two are as probable as another.
    assert found["held_out_accuracy"] == pytest.approx(right / count, abs=2 / count)
    assert found["held_out_perplexity"] == pytest.approx(np.exp(nats / count), rel=1e-3)


def test_a_sample_is_what_the_model_that_is_written_writes(
    trained: tuple[Trainer, dict[str, Any]],
) -> None:
    trainer, found = trained
    model = nanochat.from_pretrained(trainer.directory / "model", backend="torch")
    _, batch, _ = next(trainer.held_out.in_order(1, Layout(length=12)))
    prompt = batch.inputs[0].tolist()
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0.7, "seed": 0, "ignore_eos": True}

    text = model.generate(prompt, **options)

    assert found["sample"] == trainer.held_out.tokenizer.decode(prompt) + text
    assert text


def test_what_a_model_wrote_is_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    entry = LogEntry(
        step=7,
        values={
            "held_out_bits_per_byte": 1.25,
            "held_out_accuracy": 0.5,
            "sample": "[bold]a[/bold]\x1b[31m",
        },
    )

    with progress(recipe(), 0, compiling=False) as (show, _):
        show(entry)

    said = capsys.readouterr().err
    assert "step 7: held out 1.2500 bits per byte, 50.0% of tokens the most probable" in said
    assert "it writes:\n[bold]a[/bold]\N{REPLACEMENT CHARACTER}[31m" in said


def test_the_phase_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    settings = recipe(steps=4, schedule={"decay_steps": 0}, phases=[{"steps": 3}, {"steps": 1}])
    entry = LogEntry(step=4, values={"loss": 1.0, "tokens_per_second": 5.0})

    with progress(settings, 0, compiling=False) as (show, _):
        show(entry)

    assert "phase 2/2" in capsys.readouterr().err


def test_nothing_is_written_by_an_unquantised_model(data: Path, tmp_path: Path) -> None:
    settings = recipe(
        steps=3,
        schedule={"decay_steps": 0},
        precision={"weights": "float"},
        run={"sample_tokens": 5},
    )
    trainer = Trainer(settings, data, tmp_path, num_threads=1, compile_model=False)
    trainer.run(quiet)

    assert "sample" not in trainer.evaluate(2)


@pytest.fixture
def asked_at_length(data: Path, tmp_path: Path) -> Path:
    """Conversations whose answers come after several windows of 64 tokens."""
    said = [{"role": "user", "content": "why? " * 200}, {"role": "assistant", "content": "hi"}]
    rows = [{"messages": [{"role": "system", "content": f"{n}"}, *said]} for n in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = Tokenizer.load(data)
    prepare([tmp_path / "a.jsonl"], tmp_path / "chats", tokenizer, chat=True, held_out=0.2)
    return tmp_path / "chats"


def test_an_evaluation_of_nothing_is_refused(asked_at_length: Path, tmp_path: Path) -> None:
    trainer = Trainer(
        recipe(), asked_at_length, tmp_path / "run", num_threads=1, compile_model=False
    )

    with pytest.raises(TrainingError, match=r"nothing .* in 2 sequences .*run\.evaluation_windows"):
        trainer.evaluate(2)


def test_a_source_of_which_nothing_is_evaluated_has_no_line(
    asked_at_length: Path, data: Path, tmp_path: Path
) -> None:
    sources = {"text": data, "chats": asked_at_length}
    trainer = Trainer(recipe(), sources, tmp_path / "run", num_threads=1, compile_model=False)

    found = trainer.evaluate(2)

    assert found["held_out_bits_per_byte"] == found["held_out_bits_per_byte_text"]
    assert "held_out_bits_per_byte_chats" not in found
