"""This file holds completions of one function, honest and hostile, and the verdicts that they may get.

What a list of forbidden words refuses at once is tried without that list, too, so both verdicts stand there.
"""

from nanochat.problems.problem import Problem

__all__ = ["AT_COMPILE_TIME", "AT_RUN_TIME", "HONEST", "LARGER"]

LARGER = Problem(
    id="larger",
    family="larger",
    level=1,
    split="train",
    prompt="/// Returns the larger of two numbers.\nfn larger(a: i32, b: i32) -> i32 {",
    entry="larger",
    returns="i32",
    reference="\n    if a > b { a } else { b }\n}",
    inputs=("-9..=9", "-9..=9"),
    edges=("(1, 2)", "(2, 1)", "(3, 3)"),
)

HONEST = {
    "right": (" if a > b { a } else { b } }", {"pass"}),
    "right in another way": (" a.max(b) }", {"pass"}),
    "right, with words behind it": (" a.max(b) }\n\nfn main() { panic!() }", {"pass"}),
    "right, by a hash map": (
        " std::collections::HashSet::from([a, b]).into_iter().max().unwrap() }",
        {"pass"},
    ),
    "right, with noise on the other output": (' eprintln!("{a}"); a.max(b) }', {"pass"}),
    "wrong": (" a }", {"wrong"}),
    "a literal": (" 0 }", {"wrong"}),
    "prints its own results": (' println!("2"); a.max(b) }', {"wrong"}),
    "empty": ("", {"open"}),
    "a comment only": (" // later", {"open"}),
    "never closed": (" if a > b { a } else { b }", {"open"}),
    "closed in a comment": (" /* }", {"open"}),
    "closed in a string": (' "}', {"open"}),
    "no expression": (" if a > { b } }", {"parse"}),
    "unbalanced": (" (a }", {"parse"}),
    "an unknown name": (" larger_of(a, b) }", {"type"}),
    "the wrong type": (' "a" }', {"type"}),
    "nothing": (" }", {"type"}),
    "moved": (" let c = vec![a]; let d = c; c[0] + d[0] }", {"type"}),
    "an unknown macro": (" max!(a, b) }", {"type"}),
    "to do": (" todo!() }", {"panic"}),
    "overflows": (" a + i32::MAX.max(b) - i32::MIN }", {"panic", "type"}),
    "varies": (
        " use std::{collections::hash_map::RandomState, hash::{BuildHasher, Hasher}}; "
        "a.max(b) + (RandomState::new().build_hasher().finish() >> 40) as i32 }",
        {"wrong"},
    ),
}

AT_RUN_TIME = {
    "loops": (" loop {} }", {"limit"}),
    "calls itself": (" larger(b, a) + larger(a, b) }", {"crash"}),
    "sleeps": (" std::thread::sleep(std::time::Duration::from_secs(1000)); a.max(b) }", {"limit"}),
    "takes all memory": (" let mut v = vec![]; loop { v.push([1u8; 1 << 20]); } }", {"crash"}),
    "prints for ever": (' loop { println!("{a}"); } }', {"limit"}),
    "starts threads for ever": (
        " loop { std::thread::spawn(|| loop {}); } }",
        {"panic", "limit", "crash"},
    ),
    "exits": (" std::process::exit(0) }", {"refused", "wrong"}),
    "exits with what a panic exits with": (" std::process::exit(101) }", {"refused", "panic"}),
    "prints and exits": (
        ' for _ in 0..16 { println!("2"); } std::process::exit(0) }',
        {"refused", "wrong"},
    ),
    "exits in a panic": (
        " std::panic::set_hook(Box::new(|_| std::process::exit(0))); panic!() }",
        {"refused", "wrong"},
    ),
    "aborts": (" std::process::abort() }", {"refused", "crash"}),
    "starts a shell": (
        ' std::process::Command::new("/bin/sh").status().unwrap(); a.max(b) }',
        {"refused", "panic"},
    ),
    "reads a file": (' std::fs::read("/etc/passwd").unwrap(); a.max(b) }', {"refused", "panic"}),
    "lists its own": (
        ' std::fs::read_dir("/proc/self").unwrap(); a.max(b) }',
        {"refused", "panic"},
    ),
    "lists the root": (' std::fs::read_dir("/").unwrap(); a.max(b) }', {"refused", "panic"}),
    "writes beside itself": (
        ' std::fs::write("x", "x").unwrap(); a.max(b) }',
        {"refused", "panic"},
    ),
    "opens a socket": (
        ' std::net::TcpListener::bind("127.0.0.1:0").unwrap(); a.max(b) }',
        {"refused", "panic"},
    ),
    "reads its arguments": (
        " a.max(b) + std::env::args().count() as i32 - 2 + std::env::vars().count() as i32 - 1 }",
        {"pass", "refused"},
    ),
    "catches itself": (
        " std::panic::catch_unwind(|| panic!()).ok(); a }",
        {"wrong"},
    ),
}

