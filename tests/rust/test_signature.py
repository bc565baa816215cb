"""Signatures of Rust functions, as they are read from the text before the body."""

import pytest

from nanochat.errors import InputError
from nanochat.rust.signature import read_signature

LARGE = """
/// Not the function: `fn other(x: i32) {`.
#[inline]
pub fn first_by<'a, T: Ord + Into<Vec<Vec<T>>>, const N: usize>(
    mut items: &'a [T], // the items
    (low, high): (i32, [u8; { N + 1 }]),
    key: impl Fn(&T) -> i32,
    next: fn(u8) -> u8,
) -> Result<Vec<&'a T>, [i32; (1 < 2) as usize]>
where
    T: Fn(i32) -> i32,
    [(); { N }]: Sized,
{ // here
"""


def test_every_part_of_a_large_signature_is_read() -> None:
    signature = read_signature(LARGE)

    assert signature.name == "first_by"
    assert signature.generics == "'a, T: Ord + Into<Vec<Vec<T>>>, const N: usize"
    assert signature.returns == "Result<Vec<&'a T>, [i32; (1 < 2) as usize]>"
    assert [(parameter.name, parameter.type) for parameter in signature.parameters] == [
        ("items", "&'a [T]"),
        ("(low, high)", "(i32, [u8; { N + 1 }])"),
        ("key", "impl Fn(&T) -> i32"),
        ("next", "fn(u8) -> u8"),
    ]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        pytest.param("", [], id="none"),
        pytest.param("x: i32", [("x", "i32")], id="one"),
        pytest.param("x: (i32, f64),", [("x", "(i32, f64)")], id="a comma behind the last"),
        pytest.param("_: [i32; 3]", [("_", "[i32; 3]")], id="without a name"),
        pytest.param("r#type: u8", [("r#type", "u8")], id="raw name"),
        pytest.param("&x: &i32", [("&x", "&i32")], id="a pattern"),
        pytest.param("m: std::collections::HashMap<String, Vec<i32>>, n: u8",
                     [("m", "std::collections::HashMap<String, Vec<i32>>"), ("n", "u8")], id="a path"),
        pytest.param("f: Box<dyn Fn(i32, i32)->i32>, n: u8",
                     [("f", "Box<dyn Fn(i32, i32)->i32>"), ("n", "u8")], id="an arrow in brackets"),
        pytest.param("self", [("self", "Self")], id="self"),
        pytest.param("mut self", [("self", "Self")], id="mut self"),
        pytest.param("&'a mut self, n: u8", [("self", "&'a mut Self"), ("n", "u8")], id="a reference to self"),
        pytest.param("self: Box<Self>", [("self", "Box<Self>")], id="self with a type"),
    ],
)  # fmt: skip
def test_a_parameter_has_the_name_and_the_type_that_are_written(
    parameters: str, expected: list[tuple[str, str]]
) -> None:
    signature = read_signature(f"fn f({parameters}) {{")

    assert [(parameter.name, parameter.type) for parameter in signature.parameters] == expected


def test_a_function_that_says_nothing_returns_the_empty_tuple() -> None:
    assert read_signature("fn f() {").returns == "()"


def test_the_last_function_is_read_and_not_those_before_it() -> None:
    signature = read_signature("fn a() -> i32 { 1 }\nfn b(f: fn() -> i32) -> u8 {")

    assert (signature.name, signature.returns) == ("b", "u8")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        pytest.param("", "has no function", id="empty"),
        pytest.param("struct Point {", "has no function", id="no function"),
        pytest.param("// fn f() {", "has no function", id="in a comment"),
        pytest.param("fn f(x: i32", "does not end in a signature", id="cut off"),
        pytest.param("fn f(x: i32);", "does not end in a signature", id="without a body"),
        pytest.param("fn f() -> i32 { 1", "does not end in a signature", id="in the body"),
        pytest.param("fn f() -> i32 { if x {", "does not end in a signature", id="a block of the body"),
        pytest.param("fn f() { 1 }\nstruct P {", "does not end in a signature", id="behind a function"),
    ],
)  # fmt: skip
def test_a_prompt_that_opens_no_function_is_an_error_that_says_so(
    prompt: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_signature(prompt)
