"""Programs that want out, or never end, in every sandbox that Linux has."""

import pytest

from nanochat.sandbox.job import Limits
from tests.sandbox.conftest import Jail
from tests.sandbox.programs import ESCAPES, HOLD_UPS, LIMITS


def test_no_program_gets_out(jail: Jail) -> None:
    outcomes = jail.run_all([jail.python.escape(name) for name in ESCAPES])

    said = {
        name: outcome.output.decode().strip()
        for name, outcome in zip(ESCAPES, outcomes, strict=True)
    }
    assert {outcome.ending for outcome in outcomes} == {"exit"}
    assert said == dict.fromkeys(ESCAPES, "held")


def test_a_program_that_does_not_end_is_ended(jail: Jail) -> None:
    outcomes = jail.run_all([jail.python.job(program) for program, _ending in HOLD_UPS.values()])

    endings = [outcome.ending for outcome in outcomes]
    assert endings == [ending for _program, ending in HOLD_UPS.values()]
    assert all(len(outcome.output) <= LIMITS.output_bytes for outcome in outcomes)


def test_memory_has_an_end(jail: Jail) -> None:
    limits = Limits(memory_bytes=256 * 2**20)

    small, large = jail.run_all(
        [
            jail.python.job(f"x = bytearray({size} * 2**20); print(len(x))", limits=limits)
            for size in (100, 300)
        ]
    )

    assert (small.status, large.status) == (0, 1)
    assert b"MemoryError" in large.errors


def test_threads_have_an_end(jail: Jail) -> None:
    program = """
import threading
wait = threading.Event()
try:
    for number in range(10000):
        threading.Thread(target=wait.wait, daemon=True).start()
except RuntimeError:
    print(number < 200, flush=True)
import os; os._exit(0)
"""

    (outcome,) = jail.run_all([jail.python.job(program)])

    assert outcome.output == b"True\n"


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("pass", {0}),
        ("raise SystemExit(7)", {7}),
        # Process 1 of a namespace gets no signal from itself, and then dies of an instruction.
        ("import os; os.abort()", {134, 139}),
        ("import ctypes; ctypes.string_at(1)", {139}),
    ],
    ids=["ends", "exits", "aborts", "segfaults"],
)
def test_ways_to_end_are_told_apart(jail: Jail, program: str, status: set[int]) -> None:
    (outcome,) = jail.run_all([jail.python.job(program)])

    assert outcome.ending == "exit"
    assert outcome.status in status


def test_what_is_written_comes_back_as_it_is(jail: Jail) -> None:
    program = "import os; os.write(1, bytes(range(256))); os.write(2, b'\\x1b[31m')"

    (outcome,) = jail.run_all([jail.python.job(program)])

    assert outcome.output == bytes(range(256))
    assert outcome.errors == b"\x1b[31m"


def test_there_is_nothing_to_read_from(jail: Jail) -> None:
    (outcome,) = jail.run_all([jail.python.job("import sys; print(repr(sys.stdin.read()))")])

    assert outcome.output == b"''\n"
