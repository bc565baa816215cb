"""Which bodies are trivial, and which resemble those that are."""

import pytest
from hypothesis import given

from nanochat.errors import InputError
from nanochat.rust.trivial import is_trivial
from tests.rust.pieces import texts

PROMPT = "/// Not `fn other(z: u8) {`.\npub fn f<T: Default>(x: i32, mut name: &str, items: Vec<T>) -> String {"
VALUES = [
    *("0", "1_000u64", "-1", "- 1.5e3", "true", "false", "'a'", "b'a'", '""', '"text"', 'r#"text"#', "()", "None"),
    *("x", "name", "items", "[]", "vec![]", "vec ! ( )", "String::new()", "Vec::new()", "Vec::<i32>::new()"),
    *("Default::default()", "i32::default()", "<T as Default>::default()", "::std::default::Default::default()"),
    *("std::collections::HashMap::<String, (i32, Vec<u8>)>::new()", "Self::new()"),
]  # fmt: skip
FORMS = [
    *("{}", "return {}", "return {};", "({})", "{{ {} }}", "{{ return {}; }}", "&{}", "&&{}", "&mut {}", "*{}"),
    *("({}).clone()", "({}).to_string()", "({}).to_owned().into()", "&({}).to_vec()", "String::from({})"),
    *("({}) as i64", "{} // done", "/* {{ */ {}\n", "return ((({})));"),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", VALUES)
def test_a_value_that_needs_no_thought_is_trivial_in_every_form(value: str, form: str) -> None:
    assert is_trivial(PROMPT, form.format(value))


@pytest.mark.parametrize(
    "body", ["", " ", "\n", "// nothing", "return", "return;", "{}", "{ return; }", "(())"]
)
def test_a_body_that_gives_back_nothing_is_trivial(body: str) -> None:
    assert is_trivial("fn f() {", body)


@pytest.mark.parametrize(
    "body",
    [
        *("x + 1", "x + x", "1 + 2", "!x", "-x", "--1", "x == 0", "x < 1", "x < T::default()", "x - Vec::new()"),
        *("other", "z", "x.abs()", "x.y", "x()", "f(x)", "items[0]", "items.len()", "name.clone() + name", "!true"),
        *("x; x", "0; 1", "let y = x; y", "return x; y", "if x { 0 } else { 1 }", "(1) + (2)", "{ 1 } + { 2 }", "x;"),
        *("(x, 0)", "[0]", "vec![0]", "vec![x]", "Some(x)", "Some(0)", "String::from(x, 0)", "Vec::with_capacity(0)"),
        *("T::new(x)", "T::default().len()", "new()", "default()", "x.clone", "x.clone(0)", "x.clone().len()", "1..2"),
        *("format!(\"\")", "todo!()", "panic!()", "loop {}", "|x| x", "match x { _ => 0 }", "x as i64 + 1", "(x", "x)"),
        *("'a", "# x", "*x = 1", "x?", "return x + 1", "String::new() + name", "<T>::new", "x.into_iter()"),
        *("(1)(2)", "(1).(2)", "{ 1 } { 2 }", "\"a\" \"b\"", "\"open", "a(b) < c::new()", "x.y::new()"),
    ],
)  # fmt: skip
def test_a_body_that_does_something_is_not_trivial(body: str) -> None:
    assert not is_trivial(PROMPT, body)


def test_only_the_parameters_of_the_last_function_count() -> None:
    prompt = "fn g(a: i32) -> i32 { a }\nfn f(b: i32) -> i32 {"

    assert (is_trivial(prompt, "a"), is_trivial(prompt, "b")) == (False, True)


def test_a_method_may_give_back_itself() -> None:
    assert is_trivial("impl A { fn f(&self) -> Self {", "self.clone()")


def test_a_prompt_that_ends_otherwise_is_an_error() -> None:
    with pytest.raises(InputError, match="does not end in a signature"):
        is_trivial("fn f() { 1", "2")


@given(texts(20))
def test_any_body_is_trivial_or_not_without_an_error(body: str) -> None:
    assert is_trivial(PROMPT, body) in (True, False)


@pytest.mark.parametrize(
    ("before", "behind"),
    [("(", ")"), ("{", "}"), ("&", ""), ("return ", ""), ("", ".clone()"), ("String::from(", ")"), ("", " as u8")],
)  # fmt: skip
def test_a_value_may_be_wrapped_ten_thousand_times(before: str, behind: str) -> None:
    wrapped = before * 10_000 + "?" + behind * 10_000

    assert is_trivial(PROMPT, wrapped.replace("?", "x"))
    assert not is_trivial(PROMPT, wrapped.replace("?", "other"))
