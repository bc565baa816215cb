"""Folders that last no longer than their process, and which of them are in memory."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nanochat.errors import SandboxError
from nanochat.sandbox import workspace as workspaces
from nanochat.sandbox.workspace import workspace


@pytest.fixture(autouse=True)
def parent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where folders are made here."""
    monkeypatch.setattr(workspaces, "_MEMORY", tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def not_executable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory that is mounted as containers mount theirs."""
    folder = tmp_path_factory.mktemp("memory")
    mount = ["mount", "-t", "tmpfs", "-o", "noexec,size=1g", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root may mount a folder")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_folder_is_there_and_then_is_not(parent: Path) -> None:
    with workspace("trial") as folder:
        assert folder.parent == parent
        (folder / "file").write_text("word")

    assert list(parent.iterdir()) == []


def test_a_folder_whose_owner_was_killed_is_removed(parent: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from nanochat.sandbox import workspace
workspace._MEMORY = Path(sys.argv[1])
with workspace.workspace("trial"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program, str(parent)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = parent.iterdir()

    with workspace("trial") as folder:
        assert list(parent.iterdir()) == [folder]
        assert folder != left


def test_a_folder_of_another_container_is_not_removed(parent: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from nanochat.sandbox import workspace
workspace._MEMORY = Path(sys.argv[1])
# The next process there has a number that is nobody's here.
Path("/proc/sys/kernel/ns_last_pid").write_text(sys.argv[2])
if os.fork():
    os.wait()
else:
    with workspace.workspace("trial"):
        print("made", flush=True)
        sys.stdin.read()
"""
    free = next(number for number in range(20_000, 30_000) if not Path(f"/proc/{number}").exists())
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", sys.executable]
    other = subprocess.Popen(
        [*command, "-c", program, str(parent), str(free - 1)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None
    if other.stdout.readline() != b"made\n":
        pytest.skip("there is no unshare, or it may not make namespaces")
    (theirs,) = parent.iterdir()

    with workspace("trial"):
        assert theirs.exists()

    other.communicate()
    assert list(parent.iterdir()) == []


def test_a_fork_of_the_owner_leaves_the_folder(parent: Path) -> None:
    with ExitStack() as opened:
        folder = opened.enter_context(workspace("trial"))
        fork = os.fork()
        if not fork:
            opened.close()
            os._exit(0)
        os.waitpid(fork, 0)

        assert list(parent.iterdir()) == [folder]


def test_memory_in_which_nothing_is_executed_is_not_used(
    monkeypatch: pytest.MonkeyPatch, not_executable: Path, parent: Path
) -> None:
    monkeypatch.setattr(workspaces, "_MEMORY", not_executable)

    with workspace("trial") as folder:
        assert folder.parent == parent


def test_a_folder_in_which_nothing_is_executed_is_named(
    monkeypatch: pytest.MonkeyPatch, not_executable: Path
) -> None:
    monkeypatch.setattr(workspaces, "_MEMORY", not_executable)
    monkeypatch.setattr(tempfile, "tempdir", str(not_executable))

    with (
        pytest.raises(SandboxError, match=r"no program can be run in .* 'noexec': set TMPDIR"),
        workspace("trial"),
    ):
        pass


def test_a_folder_that_cannot_be_made_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, parent: Path
) -> None:
    monkeypatch.setattr(workspaces, "_MEMORY", parent / "nowhere")
    monkeypatch.setattr(tempfile, "tempdir", str(parent / "nowhere"))

    with pytest.raises(SandboxError, match="cannot make a folder for trial"), workspace("trial"):
        pass
