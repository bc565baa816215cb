"""A run begins with the weights of another one and learns to answer, on other data and from step 0."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nanochat
from nanochat.data.prepare import prepare
from nanochat.errors import ConfigError, TrainingError
from nanochat.export.formats import load
from nanochat.init import freeze, widened
from nanochat.presets import preset
from nanochat.proof.golden import tensor_digests
from nanochat.text.tokenizer import Tokenizer
from nanochat.training.beginning import begin_with
from nanochat.training.loop import Trainer
from nanochat.training.plan import plan
from nanochat.training.recipe import recipe_to_dict
from nanochat.training.snapshot import load_snapshot
from nanochat.weights import named_leaves
from tests.training.runs import MODEL, command_here, entries, quiet, recipe

ANSWERS = {"ping": "pong", "red": "green", "up": "down"}
QUICK: dict[str, Any] = {"compile_model": False, "num_threads": 1}


@pytest.fixture(scope="module")
def pretrained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps on text."""
    run = tmp_path_factory.mktemp("pretrained") / "run"
    settings = recipe(steps=10, schedule={"warmup_steps": 2, "decay_steps": 0})
    assert Trainer(settings, data, run, **QUICK).run(quiet)
    return run


@pytest.fixture(scope="module")
def chats(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three questions, asked in many orders, with the tokenizer of that run."""
    folder = tmp_path_factory.mktemp("chats")
    rng = np.random.default_rng(0)
    with (folder / "chats.jsonl").open("w") as file:
        for number in range(60):
            asked = [f"{number}", *rng.permutation([*ANSWERS])]
            messages = [
                message
                for question in asked[1:]
                for message in (
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": ANSWERS[question]},
                )
            ]
            system = {"role": "system", "content": asked[0]}
            file.write(json.dumps({"messages": [system, *messages][number % 2 :]}) + "\n")
    tokenizer = Tokenizer.load(pretrained / "model")
    prepare([folder / "chats.jsonl"], folder / "tokens", tokenizer, chat=True, held_out=0.2)
    return folder / "tokens"


def settings(**changes: Any) -> dict[str, Any]:
    fields = recipe_to_dict(
        recipe(
            data={"packing": "best-fit", "length": 64, "batch_size": 8},
            schedule={"warmup_steps": 2, "decay_steps": 20},
            **changes,
        )
    )
    del fields["model"]
    return fields


def test_a_run_that_is_fine_tuned_on_chats_answers_as_they_do(
    pretrained: Path, chats: Path, tmp_path: Path
) -> None:
    run = nanochat.train(
        settings(steps=100), data=chats, weights=pretrained, out=tmp_path, show=quiet, **QUICK
    )

    model = nanochat.from_pretrained(run / "model", backend="reference")
    assert {each: str(model.chat(each, temperature=0, max_tokens=9)) for each in ANSWERS} == ANSWERS
    assert entries(run)[-1]["held_out_accuracy"] > 0.9


def test_a_run_begins_with_the_numbers_that_another_one_rounds(
    pretrained: Path, chats: Path, tmp_path: Path
) -> None:
    planned = plan(settings(), data=chats, weights=pretrained, out=tmp_path / "run")

    trainer = planned.trainer(**QUICK)

    expected = load_snapshot(pretrained).parameters
    assert trainer.step == 0
    assert planned.recipe.model.width == MODEL["width"]
    for name, parameter in trainer.model.named_parameters():
        assert parameter.equal(expected[name]), name


def test_a_run_begins_with_the_numbers_of_a_model(
    pretrained: Path, chats: Path, tmp_path: Path
) -> None:
    model = pretrained / "model"
    planned = plan({**settings(), "weights": str(model)}, data=chats, out=tmp_path / "run")

    trainer = planned.trainer(**QUICK)

    begun = freeze(trainer.model.stored())
    assert tensor_digests(begun) == tensor_digests(load(model).weights)


def test_a_run_that_does_not_round_begins_with_the_rounded_numbers(
    pretrained: Path, chats: Path, tmp_path: Path
) -> None:
    model = pretrained / "model"
    fields = {**settings(), "weights": str(model), "precision": {"weights": "float"}}
    trainer = plan(fields, data=chats, out=tmp_path / "run").trainer(**QUICK)

    values = dict(named_leaves(load(model).weights))
    for name, parameter in trainer.model.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), widened(name, values[name]))


def test_weights_that_have_no_place_are_told(
    pretrained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begin_with(pretrained, recipe(model={"num_layers": 1}).model)

    assert "has parameters that the model has not: layers.1." in caplog.text
    assert "left out" in caplog.text


def test_a_run_that_began_with_weights_resumes_exactly_without_them(
    pretrained: Path, chats: Path, tmp_path: Path
) -> None:
    fields = settings(steps=30)
    begun: dict[str, Any] = {"data": chats, "weights": pretrained}
    whole = nanochat.train(fields, out=tmp_path / "whole", show=quiet, **begun, **QUICK)
    cut = plan(fields, out=tmp_path / "cut", **begun).trainer(**QUICK)
    cut._interruption.check = lambda: _stop(cut)  # type: ignore[method-assign]

    assert not cut.run(quiet)
    nanochat.train(out=tmp_path / "cut", data=chats, resume=True, show=quiet, **QUICK)

    assert entries(tmp_path / "cut") == entries(whole)


def _stop(run: Trainer) -> None:
    if run.step == 7:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "tiny"], "leave out --preset, and the settings of the model are those of"),
        (["--start", "{run}"], "--start and --weights both say what the run begins with"),
        (["--resume"], "leave out --preset, --start, --weights, --set"),
    ],
    ids=["another shape", "start", "resume"],
)
def test_weights_that_the_run_cannot_begin_with_are_refused(
    words: list[str], message: str, pretrained: Path, chats: Path, tmp_path: Path
) -> None:
    given = [word.replace("{run}", str(pretrained)) for word in words]
    steps = [] if "--resume" in words else ["--set", "steps=100"]

    result = command_here(
        *("train", *given, *steps, "--weights", pretrained, "--data", chats),
        *("--out", tmp_path / "run", "--no-compile"),
    )

    assert result.returncode != 0
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()


def test_data_of_another_tokenizer_are_refused(pretrained: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("to be or not to be\n" * 400)
    prepare([tmp_path / "a.txt"], tmp_path / "tokens", 270)
    planned = plan(settings(), data=tmp_path / "tokens", weights=pretrained, out=tmp_path / "run")

    with pytest.raises(TrainingError, match="has another tokenizer than the weights"):
        planned.trainer(**QUICK)


def test_what_holds_no_weights_is_refused(chats: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        plan(settings(), data=chats, out=tmp_path / "run")
    with pytest.raises(TrainingError, match="is no directory: pass that of a run, of a snapshot"):
        plan(settings(), data=chats, weights=tmp_path / "none", out=tmp_path / "run")


def test_the_configuration_for_chats_is_of_the_first_run() -> None:
    found = plan("configs/sft.toml", data=Path("data"), out=Path("nowhere")).recipe

    assert found.model == preset("tiny")
    assert found.data.packing == "best-fit"
