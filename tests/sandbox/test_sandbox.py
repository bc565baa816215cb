"""What a sandbox leaves behind, and what happens to it: nothing, whoever is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from nanochat.errors import ConfigError, SandboxError
from nanochat.sandbox.job import Job, Limits
from nanochat.sandbox.layers import Kind
from nanochat.sandbox.sandbox import Sandbox
from tests.sandbox.programs import HOLD_UPS, OURS, SLEEP


def processes_with(word: str) -> list[int]:
    """The processes that have `word` among their arguments."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if word.encode() in arguments:
            found.append(int(folder.name))
    return found


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait, for half a minute at most."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def helper_of(sandbox: Sandbox) -> int:
    """The process that starts a sandbox's jobs."""
    assert sandbox._helper is not None
    return sandbox._helper.pid


def child_of(process: int) -> int:
    """The only child of a process."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"PPid:\t{process}\n" in (folder / "status").read_text():
                return int(folder.name)
    raise AssertionError(f"{process} has no child")


@pytest.mark.parametrize("kind", ["bubblewrap", "landlock"])
def test_nothing_is_left_of_many_programs(kind: Kind, request: pytest.FixtureRequest) -> None:
    rounds = 1250 if request.config.getoption("--long") else 1
    # However they end: on a busy machine, some before they have begun.
    limits = Limits(cpu_seconds=0.1, wall_seconds=0.4)
    # Another run of these tests has programs of its own.
    word = f"left-over-{kind}-{os.getpid()}"
    jobs = [OURS.job(program, word, limits=limits) for program, _ending in HOLD_UPS.values()]
    with Sandbox(kind) as sandbox:
        sandbox.run_all(jobs[:2])
        helper = helper_of(sandbox)
        before = _resources(helper)

        for _ in range(rounds):
            sandbox.run_all(jobs)

        assert _resources(helper) == before
        assert processes_with(word) == []
        assert Path(f"/proc/{helper}/task/{helper}/children").read_text() == ""
    assert not Path(f"/proc/{helper}").exists()


def _resources(process: int) -> tuple[int, int]:
    """How many files a process has open, and how many tens of megabytes of memory it takes."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return len(list(Path(f"/proc/{process}/fd").iterdir())), pages * 4096 // 10**7


@pytest.mark.parametrize("kind", ["bubblewrap", "landlock"])
def test_a_killed_helper_takes_its_jobs_along_and_is_replaced(kind: Kind) -> None:
    with Sandbox(kind) as sandbox:
        helper = helper_of(sandbox)
        results = []
        job = OURS.job(SLEEP, f"orphan-{kind}", limits=Limits(cpu_seconds=0.4, wall_seconds=1.6))
        running = threading.Thread(target=lambda: results.append(sandbox.run(job)))

        running.start()
        wait_until(lambda: processes_with(f"orphan-{kind}") != [])
        first = processes_with(f"orphan-{kind}")
        os.kill(helper, signal.SIGKILL)
        wait_until(lambda: not set(first) & set(processes_with(f"orphan-{kind}")))
        running.join()

        assert results[0].ending == "wall limit"
        assert helper_of(sandbox) != helper
        assert processes_with(f"orphan-{kind}") == []


def test_a_helper_that_is_killed_again_and_again_is_an_error() -> None:
    with Sandbox("none") as sandbox:
        # The parent of a job that nothing confines is the helper.
        job = OURS.job("import os, time; os.kill(os.getppid(), 9); time.sleep(1000)")

        with pytest.raises(SandboxError, match="was killed 3 times"):
            sandbox.run(job)

        assert sandbox.run(OURS.job("print(1)")).output == b"1\n"


@pytest.mark.parametrize("kind", ["bubblewrap", "landlock"])
def test_a_killed_owner_takes_all_along(kind: Kind) -> None:
    word = f"follower-{kind}"
    program = f"""
from nanochat.sandbox.sandbox import Sandbox
from tests.sandbox.programs import OURS, SLEEP
with Sandbox({kind!r}) as sandbox:
    sandbox.run(OURS.job(SLEEP, {word!r}))
"""
    owner = subprocess.Popen([sys.executable, "-c", program])
    wait_until(lambda: processes_with(word) != [])
    helper = child_of(owner.pid)

    owner.kill()
    owner.wait()

    wait_until(lambda: processes_with(word) == [] and not Path(f"/proc/{helper}").exists())


