"""Tasks of lm-evaluation-harness say of a model what their definitions say, offline, with data of one's own."""

import json
import os
import pickle
import random
import sys
from pathlib import Path

import datasets
import huggingface_hub
import lm_eval
import numpy as np
import pytest
from lm_eval.tasks import TaskManager

from nanochat.errors import DataError, InputError
from nanochat.evaluation.harness import NanochatLM
from nanochat.evaluation.tasks import run_tasks
from nanochat.evaluation.texts import score_texts
from tests.core.command_line import Run
from tests.evaluation.models import RUNNERS, model
from tests.evaluation.task_folders import QUESTIONS, TEXTS, write_tasks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks")
    write_tasks(path)
    return path


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("runner", RUNNERS)
def test_tasks_of_each_kind_say_what_their_definitions_say(runner: str, folder: Path) -> None:
    tested = model(runner)

    found = run_tasks(tested, ["choose", "perplexity", "write"], include_path=folder)

    tasks = json.loads(json.dumps(found))["tasks"]
    assert tasks["choose"]["metrics"]["acc"]["value"] == _share_of_right_choices(runner)
    of_texts = score_texts(tested, [text for text in TEXTS if text], convention="lm-eval")
    bits = tasks["perplexity"]["metrics"]["bits_per_byte"]["value"]
    assert bits == pytest.approx(
        of_texts.total.bits_per_byte, rel=1e-9 if runner == "numba" else 1e-3
    )
    prompts = [question["question"] for question in QUESTIONS]
    written = tested.generate(prompts, max_tokens=5, stop=["\n"])
    right = [
        text == question["choices"][0] for text, question in zip(written, QUESTIONS, strict=True)
    ]
    assert tasks["write"]["metrics"]["exact_match"]["value"] == sum(right) / len(right)


def _share_of_right_choices(runner: str) -> float:
    """By one pass over each question with each answer."""
    tested = model(runner)
    right = 0
    for question in QUESTIONS:
        prompt = f"Question: {question['question']}\nAnswer:"
        start = [*tested.tokenizer.opening, *tested.tokenizer.encode(prompt)]
        nats = []
        for choice in question["choices"]:
            ids = [*tested.tokenizer.opening, *tested.tokenizer.encode(f"{prompt} {choice}")]
            nats.append(tested.engine.losses(ids)[len(start) - 1 :].sum())
        right += int(np.argmin(nats)) == question["answer"]
    return right / len(QUESTIONS)


def test_a_result_says_what_was_asked_of_which_version(folder: Path) -> None:
    found = run_tasks(
        model("numba"), ["choose"], include_path=folder, limit=4, num_fewshot=0, seed=3
    )

    assert found["lm_eval"] == lm_eval.__version__
    assert (found["limit"], found["seed"], found["chat"], found["groups"]) == (4, 3, False, {})
    assert isinstance(found["tasks"], dict)
    task = found["tasks"]["choose"]
    metric = task.pop("metrics")["acc"]
    assert task == {
        "version": 1.5,
        "num_fewshot": 0,
        "documents": 4,
        "documents_of_the_task": len(QUESTIONS),
    }
    assert metric["higher_is_better"] is True
    assert metric["stderr"] >= 0


def test_the_own_evaluation_of_the_harness_finds_the_same(folder: Path) -> None:
    tested = model("numba")
    manager = TaskManager(include_path=str(folder), include_defaults=False)

    results = lm_eval.evaluate(
        NanochatLM(tested), manager.load(["choose", "perplexity"]), log_samples=False
    )["results"]

    found = run_tasks(tested, ["choose", "perplexity"], include_path=folder)["tasks"]
    assert isinstance(found, dict)
    assert found["choose"]["metrics"]["acc"]["value"] == results["choose"]["acc,none"]
    bits = found["perplexity"]["metrics"]["bits_per_byte"]["value"]
    assert bits == results["perplexity"]["bits_per_byte,none"]


