"""Calls depend on the problem and the seed only, and hold what tells right bodies from wrong ones."""

import hashlib
import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.errors import InputError
from nanochat.problems.inputs import draw_arguments
from nanochat.problems.own import own_problems, read_problems
from nanochat.problems.problem import Problem
from nanochat.problems.strategy import parse_strategy
from nanochat.problems.stream import Stream
from nanochat.problems.templates import template_problems
from nanochat.problems.types import parse_type
from nanochat.problems.values import Value, read_value, written


def drawn(of: str, strategy: str, count: int = 200) -> list[Value]:
    arguments = draw_arguments(
        [parse_type(of)], [parse_strategy(strategy)], Stream("test", strategy)
    )
    return [value for (value,) in itertools.islice(arguments, count)]


def problem(signature: str, *directives: str) -> Problem:
    lines = "".join(f"// {line}\n" for line in directives)
    (read,) = read_problems(f"{lines}fn f{signature} {{\n    todo!()\n}}\n", "test.rs")
    return read


@pytest.mark.parametrize(("seed", "digest"), [(0, "df46c94f392eb54f"), (1, "b4c4c109548ae572")])
def test_the_calls_of_a_seed_are_the_same_everywhere(seed: int, digest: str) -> None:
    problems = [*own_problems(), *template_problems()[::50]]

    text = "\n".join(call for problem in problems for call in problem.calls(seed))

    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


def test_a_problem_has_sixteen_calls_or_as_many_as_there_are() -> None:
    counts = {len(problem.calls(0)) for problem in own_problems() if "i32" in problem.prompt}

    assert 16 in counts
    assert len(problem("(a: bool, b: bool) -> bool").calls(0)) == 4
    assert problem("() -> u8").calls(0) == ("f()",)


def test_no_call_is_made_twice() -> None:
    for one in own_problems():
        calls = one.calls(3)
        assert len({*calls}) == len(calls)


def test_edges_come_first() -> None:
    calls = problem("(a: i8, t: &str) -> i8", 'edges: (1, "x; y"); (-1, "")').calls(7)

    assert calls[:2] == ('f(1_i8, "x; y")', 'f(-1_i8, "")')


def test_paths_and_numbers_mean_the_same_whatever_a_module_defines() -> None:
    words = {
        word
        for one in [*own_problems(), *template_problems()[::20]]
        for call in one.calls(0)
        for word in re.findall(r"(?<![\w:])[a-zA-Z]\w*(?=::|!)", re.sub(r'"[^"]*"', "", call))
    }

    assert words == set()


@pytest.mark.parametrize("of", ["i8", "u8", "i64", "u128", "usize"])
def test_numbers_reach_the_ends_of_their_type_and_zero(of: str) -> None:
    numbers = {*drawn(of, "")}

    assert {0, *parse_strategy("").range_of(of)} <= numbers


@pytest.mark.parametrize(
    ("strategy", "of", "holds"),
    [
        ("-3..=4", "i32", lambda n: -3 <= n <= 4),
        ("-3..=4", "u8", lambda n: 0 <= n <= 4),
        ("half", "i8", lambda n: -128 <= n + n <= 127),
        ("root", "u64", lambda n: n * n < 2**64),
        ("root", "i8", lambda n: -128 <= n * n <= 127),
        ("-2..=2", "f64", lambda n: -2 <= n <= 2 and (n * 4).is_integer()),
        ("'a'..='c'", "char", lambda c: c in "abc"),
        ('one of "n={7..=9}" "x"', "&str", lambda t: t in ("n=7", "n=8", "n=9", "x")),
        ('made of "ab" "c" of length 1..=3', "String", lambda t: 0 < len(t.replace("ab", "c")) < 4),
        ("sorted 0..=9", "&[u8]", lambda v: [*v] == sorted(v)),
        ("sorted distinct 0..=9", "(u8, u8)", lambda v: v[0] < v[1]),
        ("rectangular of length 0..=3", "&[Vec<u8>]", lambda v: len({len(row) for row in v}) < 2),
        ('one of "k" with 5..=6', "&HashMap<String, u8>", lambda v: {*v} <= {("k", 5), ("k", 6)}),
        ("words", "&str", lambda t: re.fullmatch(r"[a-z ]*", t)),
    ],
)
def test_a_strategy_is_kept_to(strategy: str, of: str, holds: object) -> None:
    assert callable(holds)
    assert all(holds(value) for value in drawn(of, strategy))


def test_texts_have_margins_capitals_and_characters_beyond_ascii() -> None:
    texts = [str(text) for text in drawn("&str", "", 16)]

    assert "" in texts
    assert any(text != text.strip() for text in texts)
    assert any(text != text.lower() for text in texts)
    assert not all(text.isascii() for text in texts)


def test_arguments_of_one_call_resemble_each_other_now_and_then() -> None:
    types = [parse_type("&[i64]"), parse_type("i64")]
    pairs = itertools.islice(draw_arguments(types, [parse_strategy("")] * 2, Stream("pairs")), 100)

    found = [number in numbers for numbers, number in pairs if isinstance(numbers, tuple)]

    assert 10 < sum(found) < 60


@given(st.integers(1, 2**70), st.integers(0, 99))
def test_a_stream_stays_below_its_bound(count: int, seed: int) -> None:
    assert 0 <= Stream("below", seed).below(count) < count


@pytest.mark.parametrize(
    ("of", "text", "rust"),
    [
        ("Option<u8>", "Some(3)", "::core::option::Option::Some(3_u8)"),
        ("(i8, &str)", '(-3, "a\\n")', '(-3_i8, "a\\u{a}")'),
        ("&[String]", '["x"]', '&[::std::string::String::from("x")]'),
        ("char", "'\\''", "'\\u{27}'"),
        ("Vec<f64>", "[1, -0.5]", "::std::vec![1.0_f64, -0.5_f64]"),
        ("[bool; 2]", "[true, false]", "[true, false]"),
        ("&BTreeMap<u8, char>", "[(1, 'a')]", "&::std::collections::BTreeMap::from([(1_u8, 'a')])"),
        ("&mut Vec<u8>", "[]", "&mut ::std::vec![]"),
        ("(u8,)", "(1)", "(1_u8,)"),
    ],
)
def test_a_value_is_read_and_written_as_its_type_wants(of: str, text: str, rust: str) -> None:
    kind = parse_type(of)

    assert written(read_value(text, kind), kind) == rust


@pytest.mark.parametrize(
    ("of", "text"),
    [("u8", "256"), ("u8", "-1"), ("char", '"a"'), ("bool", "yes"), ("&[u8]", "[1"), ("u8", "1 2")],
)
def test_a_value_of_another_type_is_refused(of: str, text: str) -> None:
    with pytest.raises(InputError, match="where one is expected"):
        read_value(text, parse_type(of))
