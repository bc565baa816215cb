"""A run that is killed anywhere, as often as one likes, has the losses of one that was not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nanochat.training.loop import Trainer
from nanochat.training.recipe import Recipe, recipe_to_dict
from nanochat.training.snapshot import holds_run, load_snapshot
from tests.training.runs import entries, options, quiet, recipe

FEW, MANY = 6, 24
STEPS = 60

# Commands, each in a process that dies when it comes to a place from a step on: in a batch, before its update, in an
# evaluation, between the files of a snapshot, while old ones are deleted, before a line of the log. They come of one
# that has imported what a run needs, which takes longer than the run, and has begun none.
KILLED = """
import json, os, signal, sys
from nanochat.cli import main
from nanochat.training import evaluation, loop, plan, progress, run_log, snapshot, updater

places = {
    "batch": (loop.Trainer, "_gradients"),
    "update": (updater.Updater, "update"),
    "evaluation": (evaluation, "stream_divergence"),
    "files": (snapshot, "_save"),
    "deletion": (snapshot.shutil, "rmtree"),
    "log": (run_log.RunLog, "write"),
}

def run(step, place, words):
    (owner, name), run, seen = places[place], loop.Trainer.run, []
    function = getattr(owner, name)

    def die(*words, **options):
        # The second file, of two.
        if seen[0].step >= step and (name != "_save" or "optimizer" in str(words[1])):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*words, **options)

    def note(self, *words):
        seen.append(self)
        return run(self, *words)

    loop.Trainer.run = note
    setattr(owner, name, die)
    main(words)

import torch._dynamo

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        run(*json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
PLACES = ("batch", "update", "evaluation", "files", "deletion", "log")


def settings(*, workers: int) -> Recipe:
    """Two phases, microbatches, state in eight bits, and snapshots and evaluations that seldom meet."""
    muon = {"average": "int8", "row_beta": 0.9, "momentum_warmup_steps": 20}
    return recipe(
        steps=STEPS,
        optimizer={"matrices": muon},
        data={"batch_size": 4, "microbatch": 2},
        run={
            "evaluate_every": 7,
            "snapshot_every": 5,
            "evaluation_windows": 2,
            "workers": workers,
        },
        phases=[
            {"steps": 32, "precision": {"weights": "float"}},
            {"optimizer": {"norms": {"rule": "lion"}}, "data": {"length": 48}},
        ],
    )


def send(process: subprocess.Popen[str], *what: object) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(what) + "\n")
    process.stdin.flush()


# Of the compiler.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_run_that_is_killed_anywhere_has_the_losses_of_another(
    *, compiled: bool, data: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    whole, killed, said = (tmp_path / name for name in ("whole", "killed", "said"))
    run = Trainer(settings(workers=0), data, whole, num_threads=1, compile_model=compiled)
    assert run.run(quiet)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe_to_dict(settings(workers=2))))
    arguments = [*options(data, killed), *(["--compile"] if compiled else [])]
    # Compiling, of which a part is done anew each time, takes most of a compiled run's time.
    number = MANY if pytestconfig.getoption("--long") and not compiled else FEW
    steps = np.sort(np.random.default_rng(number).integers(1, STEPS - 6, number))

    # Not to a pipe, which processes that prepare batches hold for the seconds until they miss this one.
    with (
        said.open("w") as file,
        subprocess.Popen(
            [sys.executable, "-c", KILLED],
            env={**os.environ, "COLUMNS": "200"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        for count, step in enumerate(steps):
            begin = ["--resume"] if holds_run(killed) else [str(tmp_path / "recipe.json")]
            send(process, int(step), PLACES[count % len(PLACES)], [*arguments, *begin])
            assert process.stdout.readline() == f"{-signal.SIGKILL}\n", said.read_text()
        send(process, STEPS + 1, "batch", [*arguments, "--resume"])
        assert process.stdout.readline() == "0\n", said.read_text()

    assert entries(killed)[1:] == entries(whole)[1:]
    last, expected = (load_snapshot(run).parameters for run in (killed, whole))
    assert all((last[name] == expected[name]).all() for name in expected)
    # Neither what was half written nor what was half deleted.
    folders = [{path.name for path in (run / "snapshots").iterdir()} for run in (killed, whole)]
    assert folders[0] == folders[1]
