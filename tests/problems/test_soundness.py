"""A problem comes with bodies that must pass and bodies that must not."""

import pytest

from nanochat.problems.mutants import is_equivalent, mutants
from nanochat.problems.own import own_problems, read_problems
from nanochat.problems.problem import Problem
from nanochat.problems.soundness import candidates, is_trivial, num_outcomes, trivial_bodies
from nanochat.problems.templates import template_problems


def problem(text: str) -> Problem:
    (read,) = read_problems(text, "test.rs")
    return read


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (" a + b }", [" a - b }"]),
        (" -a }", [" a }"]),
        (" !a && b }", [" a && b }", " !a || b }"]),
        (" a == b }", [" a != b }"]),
        (" (0..n).rev() }", [" (1..n).rev() }", " (0..=n).rev() }", " (0..n) }"]),
        (" a.min(b) }", [" a.max(b) }"]),
        (" pair.0 }", [" pair.1 }"]),
        (" 0xff }", [" 256 }", " 254 }"]),
        (" 2.5 }", [" 3.5 }", " 1.5 }"]),
        (" true }", [" false }"]),
        (" v.sort(); v }", [" v }"]),
        (" sum += n; }", [" sum -= n; }"]),
        (" x.len() }", []),
        (' f::<Vec<u8>>(&a, "1 + 1") // 2\n}', []),
        (" vec![a] }", []),
        (" |a, b| &a }", []),
    ],
)
def test_a_mutant_differs_in_one_place(body: str, changed: list[str]) -> None:
    bodies = [" ".join(mutant.body.split()) for mutant in mutants(body)]

    assert bodies == [" ".join(text.split()) for text in changed]


def test_a_mutant_says_what_it_changed() -> None:
    for one in own_problems():
        for mutant in mutants(one.reference):
            end = mutant.place + len(mutant.after)
            restored = mutant.body[: mutant.place] + mutant.before + mutant.body[end:]
            assert restored == one.reference


def test_every_listed_equivalence_is_a_mutant_s() -> None:
    for one in [*own_problems(), *template_problems()[::30]]:
        for piece in one.equivalent:
            found = [mutant for mutant in mutants(one.reference) if is_equivalent(mutant, [piece])]
            assert found, f"{one.id}: {piece}"


def test_equivalence_is_of_the_place_where_the_change_is() -> None:
    body = " if a < 1 { a } else { a < 2 }"

    right = [mutant.body for mutant in mutants(body) if is_equivalent(mutant, ["a <= 2"])]

    assert right == [" if a < 1 { a } else { a <= 2 }"]


def test_the_trivial_bodies_are_of_the_function_s_type() -> None:
    one = problem("fn f(a: &str, b: u8, c: String) -> String {\n    c + a\n}\n")
    other = problem("fn f(a: &[u8], b: u8) -> Vec<u8> {\n    vec![b, a[0]]\n}\n")

    assert [*trivial_bodies(one)] == ["Default::default()", "String::new()", "a.to_string()", "c"]
    assert [*trivial_bodies(other)] == ["Default::default()", "vec![]", "a.to_vec()"]


def test_few_problems_have_a_trivial_answer() -> None:
    trivial = {one.family for one in own_problems() if is_trivial(one)}

    assert trivial == {
        "as_fraction",
        "code_of",
        "days_in_week",
        "greeting",
        "identity",
        "in_digits",
        "left",
        "line_end",
        "no_bytes",
        "nothing",
    }


def test_the_reference_and_what_is_equivalent_pass_and_all_else_fails() -> None:
    one = problem(
        "// equivalent: a <= b\nfn f(a: u8, b: u8) -> u8 {\n    if a < b { a } else { b }\n}\n"
    )

    passing = [(each.kind, each.passes) for each in candidates(one)]

    assert passing[0] == ("reference", True)
    assert ("equivalent", True) in passing
    assert {kind for kind, passes in passing if not passes} == {"trivial", "endless", "mutant"}


def test_of_a_trivial_problem_only_bodies_without_a_result_must_fail() -> None:
    one = problem("fn f(a: u8) -> u8 {\n    a\n}\n")

    assert [each.body for each in candidates(one) if not each.passes] == [
        " todo!() }",
        " loop {} }",
    ]


@pytest.mark.parametrize(
    ("signature", "least"),
    [("() -> u8", 1), ("(a: u8) -> bool", 2), ("(a: bool) -> Option<u8>", 3)],
)
def test_results_must_differ_as_far_as_their_type_can(signature: str, least: int) -> None:
    assert num_outcomes(problem(f"fn f{signature} {{\n    todo!()\n}}\n")) == least
