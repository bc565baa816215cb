"""Many sources at once, each with the answer that it gets alone, and compilers that are missing or too old."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nanochat.errors import BackendError
from nanochat.rust.compiler import ENTRY, Compiler, Failure, Program, Source
from nanochat.rust.diagnostics import findings
from nanochat.rust.toolchain import find_toolchain
from nanochat.sandbox.job import SYSTEM_LIBRARIES, Job
from nanochat.sandbox.sandbox import Sandbox

_CALLS = f'pub fn {ENTRY}() {{ ::std::println!("{{}}", f(1)); }}'
# What each answers: the kind of its first error, or what it prints.
SOURCES = {
    "fn f(a: i32) -> i32 { a }": "1",
    "fn f(a: i32) -> i32 { a +": "parse",
    "fn f(a: i32) -> i32 { b }": "type",
    'fn f(a: i32) -> i32 { "}" }': "type",
    "fn f(a: i32) -> i32 { a + 1 }": "2",
    "fn f(a: i32) -> Vec<i32> { vec![a] }": "type",
    "fn f(a: i32) -> String { let b = String::new(); drop(b); b }": "type",
    "fn f(a: i32) -> i32 { match a { 0 => 1 } }": "type",
    "fn f(a: i8) -> i8 { a + 127 + 200 }": "type",
    "fn f(a: i32) -> i32 { unsafe { a } }": "type",
    "fn f(a: i32) -> i32 { nothing!(a) }": "type",
    'fn f(a: i32) -> String { format!("{") }': "type",
    "fn f(a: i32) -> i32 { 1 /* }": "parse",
    "fn f(a: i32) -> i32 { 'ab' }": "parse",
    "fn f(a: i32) -> u64 { a as u64 }": "1",
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """A sandbox for all tests here."""
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def compiler(sandbox: Sandbox, tmp_path: Path) -> Compiler:
    """The compiler of this machine."""
    return Compiler(find_toolchain(), sandbox, tmp_path)


def kinds(answers: list[Failure | Program]) -> list[str]:
    """The verdict of each failure, "" for programs."""
    return [answer.verdict if isinstance(answer, Failure) else "" for answer in answers]


def test_each_source_gets_the_answer_that_it_gets_alone(compiler: Compiler) -> None:
    sources = [Source(f"{text}\n{_CALLS}", "2021", False) for text in SOURCES]

    together = kinds(compiler.check(sources))
    alone = [kinds(compiler.check([source]))[0] for source in sources]

    assert together == ["" if said.isdecimal() else said for said in SOURCES.values()]
    assert alone == together


def test_a_program_runs_the_function_of_its_source(compiler: Compiler, sandbox: Sandbox) -> None:
    said = [said for said in SOURCES.values() if said.isdecimal()]
    built = compiler.build([Source(f"{text}\n{_CALLS}", "2021", False) for text in SOURCES])

    programs = [answer for answer in built if isinstance(answer, Program)]
    outcomes = sandbox.run_all(
        [Job(command=(p.path, p.argument), readable=SYSTEM_LIBRARIES) for p in programs]
    )

    assert [outcome.output.decode().strip() for outcome in outcomes] == said
    compiler.clear()


def test_nothing_is_left_once_programs_are_cleared(compiler: Compiler, tmp_path: Path) -> None:
    compiler.build([Source(f"{text}\n{_CALLS}", "2021", False) for text in SOURCES])

    compiler.clear()

    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(find_toolchain().release < (1, 85), reason="this rustc knows no edition 2024")
def test_editions_are_compiled_apart(compiler: Compiler) -> None:
    # A keyword since 2024.
    text = f"fn f(gen: i32) -> i32 {{ gen }}\n{_CALLS}"

    found = kinds(compiler.check([Source(text, "2021", False), Source(text, "2024", False)]))

    assert found == ["", "parse"]


def test_what_kills_the_compiler_does_not_harm_its_group(compiler: Compiler) -> None:
    # Before 1.72, no constant took long.
    found_alone = "compile-limit" if find_toolchain().release >= (1, 72) else "type"
    endless = "fn f(a: i32) -> i32 { #[allow(long_running_const_eval)] const N: i32 = { let mut i = 0u64; "
    texts = [endless + "while i < u64::MAX { i += 1; } 1 }; N }", *SOURCES]

    found = kinds(compiler.check([Source(f"{text}\n{_CALLS}", "2021", False) for text in texts]))

    assert found == [
        found_alone,
        *("" if said.isdecimal() else said for said in SOURCES.values()),
    ]


def test_what_is_no_json_is_passed_over() -> None:
    said = b'thread panicked\n{"level": 1}\n[]\n{"level": "error", "message'

    assert list(findings(said)) == []


def test_a_missing_compiler_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(BackendError, match=r"there is no rustc on the PATH.*https://rustup.rs"):
        find_toolchain.__wrapped__()


def test_a_broken_compiler_says_what_it_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "rustc"
    program.write_text("#!/bin/sh\necho 'no default toolchain is set' >&2; exit 1\n")
    program.chmod(0o755)
    (tmp_path / "cc").symlink_to(program)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(BackendError, match="failed: no default toolchain is set"):
        find_toolchain.__wrapped__()


def test_a_compiler_that_is_too_old_for_an_edition_says_which_is_needed() -> None:
    old = replace(find_toolchain(), version="rustc 1.63.0")

    old.require_edition("2021")
    with pytest.raises(
        BackendError, match=r"rustc 1.63.0 does not know edition 2024, which needs rustc 1.85"
    ):
        old.require_edition("2024")
    with pytest.raises(BackendError, match="no edition '2030'"):
        old.require_edition("2030")
