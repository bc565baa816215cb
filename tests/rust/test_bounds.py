"""What is refused before a compiler sees it, what must be compiled alone, and what rustc makes of either."""

import pytest
from hypothesis import given

from nanochat.rust.bounds import needs_own_crate, refusal
from tests.rust.compiler import complaints
from tests.rust.pieces import texts


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        pytest.param("fn f() {\n unsafe { g() } }", "line 2 has `unsafe`", id="unsafe"),
        pytest.param('extern "C" { }', "line 1 has `extern`", id="extern"),
        pytest.param("extern crate core as std;", "line 1 has `extern`", id="extern crate"),
        pytest.param("\n#![no_main]", "line 2 has an attribute of the whole file", id="inner attribute"),
        pytest.param("# /* */ ! [ allow(x) ]", "an attribute of the whole file", id="inner attribute in pieces"),
        pytest.param('include!("a")', "`include!`", id="include"),
        pytest.param('r#include_str!("a")', "`include_str!`", id="raw name"),
        pytest.param("std::include_bytes! [\"a\"]", "`include_bytes!`", id="include with a path"),
        pytest.param("use std::include_str as x;", "`include_str!`", id="include under another name"),
        pytest.param("use std::{fmt, env as x};", "`env!`", id="env under another name"),
        pytest.param('env!("PATH")', "`env!`", id="env"),
        pytest.param('option_env!{"PATH"}', "`option_env!`", id="option_env"),
        pytest.param('core::arch::asm!("nop")', "`asm!`", id="asm"),
        pytest.param('std::arch::global_asm!("nop")', "`global_asm!`", id="global_asm"),
        pytest.param("#[macro_export] macro_rules! m {}", "`macro_export`", id="macro_export"),
        pytest.param("#[global_allocator] static A: B = B;", "`global_allocator`", id="global_allocator"),
        pytest.param("#[no_mangle] fn f() {}", "`no_mangle`", id="no_mangle"),
        pytest.param('#[export_name = "f"] fn g() {}', "`export_name`", id="export_name"),
        pytest.param('#[cfg_attr(all(), link_section = "a")] static A: u8 = 1;', "`link_section`", id="link_section"),
        pytest.param('#[path = "a.rs"] mod a;', "an attribute with `path`", id="path"),
        pytest.param('#[cfg_attr(all(), path = "a.rs")] mod a;', "an attribute with `path`", id="path on a condition"),
        pytest.param("fn f() {\n\n std::process::exit(0) }", "line 3 has `std::process`", id="process"),
        pytest.param("use std::fs;", "`std::fs`", id="fs"),
        pytest.param("use ::std::net::*;", "`std::net`", id="net"),
        pytest.param("use std :: /* */ os;", "`std::os`", id="os"),
        pytest.param("r#std::r#fs::read(x)", "`std::fs`", id="raw path"),
        pytest.param("m::std::fs::read(x)", "`std::fs`", id="path behind another"),
        pytest.param("use core::net;", "`core::net`", id="core"),
        pytest.param("use std::{fmt, fs};", "`std::fs`", id="group"),
        pytest.param("use std::{\n io::{self},\n process::{exit}};", "line 3 has `std::process`", id="deep group"),
        pytest.param("use {std::{{fs}}};", "`std::fs`", id="groups in groups"),
        pytest.param("use std::*;", "`std::*`", id="everything"),
        pytest.param("use std::{fmt, *};", "`std::*`", id="everything in a group"),
        pytest.param("std::$a::exit(0)", "`std::$`", id="a part that a macro fills in"),
        pytest.param("use std as s;", "`std` under another name", id="another name"),
        pytest.param("use {::std as s};", "`std` under another name", id="another name in a group"),
        pytest.param("use std::{fmt, self as s};", "`std` under another name", id="another name of self"),
        pytest.param("a\n\ud800", "line 2 has half of a character", id="surrogate"),
        pytest.param("a\n\nb\0", "line 3 has a NUL", id="NUL"),
        pytest.param("é" * 32_769, "the source has 65,538 bytes, more than 65,536", id="bytes"),
        pytest.param("\n" * 2_000 + "a", "the source has 2,001 lines, more than 2,000", id="lines"),
        pytest.param("[{(" * 86, "line 1 has brackets more than 256 deep", id="brackets"),
        pytest.param("(]" * 257, "brackets more than 256 deep", id="brackets that do not match"),
        pytest.param("let a =\n" + "!" * 1_001 + "a;", "line 2 has an expression of more", id="operators"),
        pytest.param("f" + "(!!!!!!!!!" * 200, "an expression of more than 1,000 tokens", id="operators in brackets"),
    ],
)  # fmt: skip
def test_what_a_pure_function_never_needs_is_refused_with_the_line(
    source: str, reason: str
) -> None:
    assert reason in (refusal(source) or "")


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("", id="nothing"),
        pytest.param('// unsafe\n/* std::fs */ "extern" r#"include!("a")"# \'a\'', id="comments and strings"),
        pytest.param("/// `std::process::exit`\nfn f() {}", id="documentation"),
        pytest.param("fn f(process: i32, fs: u8) -> i32 { process + net::os }", id="plain names"),
        pytest.param("let r#unsafe = r#extern;", id="names that are no keywords"),
        pytest.param("if include != env { path = asm; }", id="names of macros"),
        pytest.param("let env = 1; let std = 2; (env as u8, std as u8, include as u8)", id="casts"),
        pytest.param("use std::{collections::{self as c, HashMap}, fmt::{self, *}};", id="other modules"),
        pytest.param("use std::collections::*; use std::{io, env, fmt as f};", id="other uses"),
        pytest.param("use core::{self}; use std::io as fs;", id="other names"),
        pytest.param("#[derive(Debug)] #[doc = \"path = a\"] struct S { path: u8 }", id="other attributes"),
        pytest.param("let a = [b]; path = \"a\"", id="path in no attribute"),
        pytest.param("vec![1, 2].len() != 3", id="other macros"),
        pytest.param("x;\n" * 2_000, id="2,000 lines"),
        pytest.param("é" * 32_768, id="65,536 bytes"),
        pytest.param("(" * 256 + ")" * 256, id="256 brackets"),
        pytest.param("() " * 999, id="brackets side by side"),
        pytest.param("a + b + c; " * 900 + "a, " * 900 + "if a { b } " * 900, id="much that is separated"),
    ],
)  # fmt: skip
def test_what_a_pure_function_may_need_is_not_refused(source: str) -> None:
    assert refusal(source) is None


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("fn f() { " + "return " * 990 + "}", id="return"),
        pytest.param("fn f() { let a = " + "||" * 490 + "1; }", id="closures"),
        pytest.param("fn f(x: i32) -> i32 { x" + "?" * 300 + " }", id="question marks"),
        pytest.param("fn f(x: " + "fn() -> " * 240 + "i32) {}", id="types"),
        pytest.param("fn f() -> i32 { " + "(" * 255 + "1" + ")" * 255 + " }", id="parentheses"),
        pytest.param("fn f() -> i32 { " + "{-(" * 127 + "1" + ")}" * 127 + " }", id="blocks"),
    ],
)
def test_what_is_barely_not_refused_does_not_kill_the_compiler(source: str) -> None:
    assert refusal(source) is None
    assert "interrupted by" not in complaints(source)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("fn f() -> i32 { super::g() }", id="a parent"),
        pytest.param("fn f() -> i32 { self::super::g() }", id="a parent of itself"),
        pytest.param("fn f() -> i32 { crate::c0::g() }", id="the crate"),
        pytest.param("pub(crate) fn f() {}", id="for the crate"),
        pytest.param("macro_rules! m { () => {} }", id="a macro"),
        pytest.param("#[macro_use] mod m {}", id="macros of a module"),
        pytest.param("mod c0;", id="a file"),
        pytest.param("extern crate std as c0;", id="another crate"),
        pytest.param('include!("c0.rs");', id="an inclusion"),
        pytest.param('use std::include as vec; vec!("c0.rs");', id="an inclusion under another name"),
        pytest.param("#![allow(unused)]", id="an attribute of the file"),
        pytest.param("#[unknown] fn f() {}", id="an attribute"),
        pytest.param('#[cfg_attr(all(), path = "c0.rs")] fn f() {}', id="an attribute on a condition"),
        pytest.param("struct A; impl PartialEq<A> for i32 {}", id="an implementation"),
        pytest.param("impl A {}", id="methods"),
        pytest.param("#[allow(unused)] impl A {}", id="an implementation behind an attribute"),
        pytest.param("fn f() { match 1 { _ => impl A {} } }", id="what is no Rust"),
        pytest.param("fn f() -> &'static str { module_path!() }", id="its own place"),
        pytest.param("fn f() { std::any::type_name::<A>(); }", id="the name of a type"),
        pytest.param("fn f() { (] }", id="brackets that do not match"),
        pytest.param("fn f() { }}", id="a bracket too many"),
        pytest.param("fn f() { {", id="brackets that are open"),
        pytest.param('fn f() { } "', id="a string that is open"),
        pytest.param("fn f() { } /*", id="a comment that is open"),
    ],
)  # fmt: skip
def test_what_might_reach_out_of_its_module_is_compiled_alone(source: str) -> None:
    assert needs_own_crate(source)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("fn f(x: i32) -> i32 { x + 1 }", id="a function"),
        pytest.param("/// The `crate`.\n#[inline]\npub fn f() { /* super */ \"mod\"; }", id="comments and strings"),
        pytest.param("use std::collections::HashMap; fn f(m: &HashMap<u8, u8>) {}", id="the library"),
        pytest.param("#[derive(Clone, PartialEq)] struct A(i32); enum B { C }", id="types"),
        pytest.param("fn f(g: impl Fn(u8) -> u8, h: &impl Fn()) -> impl Fn() { move || g(1) }", id="impl as a type"),
        pytest.param("fn f<'a>(x: Vec<impl Fn()>, y: &'a mut impl Fn()) -> Box<impl Fn() + 'a> {}", id="impl in types"),
        pytest.param("fn f() { println!(\"{}\", vec![1]); assert!(true); self::g() }", id="macros of the library"),
        pytest.param("trait T { fn f(&self); }", id="a trait"),
    ],
)  # fmt: skip
def test_what_stays_in_its_module_is_compiled_with_others(source: str) -> None:
    assert not needs_own_crate(source)


def test_an_implementation_changes_what_rustc_infers_in_other_modules() -> None:
    inferred = "mod a { pub fn f(x: i32, s: &str) -> bool { x == s.parse().unwrap() } }"
    neighbour = "struct L; impl PartialEq<L> for i32 { fn eq(&self, _: &L) -> bool { true } }"

    assert complaints(inferred) == ""
    assert "E0283" in complaints(f"{inferred} mod b {{ {neighbour} }}")
    assert needs_own_crate(neighbour)


@given(texts(20))
def test_any_text_is_refused_or_not_without_an_error(source: str) -> None:
    assert refusal(source) is None or needs_own_crate(source) in (True, False)
