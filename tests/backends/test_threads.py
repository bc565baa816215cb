"""The threads that run lists of kernels: every task once, in order, whoever is late, busy, forked or woken."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat.backends.host import largest_cache, num_cores
from nanochat.backends.numba.products import activation, linear
from nanochat.backends.numba.runtime import threads
from nanochat.backends.numba.runtime.launch import Launcher, Pool
from nanochat.backends.numba.runtime.threads import Call, Program, run_program

pytestmark = pytest.mark.usefixtures("all_cores")

Values = NDArray[np.float32]

# So much that every task is a chunk of its own.
_LONG = 1e9


def doublings(count: int, size: int = 1000) -> tuple[list[Call], Values]:
    """Calls that each add an array to itself, and the array that the last one writes."""
    x = np.ones(size, np.float32)
    calls = []
    for _ in range(count):
        y = np.zeros_like(x)
        calls.append(Call(activation.add, (x, x, y), tasks=size, nanoseconds=_LONG))
        x = y
    return calls, x


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_each_call_begins_when_the_calls_before_it_are_done(threads: int) -> None:
    calls, y = doublings(20)

    for _ in range(50):
        run_program(Program(calls, threads=threads))

    assert (y == 2.0**20).all()


@pytest.mark.parametrize("tasks", [1, 2, 3, 5])
def test_calls_of_fewer_tasks_than_threads_are_done_once(tasks: int) -> None:
    calls, y = doublings(20, size=tasks)

    run_program(Program(calls, threads=16))

    assert (y == 2.0**20).all()


def test_a_list_longer_than_the_claims_is_run_in_parts() -> None:
    x, y = np.ones(8, np.float32), np.zeros(8, np.float32)
    forth = Call(activation.add, (x, x, y), tasks=8, nanoseconds=1.0)
    back = Call(activation.gate, (y, np.zeros_like(x), x), tasks=8, nanoseconds=1.0)

    run_program(Program([forth, back] * 3000, threads=2))

    assert (x == 1).all()


def test_calls_that_are_not_joined_are_all_done_in_the_end() -> None:
    x = np.arange(5000, dtype=np.float32)
    results = [np.zeros_like(x) for _ in range(6)]
    calls = [
        Call(activation.add, (x, x, y), tasks=x.size, nanoseconds=_LONG, join=False)
        for y in results
    ]

    run_program(Program(calls, threads=2))

    assert all((y == 2 * x).all() for y in results)


def test_threads_that_fell_asleep_are_woken_or_not_needed() -> None:
    calls, y = doublings(3)
    program = Program(calls, threads=2)

    for pause in (0.0, 0.01, 0.001, 0.05):
        y[:] = 0
        time.sleep(pause)
        run_program(program)
        assert (y == 8).all()


def test_two_python_threads_may_run_lists_at_once() -> None:
    def work(_: int) -> bool:
        calls, y = doublings(10)
        for _ in range(100):
            y[:] = 0
            run_program(Program(calls, threads=2))
            if not (y == 2.0**10).all():
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    code = """
import os
import numpy as np
from nanochat.backends.numba.products import activation
from nanochat.backends.numba.runtime.threads import Call, Program, run_program

def result():
    x, y = np.ones(1000, np.float32), np.zeros(1000, np.float32)
    run_program(Program([Call(activation.add, (x, x, y), 1000, 1e9)], threads=3))
    return float(y.min())

assert result() == 2
child = os.fork()
if child == 0:
    os._exit(int(result()))
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), result())
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    assert done.stdout.split() == ["2", "2.0"]


