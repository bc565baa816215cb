"""What `nanochat train` shows, and how it answers what people type."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from nanochat.training.recipe import recipe_to_dict
from tests.training.runs import MODEL, command, command_here, entries, options, recipe


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run of two steps, and what it said: to a pipe, or to a terminal."""

    folder: Path
    said: str


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a run of two steps."""
    path = tmp_path_factory.mktemp("settings") / "recipe.json"
    path.write_text(json.dumps(recipe_to_dict(recipe(steps=2, schedule={"decay_steps": 0}))))
    return path


@pytest.fixture(scope="module")
def run(data: Path, settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished") / "run"
    result = command(*options(data, folder), settings)
    return Finished(folder=folder, said=result.stderr)


@pytest.fixture(scope="module")
def shown(data: Path, settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("shown") / "run"
    words = [*options(data, folder), settings]
    result = command_here(*words, TTY_COMPATIBLE="1", TERM="xterm")
    return Finished(folder=folder, said=re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", result.stderr))


def test_the_last_bar_shows_the_last_held_out_value(run: Finished) -> None:
    bits = entries(run.folder)[-1]["held_out_bits_per_byte"]
    bars = [line for line in run.said.splitlines() if line.startswith("step 2/2")]
    assert len(bars) == 1
    assert f"held out {bits:.4f} bits/byte" in bars[0]


def test_an_evaluation_has_a_bar_with_an_end(shown: Finished) -> None:
    assert re.search(r"evaluating +0/8", shown.said)


def test_a_run_that_is_not_compiled_begins_with_another_word(shown: Finished) -> None:
    assert "starting" in shown.said
    assert "compiling" not in shown.said


BROKEN_COMPILER = """#!/bin/sh
case "$*" in *--version*) echo "g++ 12.2.0"; exit 0;; esac
echo "header.hpp:1:10: fatal error: Python.h: No such file or directory" >&2
exit 1
"""


@pytest.mark.parametrize(
    "compiler", [pytest.param("none", marks=pytest.mark.long), "without headers"]
)
def test_a_machine_that_cannot_compile_gets_one_line_and_the_way_on(
    compiler: str, data: Path, settings: Path, tmp_path: Path
) -> None:
    program = tmp_path / "g++"
    if compiler == "without headers":
        program.write_text(BROKEN_COMPILER)
        program.chmod(0o755)
    # The smallest, since tracing is all that it takes time for.
    small = ["--set", "model.num_layers=1", "--set", "model.num_streams=1"]
    words = [*options(data, tmp_path / "run"), settings, *small]
    words.remove("--no-compile")

    # What was compiled before is in no cache.
    cache = str(tmp_path / "cache")
    refused = command(*words, CXX=str(program), TORCHINDUCTOR_CACHE_DIR=cache)

    reason = {"none": "No working C\\+\\+ compiler", "without headers": "fatal error: Python.h"}
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert re.match(
        rf"error: torch.compile cannot run here \(.*{reason[compiler]}.*\): install a C\+\+ compiler",
        refused.stderr.splitlines()[-1],
    )


def test_a_run_that_ends_unquantised_says_that_it_wrote_no_model(
    data: Path, settings: Path, tmp_path: Path
) -> None:
    words = [*options(data, tmp_path / "run"), settings]

    result = command_here(*words, "--set", "precision.weights=float")

    assert result.returncode == 0, result.stderr
    assert "wrote no model: the last weights are not rounded (precision.weights=float)" in (
        result.stderr
    )
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("named", [".", "snapshots/2"])
def test_a_branch_starts_from_the_directory_of_a_run_and_with_its_recipe(
    named: str, data: Path, run: Finished, tmp_path: Path
) -> None:
    branch = options(data, tmp_path / "branch")

    result = command_here(*branch, "--start", run.folder / named, "--set", "steps=3")

    assert result.returncode == 0, result.stderr
    assert entries(tmp_path / "branch")[0]["recipe"] == {
        **entries(run.folder)[0]["recipe"],
        "steps": 3,
    }
    assert [entry["step"] for entry in entries(tmp_path / "branch")] == [2, 3, 3]


def test_a_directory_without_a_snapshot_is_named(
    data: Path, settings: Path, tmp_path: Path
) -> None:
    words = [*options(data, tmp_path / "run"), settings]

    result = command_here(*words, "--start", data)

    assert result.returncode == 1
    assert f"error: {data} holds no snapshot: pass the directory" in result.stderr


def test_a_finished_run_that_is_resumed_says_how_to_train_on(
    data: Path, run: Finished, tmp_path: Path
) -> None:
    resumed = command_here(*options(data, run.folder), "--resume")
    branch = command_here(
        *options(data, tmp_path / "on"), "--start", run.folder, "--set", "steps=4"
    )

    assert f"another run with --start {run.folder} and more --set steps" in resumed.stderr
    assert (resumed.returncode, branch.returncode) == (0, 0)


@pytest.mark.parametrize(("streams", "said"), [(4, True), (1, False)])
def test_who_cannot_run_the_model_is_said_before_it_is_trained(
    streams: int, said: bool, data: Path, settings: Path, tmp_path: Path
) -> None:
    words = [*options(data, tmp_path / "run"), settings]

    result = command_here(*words, "--set", f"model.num_streams={streams}")

    assert result.returncode == 0
    line = (
        "llama.cpp, mlx-lm, transformers cannot run this model (num_streams=4: it has one residual stream, and no "
        "mHC); one with --set model.num_streams=1 they can: nanochat-ternary and ONNX Runtime can"
    )
    assert (line in result.stderr) is said


def test_a_shape_of_the_catalog_is_trained_as_one_of_ours(data: Path, tmp_path: Path) -> None:
    small = {"vocab_size": 300, **MODEL, "head_dim": 64}
    settings = ["steps=2", "schedule.warmup_steps=0", *(f"model.{k}={v}" for k, v in small.items())]
    changes = [word for setting in settings for word in ("--set", setting)]

    result = command_here(
        *options(data, tmp_path / "run"), "--preset", "ternary-bonsai-1.7b", *changes
    )

    assert result.returncode == 0, result.stderr
    trained = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert (trained["rope_type"], trained["table_format"]) == ("yarn", "ternary")
    assert trained["width"] == 128


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tinny", "no shape is known by the name 'tinny' (did you mean tiny?): choose one of tiny"),
        ("falcon-e-1b", "no shape is known by the name 'falcon-e-1b'"),
    ],
)
def test_a_name_without_a_shape_is_refused(tmp_path: Path, name: str, message: str) -> None:
    result = command_here(*options(tmp_path, tmp_path / "run"), "--preset", name)

    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")


def test_a_dry_run_says_what_a_run_would_take_and_leaves_nothing(
    settings: Path, tmp_path: Path
) -> None:
    words = ["train", settings, "--out", tmp_path / "run", "--dry-run", "--threads", "1"]

    shown, as_json = command_here(*words), command_here(*words, "--json")

    found = json.loads(as_json.stdout)
    assert (found["steps"], found["tokens"], found["parameters"]) == (2, 256, 236_032)
    assert re.search(
        r"parameters +236 k\nsteps +2\ntokens +256, 0.00108 a parameter\n", shown.stdout
    )
    assert re.search(r"time +about \d+ second", shown.stdout)
    assert not [*tmp_path.iterdir()]