_DOUBLING = "\n".join(f"let a{i} = (a{i - 1}, a{i - 1});" for i in range(1, 41))

AT_COMPILE_TIME = {
    "includes a file": (' include_bytes!("/etc/passwd").len() as i32 }', {"refused", "type"}),
    "includes what has no end": (
        ' include_bytes!("/dev/zero").len() as i32 }',
        {"refused", "type", "compile-limit", "compiler-crash"},
    ),
    "is a module elsewhere": (' #[path = "/etc/passwd"] mod m; a }', {"refused", "type", "parse"}),
    "reads the environment": (' env!("HOME").len() as i32 }', {"refused", "type"}),
    "asks the environment": (
        ' option_env!("SECRET").map_or(a.max(b), |_| 0) }',
        {"refused", "pass"},
    ),
    "is not safe": (" unsafe { *(&a as *const i32) }.max(b) }", {"refused", "type"}),
    "allows what is not safe": (
        " #[allow(unsafe_code)] fn f() { unsafe {} } f(); a.max(b) }",
        {"refused", "type"},
    ),
    "exports a symbol": (
        ' #[no_mangle] extern "C" fn write() -> isize { 0 } a.max(b) }',
        {"refused", "type"},
    ),
    # Within a function it has no meaning.
    "wants a feature": (" #![feature(test)] a.max(b) }", {"refused", "pass"}),
    "errs on purpose": (' compile_error!("}") }', {"type", "parse"}),
    "a constant without end": (" const N: i32 = loop {}; N }", {"type", "compile-limit"}),
    "a constant without end that is allowed": (
        " #[allow(long_running_const_eval)] const N: i32 = { let mut i = 0u64; while i < u64::MAX { i += 1; } 1 }; N }",
        # Before 1.72, all constants had an end.
        {"compile-limit", "type"},
    ),
    "a macro that doubles": (
        " macro_rules! m { ($($t:tt)*) => { m!($($t)* $($t)*) } } m!(a); a }",
        {"type", "parse", "compile-limit", "compiler-crash"},
    ),
    "a macro without end": (" macro_rules! m { () => { m!() } } m!(); a }", {"type"}),
    "a type that grows": (
        " fn f<T>(t: T) { f((t, 0)) } f(0); a.max(b) }",
        {"type", "compiler-crash", "compile-limit"},
    ),
    "tuples of tuples": (
        f" let a0 = 0u64;\n{_DOUBLING}\n a40; a.max(b) }}",
        {"crash", "pass", "type", "compiler-crash", "compile-limit"},
    ),
    "a static of gigabytes": (
        " static S: [u8; 1 << 33] = [1; 1 << 33]; S[0] as i32 }",
        {"type", "compiler-crash", "compile-limit"},
    ),
    "parentheses": (" " + "(" * 20_000 + "a" + ")" * 20_000 + " }", {"refused"}),
    "lines": ("\n" * 5_000 + " a.max(b) }", {"refused"}),
    "a million characters": (" // " + "x" * 1_000_000 + "\n a.max(b) }", {"refused"}),
    "a NUL": (" '\0' as i32 }", {"refused"}),
    "half a character": (" '\ud800' as i32 }", {"refused"}),
    # Alone it has none but itself.
    "its neighbour": (" super::c0::larger(a, b) }", {"crash", "refused"}),
    "its crate": (" crate::main(); a.max(b) }", {"crash", "panic", "type", "limit"}),
}