def test_a_killed_owner_takes_all_along_although_its_fork_lives() -> None:
    program = """
import os, signal, time
from nanochat.sandbox.job import Limits
from nanochat.sandbox.sandbox import Sandbox
from tests.sandbox.programs import OURS, SLEEP
with Sandbox("bubblewrap") as sandbox:
    fork = os.fork()
    if fork:
        print(fork, flush=True)
        sandbox.run(OURS.job(SLEEP, "heir", limits=Limits(wall_seconds=1000)))
    time.sleep(1000)
"""
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    fork = int(owner.stdout.readline())
    wait_until(lambda: processes_with("heir") != [])

    owner.kill()
    owner.wait()
    owner.stdout.close()

    try:
        wait_until(lambda: processes_with("heir") == [])
    finally:
        os.kill(fork, signal.SIGKILL)


def test_a_sandbox_is_its_makers_and_no_forks() -> None:
    with Sandbox("bubblewrap") as sandbox:
        read, write = os.pipe()
        fork = os.fork()
        if not fork:
            try:
                sandbox.run(OURS.job("pass"))
            except SandboxError as error:
                os.write(write, str(error).encode())
            finally:
                sandbox.close()
                os._exit(0)
        os.waitpid(fork, 0)

        assert b"the sandbox belongs to the process that this one is a fork of" in os.read(
            read, 999
        )
        assert sandbox.run(OURS.job("print(1)")).output == b"1\n"


def test_a_sandbox_is_closed_at_once_although_another_thread_runs_a_job() -> None:
    sandbox = Sandbox("landlock")
    errors: list[str] = []

    def run() -> None:
        try:
            sandbox.run(OURS.job(SLEEP, "closed", limits=Limits(wall_seconds=1000)))
        except SandboxError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: processes_with("closed") != [])

    sandbox.close()
    thread.join(30)

    assert errors == ["the sandbox is closed: make another"]
    assert processes_with("closed") == []


def test_what_is_interrupted_is_killed_and_the_sandbox_goes_on() -> None:
    # Who is started in the background of a shell ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with ExitStack() as opened:
        opened.callback(signal.signal, signal.SIGINT, before)
        sandbox = opened.enter_context(Sandbox("bubblewrap"))

        def interrupt() -> None:
            wait_until(lambda: processes_with("interrupted") != [])
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        job = OURS.job(SLEEP, "interrupted", limits=Limits(wall_seconds=1000))
        with pytest.raises(KeyboardInterrupt):
            sandbox.run_all([job] * 3)
        thread.join()

        assert sandbox.run(OURS.job("print(1)")).output == b"1\n"
        assert processes_with("interrupted") == []


@pytest.mark.parametrize(
    ("patience", "said"),
    [(1, "infrastructure in 1.6 s it had a processor for 0."), (10, "cpu limit")],
)
def test_a_program_that_the_machine_lets_wait_has_not_failed(patience: int, said: str) -> None:
    program = f"""
import os, subprocess, sys
from nanochat.sandbox.job import Limits
from nanochat.sandbox.sandbox import Sandbox
from tests.sandbox.programs import OURS
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
loop = "while True: pass"
# A session gets its share, however many its processes.
command = [sys.executable, "-c", loop]
rivals = [subprocess.Popen(command, start_new_session=True) for _ in range(5)]
limits = Limits(cpu_seconds=0.4, wall_seconds=1.6, patience={patience})
try:
    with Sandbox("bubblewrap") as sandbox:
        outcome = sandbox._try(OURS.job(loop, limits=limits), sandbox._layers)
    print(outcome.ending, outcome.detail)
finally:
    for rival in rivals:
        rival.kill()
        rival.wait()
"""

    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert found.stdout.startswith(said)


@pytest.fixture
def little_memory() -> Iterator[Path]:
    """A group of processes that together may have 200 MB."""
    group = Path(f"/sys/fs/cgroup/memory/nanochat-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no groups of processes can be made here")
    (group / "memory.limit_in_bytes").write_text("200M")
    yield group
    group.rmdir()


