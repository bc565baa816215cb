"""Learning from attempts: whose lessons count, what an interruption changes, and what is never learnt from."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanochat.errors import InputError
from nanochat.evaluation.completing import Drawing
from nanochat.experience.attempts import trainable
from nanochat.experience.learning import Learning, learn, learn_references
from nanochat.experience.library import Library
from nanochat.judge.judge import Judge
from nanochat.problems.sets import ProblemSet, load
from tests.experience.learners import coin, problems_file

DRAWING = Drawing(num_samples=8, temperature=1, top_p=1, max_tokens=8)
LEARNING = Learning(drawing=DRAWING, batch_size=2, epochs=2, budget=400)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge() as one:
        yield one


@pytest.fixture
def problems(tmp_path: Path) -> ProblemSet:
    return trainable(str(problems_file(tmp_path)))


def learnt(
    problems: ProblemSet,
    judge: Judge,
    path: Path,
    learning: Learning = LEARNING,
) -> Library:
    return learn(coin(), problems, learning, judge, path, progress=lambda *_: None)


def numbers(library: Library, name: str) -> list[Any]:
    return [batch[name] for batch in library.batches]


def test_examples_are_attempts_that_passed_and_one_for_a_problem(
    problems: ProblemSet, judge: Judge, tmp_path: Path
) -> None:
    library = learnt(problems, judge, tmp_path / "a.json")

    assert {one.problem: one.body for one in library.examples} == {
        "few/nil": " 0}",
        "few/single": " 1}",
        "few/naught": " 0}",
    }
    assert sum(numbers(library, "examples")) == 3
    # In the second epoch, only what has no example is tried.
    assert sum(numbers(library, "attempts")) == 5 * 8
    assert library.learnt_from["source"] == "attempts"


def test_references_are_examples_that_say_so(problems: ProblemSet, tmp_path: Path) -> None:
    path = tmp_path / "a.json"

    library = learn_references(problems, path, budget=9)

    assert len(library.examples) == 4
    assert library.learnt_from["source"] == "references"
    assert json.loads(path.read_text())["learnt_from"]["problems_sha256"] == problems.identity
    assert learn_references(problems, path, budget=9) == library


@pytest.mark.parametrize("split", ["held-out", "other-types", "other-names"])
def test_what_is_measured_with_is_not_learnt_from(judge: Judge, tmp_path: Path, split: Any) -> None:
    measured = load("templates").select(splits=(split,))
    few = ProblemSet("mine", measured.problems[:2])

    with pytest.raises(InputError, match="learnt from other problems than it is measured with"):
        learnt(few, judge, tmp_path / "a.json")
    with pytest.raises(InputError, match="learnt from other problems than it is measured with"):
        learn_references(few, tmp_path / "a.json", budget=9)

    assert not (tmp_path / "a.json").exists()


def test_a_run_that_is_interrupted_ends_as_one_that_is_not(
    problems: ProblemSet, judge: Judge, tmp_path: Path
) -> None:
    short = replace(LEARNING, epochs=1)
    path = tmp_path / "cut.json"
    learnt(problems, judge, tmp_path / "whole.json")

    learnt(problems, judge, path, short)
    learnt(problems, judge, path)

    assert path.read_bytes() == (tmp_path / "whole.json").read_bytes()
