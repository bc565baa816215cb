"""Workers are servers side by side: each with cores and a port of its own, and none without its parent."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from nanochat.errors import InputError
from nanochat.serve.nodes import divide, numa_nodes
from nanochat.serve.workers import run_workers
from tests.serve.processes import Process, free_port, post, running, wait_until
from tests.serve.streams import Stream
from tests.serve.test_process import refused

# A worker of pytest has one core, and two servers shall have one each.
pytestmark = [
    pytest.mark.usefixtures("all_cores"),
    pytest.mark.skipif(sys.platform != "linux", reason="workers are for Linux"),
]
ROOT = Path(__file__).parents[2]
WORDS = ("nanochat-tiny", "--backend", "reference", "--max-rows", "4", "--workers", "2")


@contextmanager
def two_workers(first: str = "") -> Iterator[tuple[Process, list[Process]]]:
    """The parent, and its workers as servers that can be asked."""
    with running(*WORDS, "--port", free_port(count=2), first=first) as parent:
        wait_until(lambda: "2 workers take requests" in parent.said)
        ports = sorted(int(port) for port in re.findall(r"ready: .*:(\d+)/v1", parent.said))
        yield parent, [replace(parent, port=port) for port in ports]


def children(parent: Process) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(parent.process.pid).children(recursive=True)
    return found


def answers(worker: Process) -> bool:
    try:
        return post(worker, "/v1/completions", {"prompt": "x"}).status == 200
    except OSError:
        return False


def test_workers_have_cores_and_ports_of_their_own_and_end_with_their_parent() -> None:
    with two_workers() as (parent, workers):
        first, second = children(parent)
        assert not {*first.cpu_affinity()} & {*second.cpu_affinity()}
        assert workers[1].port == workers[0].port + 1
        assert "2 workers for 1 node of memory share cores" in parent.said
        asked = {"prompt": "fn", "temperature": 0}
        texts = {post(one, "/v1/completions", asked).json["choices"][0]["text"] for one in workers}
        assert len(texts) == 1

        parent.signal(signal.SIGKILL)

        _, left = psutil.wait_procs([first, second], 10)
        for process in left:
            process.kill()
        assert left == []


def test_a_worker_that_is_killed_is_started_again_and_the_other_goes_on() -> None:
    with two_workers() as (parent, workers):
        streams = [Stream(worker.url, tokens=150).begun() for worker in workers]
        victim = next(one for one in children(parent) if str(workers[0].port) in one.cmdline())

        victim.kill()
        killed = time.monotonic()

        assert streams[0].wait().startswith("broken")
        assert streams[0].ended - killed < 2
        assert answers(workers[1])
        assert streams[1].wait() == "end"
        wait_until(lambda: answers(workers[0]))
        assert "worker 0 has ended with -9, and is started again" in parent.said


def test_a_worker_that_cannot_be_started_again_is_tried_later_and_the_other_goes_on() -> None:
    with two_workers() as (parent, workers):
        process = psutil.Process(parent.process.pid)
        _, most = process.rlimit(psutil.RLIMIT_NOFILE)
        # No file may be opened, and a process is started with some.
        process.rlimit(psutil.RLIMIT_NOFILE, (3, most))
        victim = next(one for one in children(parent) if str(workers[0].port) in one.cmdline())

        victim.kill()

        wait_until(lambda: "worker 0 could not be started" in parent.said)
        assert answers(workers[1])
        process.rlimit(psutil.RLIMIT_NOFILE, (most, most))
        wait_until(lambda: answers(workers[0]))


def test_a_signal_does_not_wait_for_the_next_try() -> None:
    with two_workers(first="tests.serve.patient") as (parent, _):
        children(parent)[0].kill()
        wait_until(lambda: "is started again" in parent.said)

        parent.signal(signal.SIGTERM)

        assert parent.wait(10) == 0


def test_a_signal_to_the_parent_lets_the_streams_of_all_end() -> None:
    with two_workers() as (parent, workers):
        processes = children(parent)
        streams = [Stream(worker.url, tokens=150).begun() for worker in workers]

        parent.signal(signal.SIGTERM)

        assert [stream.wait() for stream in streams] == ["end", "end"]
        assert parent.wait() == 0
        assert not any(process.is_running() for process in processes)


def test_what_no_worker_can_do_is_said_and_not_tried_again() -> None:
    code, said = refused("/nowhere", "--workers", "2", "--port", "0")

    assert code in (1, 2)
    assert "/nowhere" in said
    assert "started again" not in said


def test_parents_that_have_the_same_number_elsewhere_are_in_nobody_s_way() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        # As in a container that shares the network of another, where both parents are process 1.
        other.bind(f"\0nanochat-{os.getpid()}-0")

        code = run_workers(["serve", "/nowhere"], workers=2, port=0, say=lambda _: None)

    assert code in (1, 2)


def test_workers_take_no_modules_from_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "asyncio.py").write_text("raise SystemExit('a module of somebody else')")
    words = ("serve", "/nowhere", "--workers", "2", "--port", "0")

    done = subprocess.run(
        [sys.executable, "-P", "-m", "nanochat", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "/nowhere" in done.stderr
    assert "a module of somebody else" not in done.stderr


def test_more_workers_than_cores_are_refused() -> None:
    code, said = refused("nanochat-tiny", "--workers", "999")

    assert code == 2
    assert "workers=999 for" in said


@pytest.mark.parametrize(
    ("workers", "shares"),
    [
        (1, [[0, 1, 2, 3, 4]]),
        (2, [[0, 1, 2], [3, 4]]),
        (3, [[0], [1, 2], [3, 4]]),
        (5, [[0], [1], [2], [3], [4]]),
    ],
)
def test_workers_have_whole_nodes_or_parts_of_one(workers: int, shares: list[list[int]]) -> None:
    assert divide([[0, 1, 2], [3, 4]], workers) == shares


def test_no_worker_is_without_a_core() -> None:
    with pytest.raises(InputError, match="workers=4 for 2 cores: pass 2, one for each node"):
        divide([[0], [1]], 4)


def test_nodes_are_read_with_what_is_one_core_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for node, cores in {"node0": "0-1,4-5", "node1": "2-3,6-7", "node2": ""}.items():
        (tmp_path / "nodes" / node).mkdir(parents=True)
        (tmp_path / "nodes" / node / "cpulist").write_text(f"{cores}\n")
    for core in range(8):
        folder = tmp_path / "cpus" / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{core % 4},{core % 4 + 4}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 5, 6})

    found = numa_nodes(tmp_path / "nodes", tmp_path / "cpus")

    assert found == [[0, 4, 1, 5], [2, 6, 3]]
