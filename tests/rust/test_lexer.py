"""Rust's tokens, against cases by hand, a lexer that is slow and plain, and rustc."""

from pathlib import Path

import pytest
from hypothesis import given, settings

from nanochat.rust.lexer import BRACKETS, Kind, tokens
from nanochat.rust.toolchain import find_toolchain
from tests.rust.compiler import complaints, rust_files
from tests.rust.pieces import texts
from tests.rust.slow_lexer import slow_tokens

HARD = Path(__file__).with_name("hard.rs").read_text(encoding="utf-8")


def unbalanced(source: str) -> str:
    """Return which bracket has no partner, or which token no end; nothing if there is none."""
    closers = []
    for token in tokens(source):
        if token.kind == "open":
            return f"{token.text[:20]!r} at {token.start}"
        if token.text in BRACKETS:
            closers.append(BRACKETS[token.text])
        elif token.text in BRACKETS.values() and (not closers or closers.pop() != token.text):
            return f"{token.text} at {token.start}"
    return f"no {closers[-1]} at the end" if closers else ""


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        pytest.param(source, kind, id=source[:40].encode("unicode_escape").decode())
        for kind, sources in {
            "comment": ["// {", "/// {", "//", "/* { */", "/**/", "/***/", "/*/*/ */*/", "/*\n/* */ */", "/*/ */"],
            "string": ['""', '"{"', '"\\""', '"\\\\"', '"a\\\n  b"', '"\n"', 'b"{"', 'c"{"', 'r"\\"', 'r#"""#',
                       'r##""#"##', 'br"\\"', 'cr#"""#', '"a"u8', 'r"a"_b', '"é"'],
            "char": ["'a'", "'{'", "'\\''", "'\\\\'", "'\\u{7D}'", "'\"'", "'/'", "'\n'", "' '", "'é'", "'→'", "'_'",
                     "'1'", "b'{'", "b'\\''", "b'\\x7D'", "'a'u8", "'''", "''", "'ab'", "'{ }'", "b'a b'"],
            "lifetime": ["'a", "'_", "'static", "'r", "'r#type", "'é", "'1"],
            "name": ["a", "_", "r", "b", "br", "r#type", "r#_", "größe", "a1", "f64", "rb"],
            "number": ["0", "1u8", "1_000", "0xFF_u8", "0b1010", "0o17i64", "1.0", "1.", "1.5e3", "1e5", "1E-5_f64",
                       "2.0e+3f32", "0e1", "0x", "0b_", "12abc", "1e", "0b12"],
            "punctuation": ["{", "::", "->", "#", "/", ".", "$", "\\", "\0", "`"],
            "open": ['"', '"\\', '"a\\"', "/*", "/* /* */", "'", "'{", "b'", "'\\", 'b"{', 'r"', 'r#"a"', 'r#"a" #',
                     'br##"a"#', "r#", "r##", "br#"],
        }.items()
        for source in sources
    ],
)  # fmt: skip
def test_a_token_is_one_and_of_its_kind(source: str, kind: Kind) -> None:
    assert [*tokens(source)] == [(kind, source, 0)]


@pytest.mark.parametrize(
    "spaced",
    [
        *("1 . . 2", "1 . foo ( )", "1 . _a", "x . 0.1", "0xE + 1", "1e5 . .", "1.0 . x", '1 . r"\\"', '1r "{"'),
        *("'a >", "'a' , 'b", "'a : 'b", "& 'a { }", "b'a' 'b", "'é' 'é", "'r # 1", "'r#a # b", "'ab' a"),
        *('f "{"', 'rb "{"', 'bb "{"', "f 'a'", "r 'a'", "br 'a'", "k # a", 'r#a "{"', '# "a" #', 'r#"a"# #'),
        *("/**/ * /", "- ->", "= >", ":: :", "/ =", "| |", "'( / 1", "r##! x", '"a"b "{"'),
    ],
)  # fmt: skip
def test_a_token_ends_where_the_next_begins(spaced: str) -> None:
    parts = spaced.split(" ")

    assert [token.text for token in tokens("".join(parts))] == parts


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param("#!/usr/bin/x {\nf", ["#!/usr/bin/x {", "f"], id="an interpreter"),
        pytest.param("#!x", ["#!x"], id="an interpreter alone"),
        pytest.param("#!", ["#!"], id="nothing else"),
        pytest.param("#! /* { */ // }\n[a]", ["#", "!", "/* { */", "// }", "[", "a", "]"], id="an attribute"),
        pytest.param("\ufefff", ["f"], id="a byte order mark"),
        pytest.param("\ufeff#!x\nf", ["#!x", "f"], id="both"),
        pytest.param(" #!x", ["#", "!", "x"], id="not at the start"),
        pytest.param("a\u2028b\u200ec\x85d", ["a", "b", "c", "d"], id="white space beyond ASCII"),
        pytest.param(" \n\t ", [], id="white space alone"),
        pytest.param("", [], id="nothing"),
    ],
)  # fmt: skip
def test_the_start_of_a_file_is_read_as_rustc_reads_it(source: str, expected: list[str]) -> None:
    assert [token.text for token in tokens(source)] == expected


@settings(max_examples=2000)
@given(texts())
def test_any_text_has_the_tokens_that_a_plain_lexer_finds(source: str) -> None:
    assert [*tokens(source)] == slow_tokens(source)


def test_every_prefix_of_a_file_has_the_tokens_that_a_plain_lexer_finds() -> None:
    ends = range(0, len(HARD), 7)

    assert all([*tokens(HARD[:end])] == slow_tokens(HARD[:end]) for end in ends)


@pytest.mark.parametrize(("edition", "since"), [("2021", (1, 77)), ("2024", (1, 85))])
def test_rustc_takes_the_hard_cases(edition: str, since: tuple[int, int]) -> None:
    if find_toolchain().release < since:
        pytest.skip("this rustc knows no strings of C, or not this edition")

    assert complaints(HARD, edition=edition) == ""


def test_the_brackets_of_the_hard_cases_are_balanced() -> None:
    assert unbalanced(HARD) == ""


def test_the_brackets_of_every_rust_file_at_hand_are_balanced() -> None:
    files = rust_files()

    found = {path: unbalanced(path.read_text(encoding="utf-8")) for path in files}

    assert files
    assert {path: why for path, why in found.items() if why} == {}
