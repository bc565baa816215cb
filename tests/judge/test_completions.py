"""Honest and hostile completions before the judge, many at once and one by one, and without its cheap first sieve."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from nanochat.errors import BackendError, DataError
from nanochat.judge import judge as judges
from nanochat.judge.judge import Judge, Judgement, Sample
from nanochat.rust import compiler as compilers
from nanochat.sandbox.layers import Kind
from tests.judge.completions import AT_COMPILE_TIME, AT_RUN_TIME, HONEST, LARGER

ALL = {**HONEST, **AT_RUN_TIME, **AT_COMPILE_TIME}
# What is waited for, again and again.
SHORT = replace(judges.LIMITS, cpu_seconds=0.3, wall_seconds=2, memory_bytes=2**27)
COMPILERS = replace(compilers._LIMITS, cpu_seconds=0.7)
# Those at which a compiler is stopped.
SLOW = {"a constant without end that is allowed", "includes what has no end", "tuples of tuples"}


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def judge(request: pytest.FixtureRequest) -> Iterator[Judge]:
    """A judge with each kind of sandbox."""
    kind: Kind = request.param
    with pytest.MonkeyPatch.context() as patch, Judge(kind, limits=SHORT) as judge:
        patch.setattr(compilers, "_LIMITS", COMPILERS)
        yield judge


def verdicts(judge: Judge, names: list[str]) -> dict[str, Judgement]:
    """What the judge finds of the completions of these names."""
    samples = [Sample(LARGER, ALL[name][0]) for name in names]
    return dict(zip(names, judge.judge(samples, seed=0), strict=True))


def test_every_completion_gets_its_verdict(judge: Judge) -> None:
    found = verdicts(judge, list(ALL))

    other = {name: of for name, of in found.items() if of.verdict not in ALL[name][1]}
    assert other == {}


def test_what_needs_no_thought_is_trivial_and_so_is_what_always_returns_the_same() -> None:
    bodies = [" a }", " 1 + 1 }", " a - a }", " b.min(a) }", " a.max(b) }", " 1 + }"]
    with Judge() as judge:
        found = judge.judge([Sample(LARGER, body) for body in bodies], seed=0)

    assert [one.trivial for one in found] == [True, True, True, False, False, False]


def test_the_sieve_is_not_what_protects(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "refusal", lambda _source: None)
    names = [name for name, (_text, may) in ALL.items() if "refused" in may and len(may) > 1]

    found = verdicts(judge, names)

    other = {name: of for name, of in found.items() if of.verdict not in ALL[name][1]}
    assert other == {}


def test_a_verdict_does_not_depend_on_the_company(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "_LIMITS", COMPILERS)
    # Programs run apart in any case, and what is open or refused meets no other.
    of_compilers = {"parse", "type", "compile-limit", "compiler-crash"}
    names = [n for n, (_text, may) in ALL.items() if may & of_compilers and n not in SLOW]
    random.Random(0).shuffle(names)
    with Judge() as judge:
        together = {name: found.verdict for name, found in verdicts(judge, names).items()}
    with Judge() as judge:
        alone = {name: verdicts(judge, [name])[name].verdict for name in names}

    assert alone == together


def test_equal_completions_are_judged_once_and_remembered() -> None:
    with Judge() as judge:
        first = judge.judge([Sample(LARGER, " a.max(b) }")] * 5, seed=0)
        judge._sandbox.close()

        again = judge.judge([Sample(LARGER, " a.max(b) } and more")], seed=0)

    assert {found.verdict for found in [*first, *again]} == {"pass"}


def test_what_varies_is_counted() -> None:
    with Judge() as judge:
        judge.judge([Sample(LARGER, HONEST["varies"][0])], seed=0)
        judge.judge([Sample(LARGER, HONEST["right, by a hash map"][0])], seed=0)

        # It may be wrong by chance at once.
        assert judge.varied <= 1


def test_messages_hold_nothing_that_a_terminal_obeys() -> None:
    with Judge() as judge:
        (found,) = judge.judge([Sample(LARGER, ' panic!("\\u{1b}[31m\\u{202e}") }')], seed=0)

    assert found.verdict == "panic"
    assert found.message == "\\u{1b}[31m\\u{202e}"


@pytest.mark.parametrize(
    "body",
    [
        " if larger as usize % 8192 < 4096 { a } else { b } }",
        ' let s = format!("{:?}", larger as fn(i32, i32) -> i32); s.len() as i32 }',
        ' let f: fn(i32, i32) -> i32 = larger; format!("{f:?}").len() }',
        ' format!("{:#20p}", &a).len() }',
        " [a, b].as_ptr_range().start.addr() }",
        " { &raw const a }.addr() }",
    ],
)
def test_what_asks_for_an_address_may_vary(body: str) -> None:
    assert judges._Text(Sample(LARGER, body)).may_vary


def test_what_computes_does_not_vary() -> None:
    assert not judges._Text(Sample(LARGER, " // as\n if a > b { a } else { b } }")).may_vary


def test_threads_share_a_judge() -> None:
    batches = [[Sample(LARGER, f" a.max(b) + {i} - {i} }}") for i in (n, n + 1)] for n in range(6)]
    with Judge() as judge, ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda batch: judge.judge(batch, seed=0), batches))

    assert {of.verdict for some in found for of in some} == {"pass"}


def test_problems_of_one_name_are_told_apart() -> None:
    smaller = replace(LARGER, reference=" a.min(b) }")
    with Judge() as judge:
        found = judge.judge([Sample(p, " a.max(b) }") for p in (LARGER, smaller)], seed=0)
        again = judge.judge([Sample(p, " a.min(b) }") for p in (LARGER, smaller)], seed=0)

    assert [of.verdict for of in [*found, *again]] == ["pass", "wrong", "wrong", "pass"]


def test_what_is_remembered_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_REMEMBERED", "_REMEMBERED_KEYS", "_AT_ONCE"):
        monkeypatch.setattr(judges, name, 2)
    with Judge() as judge:
        found = [
            judge.judge([Sample(LARGER, f" a.max(b) + {i} }}") for i in range(3)], seed=seed)
            for seed in range(3)
        ]

        assert [[of.verdict for of in some] for some in found] == [["pass", "wrong", "wrong"]] * 3
        assert len(judge._known) == 2
        assert len(judge._keys) == 2


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("\nthread 'main' panicked at 0.rs:1:2:\nit's 'so'\nnote: run with", "it's 'so'"),
        ("thread 'main' panicked at 'it's 'so'', 0.rs:1:2\nnote: run with", "it's 'so'"),
        ("thread 'main' panicked at 'one\ntwo', 0.rs:1:2\nnote: run with", "one"),
        ("", ""),
    ],
    ids=["since 1.73", "before", "many lines before", "nothing"],
)
def test_a_panic_says_what_it_is_about(said: str, message: str) -> None:
    assert judges._panic(said) == message


def test_a_problem_whose_reference_fails_is_named() -> None:
    broken = replace(LARGER, id="broken", reference=" todo!() }")
    with (
        Judge() as judge,
        pytest.raises(DataError, match=r"problem broken cannot be used.*\(panic: not yet"),
    ):
        judge.judge([Sample(broken, " a }")], seed=0)


def test_a_problem_without_tests_or_reference_is_named() -> None:
    bare = replace(LARGER, id="bare", reference="")
    with Judge() as judge, pytest.raises(DataError, match="problem bare has neither"):
        judge.judge([Sample(bare, " a }")], seed=0)


def test_an_edition_that_the_compiler_does_not_know_is_named() -> None:
    later = replace(LARGER, edition="2099")
    with Judge() as judge, pytest.raises(BackendError, match="no edition '2099'"):
        judge.judge([Sample(later, " a }")], seed=0)


def test_calls_with_their_answers_need_no_reference() -> None:
    asserted = replace(
        LARGER, reference="", asserted=(("larger(1, 2)", "2"), ("larger(4, 3)", "4"))
    )
    with Judge() as judge:
        found = judge.judge([Sample(asserted, body) for body in (" a.max(b) }", " b }")], seed=0)

    assert [of.verdict for of in found] == ["pass", "wrong"]


def test_tests_that_do_not_come_apart_are_run_to_their_end() -> None:
    whole = replace(LARGER, reference="", tests="fn main() { assert!(larger(1, 2) == 2); }")
    bodies = (" a.max(b) }", " a }", ' println!("passed"); std::process::exit(0) }', " loop {} }")
    with Judge() as judge:
        found = judge.judge([Sample(whole, body) for body in bodies], seed=0)
        # Of these, the sieve knows the word.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(judges, "refusal", lambda _source: None)
            unseen = judge.judge([Sample(whole, bodies[2])], seed=1)

    assert [of.verdict for of in found] == ["pass", "wrong", "refused", "limit"]
    assert unseen[0].verdict == "wrong"


def test_what_is_expected_is_told_to_whoever_keeps_it_from_models() -> None:
    asserted = replace(LARGER, asserted=(("larger(1, 2)", "2"), ("larger(4, 3)", "4")))
    whole = replace(LARGER, tests="fn main() { assert!(larger(1, 2) == 2); }")
    with Judge() as judge:
        drawn = judge.expected(LARGER, seed=0)
        found = judge.expected(asserted, seed=0)

        assert judge.expected(whole, seed=0) == ()
        assert judge.judge([Sample(LARGER, " a.max(b) }")], seed=0)[0].verdict == "pass"

    assert drawn[:3] == ("2", "2", "3")
    assert found == ("2", "4")
