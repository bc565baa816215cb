"""One file says what a run is: its shape, its text, where it goes, and every setting that is not the default."""

import json
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import nanochat
from nanochat.data.index import DataIndex
from nanochat.errors import ConfigError, TrainingError
from nanochat.presets import preset
from nanochat.training.configuration import TextSettings, prepared, read_configuration
from nanochat.training.estimate import estimate
from nanochat.training.plan import recipe_of
from nanochat.training.run_log import LogEntry
from tests.training.runs import command_here, entries, losses, quiet

ROOT = Path(__file__).parents[2]
QUICK = ("--no-compile", "--threads", "1")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A configuration of two steps on forty lines."""
    for number in range(8):
        (tmp_path / f"{number}.py").write_text(f"def f{number}(): return {number}\n" * 40)
    return write(
        tmp_path / "small.toml",
        f"""
        preset = "tiny"
        out = "{tmp_path / "run"}"
        steps = 2
        text = {{files = ["{tmp_path}/*.py"], vocab_size = 280, held_out = 0.3}}
        data = {{batch_size = 1, length = 32}}
        schedule = {{warmup_steps = 0}}
        model = {{vocab_size = 300, num_layers = 1, num_streams = 1}}
        """,
    )


def test_the_first_run_needs_a_file_and_nothing_else(tmp_path: Path) -> None:
    sets = ["steps=2", "schedule.warmup_steps=0", "schedule.decay_steps=0", "model.num_layers=1"]
    sets += ["run.evaluation_windows=8", "data.batch_size=1", "data.length=64"]
    words = [word for each in sets for word in ("--set", each)]
    run = tmp_path / "run"

    trained = command_here("train", ROOT / "configs" / "tiny.toml", "--out", run, *QUICK, *words)
    written = command_here("generate", run / "model", "--prompt", "def main():", "--max-tokens", 4)

    assert trained.returncode == 0, trained.stderr
    assert "preparing the text of {python}/*.py" in trained.stderr
    assert written.returncode == 0, written.stderr


def test_a_run_goes_on_with_the_text_that_it_had(small: Path, tmp_path: Path) -> None:
    begun = command_here("train", small, *QUICK)
    resumed = command_here("train", "--resume", "--out", tmp_path / "run", *QUICK)
    again = command_here("train", small, *QUICK)

    assert (begun.returncode, resumed.returncode) == (0, 0), begun.stderr + resumed.stderr
    model = entries(tmp_path / "run")[0]["recipe"]["model"]
    assert (model["width"], model["num_layers"]) == (preset("tiny").width, 1)
    assert "already holds a run: pass --resume" in again.stderr


def test_python_trains_what_a_file_or_a_dictionary_says(small: Path, tmp_path: Path) -> None:
    of_file, of_fields = tmp_path / "file", tmp_path / "fields"
    lines: list[LogEntry] = []
    quick: dict[str, Any] = {"compile_model": False, "num_threads": 1, "show": lines.append}
    fields = tomllib.loads(small.read_text())

    assert nanochat.train(small, out=of_file, changes={"steps": 3}, **quick) == of_file
    assert nanochat.train({**fields, "steps": 3}, out=of_fields, **quick) == of_fields

    assert [line.step for line in lines] == [0, 1, 2, 3, 3] * 2
    assert losses(of_file) == losses(of_fields)
    model = nanochat.from_pretrained(of_file / "model", backend="reference")
    assert model.generate("def", max_tokens=2, seed=0)


def test_python_begins_no_run_twice(small: Path) -> None:
    run = nanochat.train(small, compile_model=False, num_threads=1, show=quiet)

    with pytest.raises(TrainingError, match="already holds a run"):
        nanochat.train(small, show=quiet)
    assert nanochat.train(out=run, resume=True, compile_model=False, show=quiet) == run


def test_tokens_of_another_text_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    write(tmp_path / "a.py", "def f(): pass\n" * 99)
    text = TextSettings(files=(str(tmp_path / "a.py"),), vocab_size=280)
    assert prepared(text, tmp_path / "run") == prepared(text, tmp_path / "run")

    other = TextSettings(files=(str(tmp_path / "a.py"),), vocab_size=290)
    with pytest.raises(TrainingError, match="was prepared with other settings than"):
        prepared(other, tmp_path / "run")


def test_tokens_of_before_there_were_other_settings_are_those_of_their_text(tmp_path: Path) -> None:
    text = TextSettings(
        files=(str(write(tmp_path / "a.py", "def f(): pass\n" * 99)),), vocab_size=280
    )
    record = prepared(text, tmp_path / "run") / "text.json"
    asked = json.loads(record.read_text())
    del asked["column"], asked["near_duplicates"]
    record.write_text(json.dumps(asked))

    assert prepared(text, tmp_path / "run") == record.parent


# Dies before it says of which text the tokens are.
KILLED = """
import os, signal, sys
from pathlib import Path
from nanochat.training.configuration import TextSettings, prepared

