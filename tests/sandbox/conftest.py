"""Sandboxes of every kind that Linux has, of root and of an ordinary user."""

import contextlib
import os
import pickle
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from nanochat.sandbox.job import Job, Outcome
from nanochat.sandbox.layers import Kind
from nanochat.sandbox.sandbox import Sandbox
from tests.sandbox.programs import OURS, THEIRS, Interpreter

ROOT = Path(__file__).parents[2]
# Who starts programs: 0 is root, the other is nobody.
USERS = (0, 65534) if os.geteuid() == 0 else (os.geteuid(),)

_SERVE = """
import pickle, sys
sys.path.insert(0, sys.argv[1])
from nanochat.sandbox.sandbox import Sandbox
with Sandbox(sys.argv[2]) as sandbox:
    while True:
        try:
            jobs = pickle.load(sys.stdin.buffer)
        except EOFError:
            break
        sys.stdout.buffer.write(pickle.dumps(sandbox.run_all(jobs)))
        sys.stdout.buffer.flush()
"""


class Jail(NamedTuple):
    """A sandbox of some user, and a Python that this user can run."""

    run_all: Callable[[Sequence[Job]], list[Outcome]]
    python: Interpreter


@contextlib.contextmanager
def _of_user(kind: Kind, user: int) -> Iterator[Jail]:
    if user == os.geteuid():
        with Sandbox(kind) as sandbox:
            yield Jail(sandbox.run_all, OURS)
        return
    with tempfile.TemporaryDirectory() as folder, _another(kind, user, folder) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        to, answers = process.stdin, process.stdout

        def run_all(jobs: Sequence[Job]) -> list[Outcome]:
            pickle.dump(list(jobs), to)
            to.flush()
            outcomes: list[Outcome] = pickle.load(answers)
            return outcomes

        yield Jail(run_all, THEIRS)
    assert process.returncode == 0


def _another(kind: Kind, user: int, folder: str) -> subprocess.Popen[bytes]:
    """Start a sandbox as a user who can read neither the folders of this one nor this project's."""
    copy = Path(folder, "nanochat")
    shutil.copytree(ROOT / "nanochat" / "sandbox", copy / "sandbox")
    for name in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / "nanochat" / name, copy)
    Path(folder).chmod(0o755)
    return subprocess.Popen(
        [THEIRS.path, "-I", "-c", _SERVE, folder, kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
        env={"PATH": os.environ["PATH"], "SECRET": "secret"},
        user=user,
        group=user,
        extra_groups=[],
    )


@pytest.fixture(
    scope="session",
    params=[(kind, user) for kind in ("bubblewrap", "landlock") for user in USERS],
    ids=lambda of: f"{of[0]} of user {of[1]}",
)
def jail(request: pytest.FixtureRequest) -> Iterator[Jail]:
    """A sandbox of each kind."""
    kind, user = request.param
    with _of_user(kind, user) as jail:
        yield jail
