"""A run reads several sources by weights, which a phase may change, and tells how it does on each."""

from pathlib import Path
from typing import Any

import pytest

import nanochat
from nanochat.data.prepare import prepare
from nanochat.errors import ConfigError, TrainingError
from nanochat.text.tokenizer import Tokenizer
from nanochat.training.loop import Trainer
from nanochat.training.phases import stages
from nanochat.training.recipe import recipe_to_dict
from tests.training.runs import command_here, entries, quiet, recipe

HELD_OUT = "held_out_bits_per_byte"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two texts of one tokenizer."""
    root = tmp_path_factory.mktemp("sources")
    tokenizer = Tokenizer.train(["let x = 1;\n", "once upon a time\n"] * 2, 290)
    for name, line in (("code", "let x = 1;\n"), ("prose", "once upon a time\n")):
        (root / name).mkdir()
        for i in range(20):
            (root / name / f"{i}.txt").write_text(line * (20 + i))
        prepare([root / name], root / f"{name}-tokens", tokenizer, held_out=0.2)
    return {name: root / f"{name}-tokens" for name in ("code", "prose")}


def trainer(settings: Any, sources: dict[str, Path], run: Path, **options: Any) -> Trainer:
    return Trainer(settings, sources, run, num_threads=1, compile_model=False, **options)


def test_a_run_reads_the_sources_by_their_weights_and_scores_each(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    # Of prose one in a thousand sequences is seen.
    weights = {"code": 1.0, "prose": 0.001}
    settings = recipe(data={"mixture": weights})

    assert trainer(settings, sources, tmp_path).run(quiet)

    last = entries(tmp_path)[-1]
    assert last[f"{HELD_OUT}_code"] < last[HELD_OUT] < last[f"{HELD_OUT}_prose"]
    assert entries(tmp_path)[0]["recipe"]["data"]["mixture"] == weights


def test_a_run_on_a_mixture_that_changes_resumes_exactly(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    phases = [{"steps": 6}, {"steps": 6, "data": {"mixture": {"prose": 1.0}}}]
    settings = recipe(steps=12, phases=phases, data={"mixture": {"code": 1.0, "prose": 1.0}})
    whole = trainer(settings, sources, tmp_path / "whole")
    assert whole.run(quiet)

    for step in (4, 9, 12):
        start = tmp_path / "cut" if step > 4 else None
        part = trainer(settings, sources, tmp_path / "cut", start=start)
        part._interruption.check = lambda part=part, step=step: _stop(part, step)  # type: ignore[method-assign, misc]
        assert part.run(quiet) == (step == 12)

    assert entries(tmp_path / "cut") == entries(tmp_path / "whole")


def _stop(run: Trainer, step: int) -> None:
    if run.step == step < 12:
        raise KeyboardInterrupt


def test_a_mixture_of_a_phase_is_a_whole_one() -> None:
    phases = [{"steps": 6}, {"steps": 24, "data": {"mixture": {"prose": 1.0}}}]

    first, second = stages(recipe(phases=phases, data={"mixture": {"code": 1.0, "prose": 1.0}}))

    assert first.layout.mixture == (("code", 1.0), ("prose", 1.0))
    assert second.layout.mixture == (("prose", 1.0),)


def test_a_source_that_no_phase_reads_is_named(
    sources: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(recipe(data={"mixture": {"code": 1.0}}), sources, tmp_path)

    assert "data.mixture has no weight for prose" in caplog.text


def test_a_run_does_not_go_on_with_other_sources(sources: dict[str, Path], tmp_path: Path) -> None:
    settings = recipe(steps=12)
    assert trainer(settings, sources, tmp_path).run(quiet)

    with pytest.raises(TrainingError, match=r"has seen other data than .*code-tokens: pass the"):
        trainer(settings, {"code": sources["code"]}, tmp_path / "other", start=tmp_path)


def test_a_name_that_cannot_stand_in_the_log_is_refused(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="'my code' is no name for data: write letters"):
        trainer(recipe(), {"my code": sources["code"], "prose": sources["prose"]}, tmp_path)


def test_python_takes_sources_by_name(sources: dict[str, Path], tmp_path: Path) -> None:
    fields = recipe_to_dict(recipe(steps=2, schedule={"warmup_steps": 0, "decay_steps": 0}))
    named = {name: str(each) for name, each in sources.items()}

    run = nanochat.train(
        fields,
        data=named,
        out=tmp_path / "run",
        changes={"data.mixture": {"code": 0.5, "prose": 0.5}},
        compile_model=False,
        num_threads=1,
        show=quiet,
    )

    assert f"{HELD_OUT}_prose" in entries(run)[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{code}", "prose={prose}"], "write --data NAME={code} in place of --data {code}"),
        (["a={code}", "a={prose}"], "two data have the same name: write another"),
        (["a=nowhere"], "there is no directory nowhere: prepare the data first"),
        (["code={code}", "--set", 'data.mixture={"cod": 1}'], "did you mean code?"),
        (["code={code}", "--set", "data.mixture=1"], "data.mixture=1: must be a group of names"),
    ],
    ids=["no name", "same name", "no directory", "unknown name", "no weights"],
)
def test_data_that_cannot_be_mixed_are_refused_before_the_run(
    words: list[str], message: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    def filled(word: str) -> str:
        for name, each in sources.items():
            word = word.replace(f"{{{name}}}", str(each))
        return word

    given = [each for word in words for each in ([word] if word[0] in "-d" else ["--data", word])]
    sets = ["--preset", "tiny", "--set", "steps=100", "--no-compile"]

    result = command_here("train", *map(filled, given), *sets, "--out", tmp_path / "run")

    assert result.returncode == 2
    assert filled(message) in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()
