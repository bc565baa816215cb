"""The project's own problems can be read, are plain Rust, and are held out by family and by name."""

import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from nanochat.errors import FormatError
from nanochat.problems.own import own_problems, own_text, read_problems
from nanochat.problems.problem import Problem
from nanochat.problems.templates import template_problems
from nanochat.rust.bounds import needs_own_crate, refusal
from nanochat.rust.completion import end_of_function
from tests.rust.compiler import complaints

ROOT = Path(__file__).parents[2]
FUNCTION = "fn count(m: &HashMap<u8, u8>) -> usize {\n    m.len()\n}\n"
FILES = sorted((ROOT / "nanochat/problems/own").glob("*.rs"))


def all_problems() -> list[Problem]:
    return [*own_problems(), *template_problems()]


def test_each_level_has_forty_problems_or_more() -> None:
    levels = Counter(problem.level for problem in own_problems())

    assert sorted(levels) == [0, 1, 2, 3, 4]
    assert min(levels.values()) >= 40
    assert levels.total() >= 200


def test_a_prompt_ends_with_the_brace_that_opens_the_body() -> None:
    for problem in all_problems():
        assert problem.prompt.endswith(" {"), problem.id
        assert problem.reference.endswith("}"), problem.id
        assert problem.prompt.startswith(("///", "use ")), problem.id


def test_a_body_ends_where_completions_do_and_is_not_refused() -> None:
    for problem in [*own_problems(), *template_problems()[::20]]:
        source = problem.prompt + problem.reference
        longer = problem.reference + "\n\nfn next() {}\n"
        assert end_of_function(problem.prompt, longer) == len(problem.reference), problem.id
        assert refusal(source) is None, problem.id
        assert not needs_own_crate(source), problem.id


def test_ids_and_prompts_are_of_one_problem_each() -> None:
    problems = all_problems()

    assert len({problem.id for problem in problems}) == len(problems)
    assert len({problem.prompt for problem in problems}) == len(problems)


def test_a_function_s_name_is_in_one_family() -> None:
    families = defaultdict(set)
    for problem in all_problems():
        families[problem.entry].add(problem.family)

    assert {name: found for name, found in families.items() if len(found) > 1} == {}


def test_no_family_and_no_name_is_both_trained_on_and_held_out() -> None:
    names = defaultdict(set)
    families = defaultdict(set)
    for problem in all_problems():
        names[problem.split].add(problem.entry)
        families[problem.split].add(problem.family)

    assert not names["train"] & (names["held-out"] | names["other-names"])
    assert not families["train"] & families["held-out"]
    assert families["other-types"] | families["other-names"] <= families["train"]


def test_a_fifth_to_a_third_of_each_level_is_held_out() -> None:
    held_out = Counter(problem.level for problem in own_problems() if problem.split == "held-out")
    levels = Counter(problem.level for problem in own_problems())

    assert all(levels[level] / 5.2 < held_out[level] < levels[level] / 3 for level in levels)


def test_imports_are_in_the_prompts_of_those_functions_that_need_them() -> None:
    text = "use std::collections::{BTreeMap, HashMap};\n\n/// Counts.\n" + FUNCTION

    (problem,) = read_problems(text, "mine.rs")

    assert problem.prompt == (
        "use std::collections::HashMap;\n\n/// Counts.\nfn count(m: &HashMap<u8, u8>) -> usize {"
    )
    assert problem.reference == "\n    m.len()\n}"
    assert problem.id == "mine/count"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        pytest.param(
            "// input: n in 0..=1", "mine.rs:2: 'input' is no directive.*mean inputs", id="word"
        ),
        pytest.param("// inputs: m in 0..=1", "mine.rs:2: no argument is named 'm'", id="name"),
        pytest.param(
            "// inputs: n in 0..1", "mine.rs:2: '0..1' says nothing about values", id="range"
        ),
        pytest.param("// inputs: n in ordered 0..=1", "from 'ordered' on", id="strategy"),
        pytest.param("// inputs: n in 300..=400", "mine.rs:2: no u8 is in", id="type"),
        pytest.param("// level: hard", "mine.rs:2: .hard. is no level: use 0 to 4", id="level"),
        pytest.param("// edges: 300", "mine.rs:2: .300. holds no u8", id="edge"),
    ],
)
def test_a_directive_that_cannot_be_understood_is_named_with_its_place(
    lines: str, message: str
) -> None:
    text = f"{lines}\nfn f(n: u8) -> u8 {{\n    n\n}}\n"

    with pytest.raises(FormatError, match=message):
        list(read_problems(text, "mine.rs"))


def test_a_function_that_is_not_closed_is_named_with_its_place() -> None:
    with pytest.raises(FormatError, match=r"mine\.rs:3: what begins with fn is not closed"):
        list(read_problems("\n\nfn f() {\n    1\n", "mine.rs"))


def test_lines_are_short_enough_to_read() -> None:
    lines = [line for file in FILES for line in file.read_text(encoding="utf-8").splitlines()]

    assert max(map(len, lines)) <= 120


def test_every_file_compiles() -> None:
    modules = [f"mod {file.stem} {{\n{file.read_text(encoding='utf-8')}\n}}\n" for file in FILES]

    assert complaints("".join(modules)) == ""


def test_every_template_compiles_for_every_type() -> None:
    instances = {(one.family, one.id.rpartition("/")[2]): one for one in template_problems()}
    modules = [
        f"mod m{number} {{\n{one.prompt}{one.reference}\n}}\n"
        for number, one in enumerate(instances.values())
    ]

    assert complaints("".join(modules)) == ""


def test_the_files_are_those_that_the_package_reads() -> None:
    assert [file.read_text(encoding="utf-8") for file in FILES] == [
        own_text(file.name) for file in FILES
    ]


def test_no_example_of_a_description_is_a_test_s_input() -> None:
    for problem in own_problems():
        lines = [line for line in problem.prompt.splitlines() if line.startswith("///")]
        examples = re.findall("such as `([^`]+)`", " ".join(lines))
        calls = " ".join(call for seed in range(4) for call in problem.calls(seed))
        assert not [example for example in examples if f'("{example}"' in calls], problem.id
