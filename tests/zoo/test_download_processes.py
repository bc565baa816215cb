"""Downloads that are killed, that run beside each other or out of space leave nothing half-written to be opened."""

import sys
import threading
import time
from pathlib import Path

import pytest

from tests.zoo.downloads import OWN, in_process
from tests.zoo.hub_state import Hub

pytestmark = pytest.mark.usefixtures("client")


FULL_DISK = """
import resource, signal, sys
from nanochat.errors import SaveError
from nanochat.zoo import download
from nanochat.zoo.hub import locate
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
try:
    locate("org/name")
except SaveError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are POSIX only")
def test_a_disk_that_fills_up_leaves_nothing_that_could_be_opened(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/name", OWN)

    said, errors = in_process(hub, tmp_path, FULL_DISK).communicate()

    assert said.startswith("cannot store org/name: File too large; free space"), errors
    assert not list(tmp_path.rglob("model.safetensors"))
    assert not list(tmp_path.rglob("*.incomplete"))


@pytest.mark.parametrize("size", [20_000, 17_000_000], ids=["small", "large"])
def test_two_processes_that_want_the_same_model_fetch_it_once(
    size: int, hub: Hub, tmp_path: Path
) -> None:
    files = {**OWN, "model.safetensors": bytes(size)}
    hub.add("org/name", files)
    # Neither is done before the other has begun.
    hub.fault("/cdn/*", times=2, before=lambda: time.sleep(1.0))
    code = "from nanochat.zoo.hub import locate; print(locate('org/name').path)"

    processes = [in_process(hub, tmp_path, code) for _ in range(2)]
    said = [process.communicate() for process in processes]

    assert [process.returncode for process in processes] == [0, 0], said
    assert said[0][0] == said[1][0]
    folder = Path(said[0][0].strip())
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert len(hub.asked("/cdn/*", "GET")) == 1


def test_a_killed_download_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/name", OWN)
    begun, killed = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        killed.wait(30)

    hub.fault("/cdn/*", before=hold)
    code = "from nanochat.zoo.hub import locate; print(locate('org/name').path)"

    process = in_process(hub, tmp_path, code)
    assert begun.wait(30)
    process.kill()
    process.communicate()
    killed.set()
    said, errors = in_process(hub, tmp_path, code).communicate()

    folder = Path(said.strip())
    assert {name: (folder / name).read_bytes() for name in OWN} == OWN, errors


def test_a_large_file_goes_on_after_a_kill(hub: Hub, tmp_path: Path) -> None:
    weights = bytes(range(256)) * 70_000
    hub.add("org/name", {**OWN, "model.safetensors": weights})
    begun, killed = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        killed.wait(30)

    # More than what the client writes at once.
    hub.fault("/cdn/*", cut=12_000_000)
    hub.fault("/cdn/*", before=hold)
    code = "from nanochat.zoo.hub import locate; print(locate('org/name').path)"

    process = in_process(hub, tmp_path, code)
    assert begun.wait(30)
    process.kill()
    process.communicate()
    killed.set()
    hub.requests.clear()
    said, errors = in_process(hub, tmp_path, code).communicate()

    assert (Path(said.strip()) / "model.safetensors").read_bytes() == weights, errors
    assert hub.asked("/cdn/*", "GET")[-1].range == "bytes=10485760-"
