"""What holds for all tests, and the command line and the Hub on loopback for those that ask for them."""

import functools
import io
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import huggingface_hub
import pytest
from hypothesis import settings

from nanochat import backends, cli
from nanochat.cli import export
from nanochat.generation import costs
from tests.core.command_line import Result, Run
from tests.parity.guesses import some_guesses
from tests.zoo.hub_client import HubClient
from tests.zoo.hub_server import hub_server
from tests.zoo.hub_state import Hub

# A busy machine may stop for longer than any deadline that means something; and what fails once must fail again.
settings.register_profile("unhurried", deadline=None, derandomize=True, database=None)
settings.load_profile("unhurried")


MAINS = {"nanochat": cli.main, "nanochat-export": export.main}
_CORES = pytest.StashKey[set[int]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for what takes hours."""
    parser.addoption(
        "--long",
        action="store_true",
        help="many more random files in fuzzing tests, and the server among other people's programs",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker of pytest-xdist cores of its own, before a library counts them to make as many threads.

    Threads wait for each other in busy loops. Where two workers had two threads each on two cores, exports took four
    times as long as on one core each.
    """
    worker = getattr(config, "workerinput", None)
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cores = os.sched_getaffinity(0)
        config.stash[_CORES] = cores
        number = int(worker["workerid"].removeprefix("gw"))
        os.sched_setaffinity(0, sorted(cores)[number :: worker["workercount"]] or cores)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in this process."""

    def run_here(*arguments: object, stdin: bytes = b"", program: str = "nanochat") -> Result:
        monkeypatch.setenv("NANOCHAT_BACKEND", os.environ.get("NANOCHAT_BACKEND", "reference"))
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        with pytest.raises(SystemExit) as end:
            MAINS[program](list(map(str, arguments)))
        captured = capsys.readouterr()
        return Result(code=int(end.value.code or 0), out=captured.out, err=captured.err)

    return run_here


@pytest.fixture
def soon_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Measure the speed of memory with a few megabytes, which takes no seconds, and remember it for the test alone."""
    if backends.unavailable("numba") is not None:
        return
    # Not without numba.
    from nanochat.backends.numba.tuning import bandwidth

    monkeypatch.setattr(bandwidth, "measure", functools.partial(bandwidth.measure, 2**22))
    monkeypatch.setattr(bandwidth, "path", lambda: tmp_path / "bandwidth.json")


@pytest.fixture
def many_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give texts that are drafted some of their guesses, or all of them, whether that pays or not."""
    monkeypatch.setattr(costs.Chooser, "choose", some_guesses(seed=0))


@pytest.fixture(scope="module")
def all_cores(pytestconfig: pytest.Config) -> Iterator[None]:
    """The cores that pytest has, for tests of threads, those that have started before included."""
    cores = pytestconfig.stash.get(_CORES, None)
    if cores is None:
        yield
        return
    own = os.sched_getaffinity(0)
    _move_threads(cores)
    yield
    _move_threads(own)


def _move_threads(cores: set[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        # It may have ended.
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is long, and let the Hub's client call its HTTP library as that no longer likes."""
    if not config.getoption("--long"):
        # What is skipped has not passed: these take programs that only --long installs.
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    for item in items:
        if "hub" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"))


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub without models."""
    with hub_server() as served:
        yield served


@pytest.fixture
def hub_client(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubClient]:
    """The client of this process, logged in to `hub`, with an empty cache."""
    yield HubClient(hub, tmp_path / "hf_home", monkeypatch)
    # Its connections lead to a server that ends; the next one is made as ever.
    huggingface_hub.close_session()
