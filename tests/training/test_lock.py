"""A run's directory belongs to one process, for as long as that trains in it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.errors import TrainingError
from nanochat.training.lock import locked
from nanochat.training.loop import Trainer
from tests.training.runs import command_here, entries, options, quiet, recipe

HOLDER = """
import sys, time
from pathlib import Path
from nanochat.training.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(300)
"""
pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="directories cannot be locked on Windows"
)


def test_a_run_that_another_process_writes_is_refused_and_stays_as_it_is(
    data: Path, tmp_path: Path
) -> None:
    settings = recipe(steps=5, schedule={"decay_steps": 0})
    Trainer(settings, data, tmp_path, num_threads=1, compile_model=False).run(quiet)
    before = entries(tmp_path)

    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        refused = command_here(*options(data, tmp_path), "--resume")
        holder.send_signal(signal.SIGKILL)
    resumed = command_here(*options(data, tmp_path), "--resume")

    assert refused.returncode == 1
    assert f"another process writes the run in {tmp_path}: wait for it" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert resumed.returncode == 0, resumed.stderr
    assert entries(tmp_path) == before


def test_a_directory_is_given_back(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "run"):
            pass

    with locked(tmp_path), pytest.raises(TrainingError), locked(tmp_path):
        pass
