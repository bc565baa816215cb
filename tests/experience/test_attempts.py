"""What is learnt from: in what order, and what never is."""

import json
from pathlib import Path

import pytest

from nanochat.errors import InputError
from nanochat.experience.attempts import batches, require_trainable, trainable
from nanochat.problems.sets import load
from tests.experience.learners import problems_file


def test_the_order_follows_from_the_seed(tmp_path: Path) -> None:
    problems = trainable(str(problems_file(tmp_path)))

    def order(seed: int) -> list[list[str]]:
        every = batches(problems, size=3, epochs=2, seed=seed)
        return [[problem.entry for problem in batch.problems] for batch in every]

    first, second, third, fourth = order(0)
    assert order(0) == [first, second, third, fourth]
    assert len({str(order(seed)) for seed in range(9)}) > 5
    assert [len(first), len(second), len(third), len(fourth)] == [3, 1, 3, 1]
    assert {*first, *second} == {*third, *fourth} == {one.entry for one in problems.problems}


def test_a_problem_under_another_name_is_known(tmp_path: Path) -> None:
    measured = next(p for p in load("own").problems if p.split == "held-out")
    copied = problems_file(
        tmp_path,
        f"// family: larger\n{measured.prompt.partition('fn ')[1]}"
        f"{measured.prompt.partition('fn ')[2]}{measured.reference}\n",
    )

    with pytest.raises(InputError, match=f"is {measured.id} of own: leave it out"):
        require_trainable(trainable(str(copied)))


def test_what_ships_may_be_learnt_from() -> None:
    for name in ("own", "templates"):
        require_trainable(trainable(name))


def test_a_set_to_measure_with_says_that_it_is_one(tmp_path: Path) -> None:
    path = tmp_path / "humaneval.jsonl"
    row = {
        "name": "HumanEval_0_f",
        "language": "rs",
        "prompt": "fn f(a: i32) -> i32 {\n",
        "tests": "}\n\nfn main() {\n    assert_eq!(f(1), 1);\n}\n",
        "stop_tokens": ["\n}"],
    }
    path.write_text(json.dumps(row) + "\n")

    with pytest.raises(InputError, match=r"nothing of .* may be learnt from: .* measured with"):
        trainable(str(path))


def test_a_level_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"no problem of level 4 .* choose --level among 0, 1, 2"):
        trainable("templates", levels=(4,))