def test_a_process_ends_while_threads_look_for_work() -> None:
    code = """
import numpy as np
from nanochat.backends.numba.products import activation
from nanochat.backends.numba.runtime.threads import Call, Program, run_program
x, y = np.ones(1000, np.float32), np.zeros(1000, np.float32)
run_program(Program([Call(activation.add, (x, x, y), 1000, 1e9)], threads=8))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_thread_that_cannot_start_is_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_POOL", [])
    monkeypatch.setattr(threading.Thread, "start", refuse)
    calls, y = doublings(5)

    run_program(Program(calls, threads=3))
    run_program(Program(calls, threads=3))

    assert (y == 2.0**5).all()
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        "can't start new thread: 1 threads share the work, not 3"
    ]


def test_threads_that_take_no_part_fall_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    own = threads._ThreadPool()
    monkeypatch.setattr(threads, "_POOL", [own])
    many, _ = doublings(3)
    few, _ = doublings(3)
    run_program(Program(many, threads=4))

    asleep = own.control[threads._ASLEEP :: threads._LINE][1:3]
    deadline = time.monotonic() + 60
    while not asleep.all() and time.monotonic() < deadline:
        run_program(Program(few, threads=2))

    found = asleep.tolist()
    own.stop()
    assert found == [1, 1]


def test_idle_threads_leave_the_cores_to_others() -> None:
    calls, _ = doublings(3)
    run_program(Program(calls, threads=4))
    time.sleep(0.1)

    before = time.process_time()
    time.sleep(0.3)

    assert time.process_time() - before < 0.1


def test_an_array_of_another_kind_never_reaches_a_kernel() -> None:
    right = np.ones(8, np.float32)
    Program([Call(activation.add, (right, right, right), 8, 1.0)], threads=1)
    wrong = np.ones(8, np.float64)

    with pytest.raises(TypeError, match="float64"):
        Program([Call(activation.add, (wrong, wrong, wrong), 8, 1.0)], threads=1)


def test_noted_steps_repeat_on_what_the_arrays_hold_then() -> None:
    launch = Launcher(2)
    x = np.ones(100, np.float32)

    def step() -> Values:
        y = launch.empty(x.shape)
        launch(activation.add, x, x, y, tasks=x.size, nanoseconds=1.0)
        z = launch.empty(x.shape)
        launch(activation.add, y, x, z, tasks=x.size, nanoseconds=_LONG)
        return z

    z, notes = launch.note(step, Pool(most=1 << 20))
    x[:] = 5
    notes.repeat(2, positions=1)

    assert (z == 15).all()


def test_notes_reuse_memory_that_no_array_of_the_step_needs() -> None:
    launch = Launcher(1)

    def step() -> set[int]:
        addresses = set()
        for _ in range(10):
            y = launch.empty((64,))
            addresses.add(y.__array_interface__["data"][0])
        return addresses

    addresses, _ = launch.note(step, Pool(most=1 << 20))

    assert len(addresses) <= 2


def test_notes_never_reuse_memory_that_a_view_still_needs() -> None:
    launch = Launcher(1)

    def step() -> list[Values]:
        return [launch.empty((8, 8)).reshape(-1)[3:5] for _ in range(10)]

    views, _ = launch.note(step, Pool(most=1 << 20))

    assert len({view.__array_interface__["data"][0] for view in views}) == 10


def test_a_pool_keeps_no_more_than_it_may() -> None:
    pool = Pool(most=1000)

    sizes = [pool.empty(size).size for size in (100, 200, 240, 250, 230, 240, 5000)]

    assert sizes == [100, 200, 240, 250, 230, 240, 5000]
    assert pool._kept <= 1000


def test_another_python_thread_notes_nothing() -> None:
    launch = Launcher(1)
    x = np.ones((2, 4), np.float32)
    ids = np.zeros(2, np.int64)

    def elsewhere() -> None:
        launch(linear.gather, x, ids, np.empty_like(x), tasks=2, nanoseconds=1.0)

    def step() -> None:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    _, notes = launch.note(step, Pool(most=1 << 20))

    assert not notes.calls


def test_threads_of_one_core_and_a_container_quota_count_once(tmp_path: Path) -> None:
    for cpu in os.sched_getaffinity(0):
        folder = tmp_path / f"cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text("0-255\n")
    quota = tmp_path / "cpu.max"

    quota.write_text("max 100000\n")
    assert num_cores(tmp_path, quota) == 1
    quota.write_text("150000 100000\n")
    assert num_cores(tmp_path / "none", quota) == 1


def test_the_last_level_of_cache_is_the_largest_that_the_system_tells(tmp_path: Path) -> None:
    for index, size in enumerate(["48K", "2048K", "491520K", "unknown"]):
        folder = tmp_path / f"cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(f"{size}\n")

    assert largest_cache(tmp_path) == 480 * 2**20
    assert largest_cache(tmp_path / "none") == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_a_call_is_left_out_while_its_number_is_not_zero(threads: int) -> None:
    x, y = np.ones(40_000, np.float32), np.zeros(40_000, np.float32)
    unless = np.ones(1, np.int64)
    call = Call(activation.add, (x, x, y), tasks=x.size, nanoseconds=1e6, unless=unless)
    program = Program([call], threads=threads)

    run_program(program)
    assert not y.any()
    unless[0] = 0
    run_program(program)
    assert (y == 2).all()