@pytest.mark.parametrize("kind", ["bubblewrap", "landlock"])
def test_a_program_that_is_killed_for_want_of_memory_has_not_failed(
    kind: Kind, little_memory: Path
) -> None:
    program = f"""
import os
from pathlib import Path
from nanochat.sandbox.job import Limits
from nanochat.sandbox.sandbox import Sandbox
from tests.sandbox.programs import OURS
Path({str(little_memory / "cgroup.procs")!r}).write_text(str(os.getpid()))
with Sandbox({kind!r}) as sandbox:
    large = sandbox.run(OURS.job("bytearray(2**28)", limits=Limits(memory_bytes=2**29)))
    small = sandbox.run(OURS.job("raise SystemExit(137)"))
print(large.ending, small.ending, small.status)
"""

    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert said.stdout == "infrastructure exit 137\n"


@pytest.mark.parametrize("kind", ["bubblewrap", "landlock"])
def test_a_stack_is_as_large_on_every_machine(kind: Kind) -> None:
    program = f"""
import resource
hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
resource.setrlimit(resource.RLIMIT_STACK, (hard, hard))
from nanochat.sandbox.sandbox import Sandbox
from tests.sandbox.programs import OURS
with Sandbox({kind!r}) as sandbox:
    job = OURS.job("import resource; print(resource.getrlimit(resource.RLIMIT_STACK)[0])")
    print(sandbox.run(job).output)
"""

    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert said.stdout == "b'8388608\\n'\n"


def test_verdicts_do_not_depend_on_load() -> None:
    rivals = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        with Sandbox("bubblewrap") as sandbox:
            jobs = [OURS.job(program) for program, _ending in HOLD_UPS.values()]
            endings = [outcome.ending for outcome in sandbox.run_all(jobs)]
    finally:
        for rival in rivals:
            rival.kill()
            rival.wait()

    assert endings == [ending for _program, ending in HOLD_UPS.values()]


def test_a_job_writes_where_it_may_and_in_no_other_place(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir()
    other.mkdir()
    program = f"""
open('here', 'w').write('x')
try:
    open({str(other / "there")!r}, 'w')
except OSError:
    print('held')
"""
    job = OURS.job(program)
    for kind in ("bubblewrap", "landlock"):
        with Sandbox(kind) as sandbox:
            outcome = sandbox.run(
                Job(
                    command=job.command,
                    readable=job.readable,
                    writable=str(mine),
                    limits=job.limits,
                )
            )

        assert outcome.output == b"held\n"
        assert (mine / "here").read_text() == "x"
        assert list(other.iterdir()) == []
        (mine / "here").unlink()


def test_a_link_is_there_in_a_tree_of_its_own() -> None:
    job = replace(
        OURS.job("import os; print(os.readlink('/proc/self/exe'))"),
        links=(("/proc/self/exe", "/a/program"),),
    )
    with Sandbox("bubblewrap") as sandbox:
        assert sandbox.run(job).output == b"/a/program\n"


def test_a_file_has_an_end(tmp_path: Path) -> None:
    job = OURS.job("open('large', 'wb').write(bytes(2**21))")
    limits = Limits(file_bytes=2**20)
    with Sandbox("bubblewrap") as sandbox:
        outcome = sandbox.run(
            Job(command=job.command, readable=job.readable, writable=str(tmp_path), limits=limits)
        )

    assert outcome.status != 0
    assert (tmp_path / "large").stat().st_size <= 2**20


def test_a_program_that_is_not_there_is_an_exit_as_in_a_shell() -> None:
    with Sandbox("landlock") as sandbox:
        outcome = sandbox.run(Job(command=("/nowhere",)))

    assert outcome.ending == "infrastructure"
    assert outcome.detail == "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere'"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Limits(cpu_seconds=2, wall_seconds=7), "give four times as many"),
        (lambda: Limits(memory_bytes=1000), "1000 bytes of memory are too few"),
        (lambda: Job(command=()), "'' is no absolute path"),
        (lambda: Job(command=("echo",)), "'echo' is no absolute path"),
        (lambda: Job(command=("/bin/echo",), readable=(".",)), "'.' is no absolute path"),
        (lambda: Job(command=("/bin/echo", "\0")), "cannot be said to a program: leave out NUL"),
        (lambda: Job(command=("/bin/echo", "\ud800")), "cannot be said to a program"),
    ],
    ids=["wall", "memory", "nothing", "program", "folder", "nul", "half"],
)
def test_what_cannot_be_run_is_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_a_closed_sandbox_says_so() -> None:
    sandbox = Sandbox("none")
    sandbox.close()

    with pytest.raises(SandboxError, match="the sandbox is closed"):
        sandbox.run(OURS.job("pass"))
