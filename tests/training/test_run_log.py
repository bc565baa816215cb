"""A run's log holds whole lines, and says why it cannot be written; what shows it is none of its business."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.errors import SaveError
from nanochat.training.loop import Trainer
from nanochat.training.run_log import LogEntry, RunLog
from nanochat.training.snapshot import load_snapshot, remove_snapshot
from tests.training.runs import losses, quiet, recipe

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from nanochat.errors import SaveError
from nanochat.training.run_log import RunLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    with RunLog(Path(sys.argv[1]), step=-1, batch=0) as log:
        log.write(0, {})
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        for step in range(1, 100):
            log.write(step, {"text": "x" * 100})
except SaveError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="limits on file sizes are POSIX only")
def test_a_full_disk_is_named_and_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"

    command = [sys.executable, "-c", FULL_DISK, str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    with RunLog(path, step=50, batch=0):
        lines = path.read_text().splitlines()

    assert done.stdout == (
        f"cannot write {path}: File too large; free space or pass another directory, and resume\n"
    ), done.stderr
    assert len(lines) == 33
    assert all(line.endswith("}") for line in lines)


def test_what_shows_the_log_may_fail_and_costs_no_step(data: Path, tmp_path: Path) -> None:
    def fail(entry: LogEntry) -> None:
        if entry.step == 7:
            raise BrokenPipeError(32, "Broken pipe")

    run = Trainer(recipe(), data, tmp_path, num_threads=1, compile_model=False)

    with pytest.raises(BrokenPipeError):
        run.run(fail)

    assert load_snapshot(tmp_path).step == 7
    assert run.run(quiet)
    assert sorted(losses(tmp_path)) == list(range(1, 31))


def test_a_snapshot_that_cannot_be_deleted_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        SaveError, match=r"^cannot delete .*snapshots/5: No such file .*; delete it"
    ):
        remove_snapshot(tmp_path, 5)