def test_questions_can_be_asked_in_the_chat_template(folder: Path) -> None:
    plain, chat = (
        run_tasks(model("numba"), ["perplexity", "choose"], include_path=folder, chat=chat)
        for chat in (False, True)
    )

    assert chat["chat"] is True
    assert isinstance(plain["tasks"], dict)
    assert plain["tasks"].keys() == chat["tasks"].keys()  # type: ignore[attr-defined]  # a mapping


def test_nothing_of_the_process_is_changed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = _states()
    environment = dict(os.environ)

    run_tasks(model("numba"), ["write"], include_path=folder, limit=1)

    assert _states() == states
    assert dict(os.environ) == environment
    assert capsys.readouterr().out == ""


def _states() -> tuple[object, bytes]:
    """What the generators that are shared in a process will draw."""
    return random.getstate(), pickle.dumps(np.random.get_state())  # noqa: NPY002


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"tasks": []}, "pass a list", id="none"),
        pytest.param({"tasks": "choose"}, "pass a list", id="a string"),
        pytest.param({"limit": 0}, "limit=0: pass 1 or more", id="limit"),
        pytest.param({"num_fewshot": -1}, "num_fewshot=-1: pass 0 or more", id="few-shot"),
        pytest.param({"include_path": "/no/such"}, "is no folder", id="folder"),
        pytest.param({"tasks": ["run"]}, "task run runs programs that the model", id="programs"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    options: dict[str, object], message: str, folder: Path
) -> None:
    asked = {"tasks": ["choose"], "include_path": folder, **options}

    with pytest.raises(InputError, match=message):
        run_tasks(model("numba"), **asked)  # type: ignore[arg-type]  # it is what is refused


@pytest.fixture(scope="module")
def few_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks that stands for that of the harness, whose reading takes ten seconds."""
    path = tmp_path_factory.mktemp("defaults")
    write_tasks(path)
    on_the_hub = "task: far_away\ndataset_path: nobody/nothing\ntest_split: test\noutput_type: loglikelihood_rolling\n"
    (path / "far.yaml").write_text(f"{on_the_hub}doc_to_text: ''\ndoc_to_target: x\n")
    (path / "group.yaml").write_text("group: several\ntask: [choose, run]\n")
    return path


@pytest.fixture
def defaults(few_tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Manager(TaskManager):  # type: ignore[misc]  # lm_eval has no types
        def __init__(self, include_path: str | None = None, **options: object) -> None:  # noqa: ARG002
            assert include_path is None
            super().__init__(include_path=str(few_tasks), include_defaults=False)

    monkeypatch.setattr("nanochat.evaluation.tasks.TaskManager", Manager)


@pytest.mark.usefixtures("defaults")
@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        pytest.param("chose", InputError, r"'chose' \(did you mean choose\?\)", id="unknown"),
        pytest.param("several", InputError, "task run runs programs", id="programs in a group"),
        pytest.param("r*", InputError, "task run runs programs", id="programs by a pattern"),
        pytest.param("far_away", DataError, "far_away cannot be loaded .*network", id="offline"),
    ],
)
def test_tasks_that_cannot_be_had_are_named(
    name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run_tasks(model("numba"), [name])


@pytest.mark.usefixtures("defaults")
def test_patterns_name_several_tasks() -> None:
    found = run_tasks(model("numba"), ["p*", "choos?"], limit=1)["tasks"]

    assert isinstance(found, dict)
    assert found.keys() == {"perplexity", "choose"}


def test_the_command_shows_what_tasks_say(run: Run, folder: Path, tmp_path: Path) -> None:
    result = run("eval", "nanochat-tiny", "--lm-eval", folder / "choose.yaml", "--out", tmp_path)

    assert result.code == 0, result.err
    assert "choose" in result.out
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["lm_eval"]["tasks"]["choose"]["metrics"]["acc"]["value"] >= 0
    assert "| choose |" in (tmp_path / "card.md").read_text()


def test_the_command_without_the_harness_says_how_to_get_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["nanochat.cli.run"], "find_spec", lambda _name: None)

    result = run("eval", "nanochat-tiny", "--lm-eval", "hellaswag", "--out", tmp_path)

    assert result.code == 1
    assert "lm_eval must be installed" in result.err
    assert "[eval]" in result.err
