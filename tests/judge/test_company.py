"""Verdicts on bodies that nobody wrote: each is the same in a batch as alone, whatever the others are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.judge import judge as judges
from nanochat.judge.judge import Judge, Sample
from nanochat.problems.own import own_problems
from nanochat.problems.problem import Problem
from nanochat.rust.lexer import code_tokens
from tests.judge.completions import LARGER

PROBLEMS = (LARGER, *own_problems()[::15])
# What is put into right bodies: what breaks text, reaches out of a module, or changes what a compiler infers.
PIECES = (
    *(
        "{",
        "}",
        "(",
        ")",
        '"',
        "'",
        "/*",
        "*/",
        "//",
        'r#"',
        '"#',
        ";",
        ",",
        "#",
        "!",
        "::",
        "&",
        "?",
    ),
    *("super::c0::", "crate::", "self::", "$crate", '#[path = "0.rs"] mod m;', 'include!("1.rs");'),
    "use super::*;",
    "#[macro_export] macro_rules! println { () => { 1 } }",
    "macro_rules! vec { ($($t:tt)*) => { 1 } }",
    "struct L; impl PartialEq<L> for i32 { fn eq(&self, _: &L) -> bool { true } }",
    "impl From<u8> for L { fn from(_: u8) -> L { L } }",
    "type i32 = u8;",
    "mod std {}",
    "extern crate core as std;",
    "fn main() {}",
    "pub fn nanochat_entry() {}",
    "const N: usize = [0][1];",
    "static S: [u8; 3] = [0; 4];",
    "#[allow(warnings)]",
    "#![allow(unsafe_code)]",
    "unsafe {}",
    *(
        "return",
        "loop {}",
        "todo!()",
        "panic!()",
        "a",
        "b",
        "0",
        "-1",
        "x as u64",
        "let x = 1;",
        "x?",
    ),
)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """A right body with a few changes."""
    problem: Problem = draw(st.sampled_from(PROBLEMS))
    words = [token.text for token in code_tokens(problem.reference)]
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(words) - 1))
        new = draw(st.lists(st.sampled_from((*PIECES, *words)), max_size=2))
        words[place : place + draw(st.integers(0, 1))] = new
    return Sample(problem, " " + " ".join(words) + " }")


def test_company_changes_no_verdict(request: pytest.FixtureRequest) -> None:
    rounds = 100 if request.config.getoption("--long") else 2
    with Judge() as of_many, Judge() as of_one, pytest.MonkeyPatch.context() as patch:
        # What is refused would not meet the compiler.
        patch.setattr(judges, "refusal", lambda _source: None)

        @settings(max_examples=rounds, deadline=None, derandomize=True)
        @given(st.lists(samples(), min_size=12, max_size=20))
        def check(batch: list[Sample]) -> None:
            together = of_many.judge(batch, seed=0)
            alone = [of_one.judge([sample], seed=0)[0] for sample in batch]

            assert [of.verdict for of in together] == [of.verdict for of in alone]

        check()
