"""A template is one function under many names, for many types; what is held out of them is so by type or by name."""

from collections import Counter

import pytest

from nanochat.errors import FormatError
from nanochat.problems.templates import read_templates, template_problems

LARGER = """
// list whole: i8 u16 | i64

/// Returns the larger one.
// types: whole
// arguments: (a, b) | (p, q)
// names: larger max | bigger
// inputs: a in half, b in half
// edges: (1, 1); (-1, 200)
// equivalent: a >= b
fn larger(a: T, b: T) -> T {
    if a > b { a } else { b }
}
"""


def test_there_are_thousands_of_prompts_of_many_families() -> None:
    problems = template_problems()

    assert len(problems) >= 5000
    assert len({problem.family for problem in problems}) >= 38
    assert {problem.level for problem in problems} == {0, 1, 2}
    assert min(Counter(problem.split for problem in problems).values()) >= 500


def test_an_instance_is_the_template_with_other_words() -> None:
    problems = {problem.id: problem for problem in read_templates(LARGER, "test.rs")}

    problem = problems["templates/larger/bigger(a, b)/u16"]
    other = problems["templates/larger/max(p, q)/i64"]

    assert problem.prompt == "/// Returns the larger one.\nfn bigger(a: u16, b: u16) -> u16 {"
    assert other.reference == "\n    if p > q { p } else { q }\n}"
    assert other.equivalent == ("p >= q",)
    assert (other.returns, other.family, other.entry) == ("i64", "larger", "max")


def test_held_out_are_other_types_with_other_arguments_or_other_names() -> None:
    splits = {problem.id: problem.split for problem in read_templates(LARGER, "test.rs")}

    assert splits == {
        "templates/larger/larger(a, b)/i8": "train",
        "templates/larger/larger(a, b)/u16": "train",
        "templates/larger/max(a, b)/i8": "train",
        "templates/larger/max(a, b)/u16": "train",
        "templates/larger/larger(p, q)/i64": "other-types",
        "templates/larger/max(p, q)/i64": "other-types",
        "templates/larger/bigger(a, b)/i8": "other-names",
        "templates/larger/bigger(a, b)/u16": "other-names",
    }


def test_edges_that_a_type_does_not_hold_are_left_out() -> None:
    edges = {problem.id: problem.edges for problem in read_templates(LARGER, "test.rs")}

    assert edges["templates/larger/max(a, b)/i8"] == ("(1, 1)",)
    assert edges["templates/larger/max(p, q)/i64"] == ("(1, 1)", "(-1, 200)")


def test_all_instances_of_a_family_that_is_held_out_are_so() -> None:
    held_out = {problem.family for problem in template_problems() if problem.split == "held-out"}

    splits = {problem.split for problem in template_problems() if problem.family in held_out}

    assert held_out
    assert splits == {"held-out"}


def test_no_type_and_no_arguments_of_the_second_groups_are_trained_on() -> None:
    texts = [problem.id for problem in template_problems() if problem.split == "train"]

    assert not [text for text in texts if text.endswith(("/i16", "/u16", "/usize", "/i128"))]
    assert not [text for text in texts if "(p, q)" in text or "(one, other)" in text]


def test_words_that_methods_and_fields_share_with_arguments_stay() -> None:
    text = "// arguments: n\nfn largest(max: &[u8]) -> u8 {\n    max.iter().max().unwrap_or(&0) + 0\n}\n"

    (problem,) = read_templates(text, "test.rs")

    assert problem.reference == "\n    n.iter().max().unwrap_or(&0) + 0\n}"


def test_names_for_another_number_of_arguments_are_refused() -> None:
    text = "// arguments: a\nfn f(a: u8, b: u8) -> u8 {\n    a + b\n}\n"

    with pytest.raises(FormatError, match=r"test.rs:2: 2 arguments have 1 names: name each"):
        list(read_templates(text, "test.rs"))