def die(event, words):
    if event == "open" and str(words[0]).endswith("text.json"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
prepared(TextSettings(files=(sys.argv[1],), vocab_size=280), Path(sys.argv[2]))
"""


def test_tokens_whose_preparation_was_killed_are_prepared_anew(tmp_path: Path) -> None:
    text = write(tmp_path / "a.py", "def f(): pass\n" * 99)
    words = [sys.executable, "-c", KILLED, str(text), str(tmp_path / "run")]

    killed = subprocess.run(words, capture_output=True, check=False)

    assert killed.returncode == -signal.SIGKILL
    found = prepared(TextSettings(files=(str(text),), vocab_size=280), tmp_path / "run")
    assert DataIndex.read(found).splits["train"].tokens > 0


def test_a_configuration_changes_what_its_base_says(tmp_path: Path) -> None:
    (tmp_path / "sizes").mkdir()
    write(
        tmp_path / "tiny.toml", 'preset = "tiny"\nsteps = 9\n[data]\nlength = 64\nbatch_size = 3\n'
    )
    write(tmp_path / "sizes" / "middle.toml", 'base = "../tiny.toml"\n[data]\nlength = 32\n')
    path = write(
        tmp_path / "last.json", json.dumps({"base": "sizes/middle.toml", "budget": "1h", "seed": 5})
    )

    found = read_configuration(path)

    assert found.preset == "tiny"
    assert found.fields == {"budget": "1h", "seed": 5, "data": {"length": 32, "batch_size": 3}}


def test_a_base_with_another_rule_leaves_nothing_of_it(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", "[optimizer.matrices]\nmomentum = 0.9\n")
    path = write(
        tmp_path / "b.toml", 'base = "a.toml"\n[optimizer.matrices]\nrule = "lion"\nrate = 0.1\n'
    )

    found = read_configuration(path).fields

    assert found == {"optimizer": {"matrices": {"rule": "lion", "rate": 0.1}}}


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("b.toml", r"a\.toml is its own base \(a\.toml -> b\.toml -> a\.toml\): take out"),
        ("c.toml", r"a\.toml: base='c\.toml': there is no such file in "),
        (5, r"a\.toml: base=5: write a text"),
    ],
    ids=str,
)
def test_a_base_that_cannot_be_is_named(base: object, message: str, tmp_path: Path) -> None:
    write(tmp_path / "b.toml", 'base = "a.toml"\n')
    path = write(tmp_path / "a.toml", f"base = {json.dumps(base)}\n")

    with pytest.raises(ConfigError, match=message):
        read_configuration(path)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").rglob("*.toml")), ids=lambda path: path.stem
)
def test_every_configuration_fits_into_the_memory_that_it_names(path: Path) -> None:
    said = re.search(r"in (\d+) GB", path.read_text())
    settings = recipe_of(path)

    inside = path.relative_to(ROOT / "configs").with_suffix("")
    assert read_configuration(path).out == Path("runs") / inside
    assert said is not None
    assert 0.5 * int(said[1]) < estimate(settings).bytes / 1e9 < int(said[1])


def test_a_recipe_alone_is_a_configuration(tmp_path: Path) -> None:
    path = write(tmp_path / "recipe.json", json.dumps({"steps": 5, "batch_size": 3}))

    found = read_configuration(path)

    assert found.fields["data"] == {"batch_size": 3}
    assert (found.preset, found.out, found.text) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = = 5", r"a\.toml: not valid TOML \(.*line 1"),
        ("preset = 5", r"a\.toml: preset=5: write a text"),
        ("text = 5", r"a\.toml: text=5: must be a group"),
        ("[text]\nfiles = []", r"a\.toml: \[text\]: files=\[\]: "),
        ("[text]", r"a\.toml: \[text\] names no files: write"),
        ("[text]\nfiles = ['x']\nvocab = 5", r"'vocab'.*did you mean vocab_size\?"),
        ("[text]\nfiles = ['x']\nheld_out = 1.5", r"held_out=1\.5: must be less than 1"),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_read_names_the_file_and_the_rule(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_configuration(write(tmp_path / "a.toml", text))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "pass the directory of the run: --out"),
        (["--out", "run"], "pass what to train: a CONFIG, --preset"),
        (
            ["--out", "run", "--preset", "tiny", "--set", "steps=100"],
            "pass what to train on: --data",
        ),
    ],
    ids=str,
)
def test_what_lacks_is_named(words: list[str], message: str) -> None:
    result = command_here("train", *words)

    assert result.returncode == 2
    assert message in result.stderr
