"""Assertions come apart into calls and values, or not at all."""

import pytest

from nanochat.problems.assertions import split_assertions


def split(text: str, returns: str = "i64") -> tuple[tuple[str, str], ...] | None:
    return split_assertions(text, "f", entry="f", returns=returns)


@pytest.mark.parametrize(
    ("text", "returns", "call", "value"),
    [
        ("assert_eq!(f(1), 2);", "u8", "f(1)", "{ let value: ::core::primitive::u8 = 2; value }"),
        ("assert_eq!(2, f(1))", "u8", "f(1)", "{ let value: ::core::primitive::u8 = 2; value }"),
        ("assert!(f(1));", "bool", "f(1)", "{ let value: ::core::primitive::bool = true; value }"),
        ("assert!(! f(1) );", "bool", "f(1)", "{ let value: ::core::primitive::bool = false; value }"),
        ("assert!(f(1) == 2);", "u8", "f(1)", "{ let value: ::core::primitive::u8 = 2; value }"),
        ("assert_eq!(f(1), \"a, b\", \"why\");", "String", "f(1)", '"a, b"'),
        ("assert_eq!(f(')'), vec![\"(\"]);", "Vec<String>", "f(')')", '::std::vec!["("]'),
        (
            "assert_eq!(f(1), [3]);",
            "Vec<u8>",
            "f(1)",
            "{ let value: ::std::vec::Vec<::core::primitive::u8> = ::std::vec![3]; value }",
        ),
        (
            "assert_eq!(f(BTreeMap::<u8, char>::new()), i64::MAX);",
            "i64",
            "f(::std::collections::BTreeMap::<::core::primitive::u8, ::core::primitive::char>::new())",
            "{ let value: ::core::primitive::i64 = ::core::primitive::i64::MAX; value }",
        ),
        (
            "assert_eq!(f(Some(1)), String::from(\"a\"));",
            "String",
            "f(::core::option::Option::Some(1))",
            '{ let value: ::std::string::String = ::std::string::String::from("a"); value }',
        ),
    ],
)  # fmt: skip
def test_an_assertion_is_a_call_and_a_value(text: str, returns: str, call: str, value: str) -> None:
    assert split(text, returns) == ((call, value),)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("let x = 1; assert_eq!(f(x), 2);", id="a variable"),
        pytest.param("assert_ne!(f(1), 2);", id="another macro"),
        pytest.param("assert!((f(1) - 0.5).abs() < 1e-6);", id="a tolerance"),
        pytest.param("assert!(f(1) == 2 && f(2) == 3);", id="two calls"),
        pytest.param("assert_eq!(f(1), f(2));", id="no value"),
        pytest.param("assert_eq!(f(1).len(), 2);", id="more than a call"),
        pytest.param("assert_eq!(g(1), 2);", id="another function"),
        pytest.param("assert!(f(1) != 2);", id="an inequality"),
        pytest.param("assert_eq!(f(1), 2", id="cut off"),
        pytest.param("for x in 0..3 { assert_eq!(f(x), 2); }", id="a loop"),
    ],
)
def test_what_does_more_than_to_compare_a_call_with_a_value_stays_whole(text: str) -> None:
    assert split(text) is None


@pytest.mark.parametrize("returns", ["HashMap<u8, u8>", "Vec<HashSet<u8>>", "Own", "impl Fn()"])
def test_results_that_may_be_printed_in_several_ways_stay_whole(returns: str) -> None:
    assert split("assert_eq!(f(1), g());", returns) is None


def test_comments_and_several_statements_come_apart() -> None:
    text = "// one\nassert_eq!(f(1), 2);\n/* two */ assert_eq!(f(3), 4);\n"

    assert [call for call, _ in split(text) or ()] == ["f(1)", "f(3)"]
