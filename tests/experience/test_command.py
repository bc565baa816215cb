"""`nanochat learn`, and `nanochat eval` with what was learnt."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.experience.library import read_library
from nanochat.export.directory import save_model
from tests.core.command_line import Run
from tests.core.tool_models import NONE, parrot
from tests.experience.learners import coin_bundle, problems_file
from tests.serve.here import Here, served_here

SAID = '{"lessons": []}'
FEW = ["--samples", 8, "--temperature", 1, "--top-p", 1, "--max-tokens", 8]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "coin"
    save_model(path, coin_bundle())
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[Here]:
    with served_here({"talker": parrot(NONE, SAID)}) as one:
        yield one


def test_examples_are_learnt_and_used(run: Run, model: Path, tmp_path: Path) -> None:
    source = problems_file(tmp_path)
    learning = ["learn", "--model", model, "--problems", source, "--method", "examples", *FEW]
    file = tmp_path / "examples.json"
    few = ["--problems", source, *FEW]

    learnt = run(*learning, "--batch", 2, "--out", file, "--json")
    again = run(*learning, "--batch", 2, "--out", file, "--json")
    without = run("eval", model, *few, "--out", tmp_path / "without")
    with_it = run("eval", model, *few, "--experience", file, "--out", tmp_path / "with")
    drawn = ["--experience", file, "--examples", "random", "--experience-seed", 1]
    random = run("eval", model, *few, *drawn, "--out", tmp_path / "random")
    compared = run("eval", "--compare", tmp_path / "without", tmp_path / "with", "--json")

    assert learnt.code == 0, learnt.err
    assert learnt.last_json["examples"] == 3
    assert again.last_json == learnt.last_json
    assert [one.code for one in (without, with_it, random)] == [0, 0, 0], with_it.err
    first = {name: _first_line(tmp_path / name) for name in ("without", "with", "random")}
    identity = read_library(file).identity
    assert "experience" not in first["without"]
    assert first["with"]["experience"] == {
        "sha256": identity,
        "budget": 512,
        "examples": "similar",
        "seed": 0,
    }
    assert first["random"]["experience"]["examples"] == "random"  # type: ignore[index]
    result = json.loads((tmp_path / "with" / "result.json").read_text())
    assert result["experience"]["sha256"] == identity
    assert identity[:12] in (tmp_path / "with" / "card.md").read_text()
    # The coin falls as it falls, whatever stands before.
    assert compared.last_json["compiles"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def _first_line(folder: Path) -> dict[str, object]:
    found = json.loads((folder / "samples.jsonl").read_text().splitlines()[0])
    assert isinstance(found, dict)
    return found


def test_samples_with_experience_go_on_with_the_same_only(
    run: Run, model: Path, tmp_path: Path
) -> None:
    source = problems_file(tmp_path)
    for number, budget in enumerate((100, 200)):
        file = tmp_path / f"{number}.json"
        arguments = ["--method", "examples", "--references", "--problems", source]
        assert run("learn", *arguments, "--budget", budget, "--out", file).code == 0
    few = ["eval", model, "--problems", source, *FEW, "--out", tmp_path / "out"]
    assert run(*few, "--experience", tmp_path / "0.json").code == 0

    other = run(*few, "--experience", tmp_path / "1.json")
    none = run(*few)

    assert (other.code, none.code) == (2, 2)
    assert "is of experience=" in other.err
    assert "is of experience=" in none.err


def test_lessons_are_written_at_an_address(
    run: Run, model: Path, server: Here, tmp_path: Path
) -> None:
    file = tmp_path / "lessons.json"
    asked = ["--problems", problems_file(tmp_path), "--method", "lessons", *FEW, "--out", file]

    result = run(
        "learn", "--model", model, *asked, "--writer", server.url, "--writer-model", "talker"
    )

    assert result.code == 0, result.err
    library = read_library(file)
    (batch,) = library.batches
    assert batch["mixed"] == 3
    assert (batch["refused"], batch["failed"]) == (0, 0)
    assert library.learnt_from["writer"] == {"url": server.url, "name": "talker"}
    assert "answers" in result.out


METHOD = ["--method", "lessons"]
MISTAKES = {
    "a method": ([], 2, "Missing option '--method'"),
    "a writer that continues texts": (
        METHOD,
        2,
        "so it cannot write lessons: pass another --writer",
    ),
    "a writer of examples": (
        ["--method", "examples", "--writer", "http://a/v1"],
        2,
        "--writer and --writer-model are for --method lessons",
    ),
    "attempts of references": (
        ["--method", "examples", "--references", "--samples", "4"],
        2,
        "--samples is for attempts, of which --references makes none",
    ),
    "references for lessons": ([*METHOD, "--references"], 2, "--references is for --method examp"),
    "a name without an address": (
        [*METHOD, "--writer", "nanochat-tiny", "--writer-model", "a"],
        2,
        "pass the address as --writer",
    ),
    "an address without a name": (
        [*METHOD, "--writer", "http://127.0.0.1:1/v1"],
        2,
        "pass one as --writer-model",
    ),
    "no address": (
        [*METHOD, "--writer", "http://", "--writer-model", "a"],
        2,
        "is no address",
    ),
    "one attempt": (
        [*METHOD, "--writer", "http://a/v1", "--writer-model", "a", "--samples", "1"],
        2,
        "take --samples 2 or more",
    ),
    "a level": (["--method", "examples", "--level", "4"], 2, "choose --level among 0, 1, 2"),
    "problems": (["--method", "examples", "--problems", "nowhere"], 2, "there are no problems at"),
    "a writer that is not there": ([*METHOD, "--writer", "nanochat-tinny"], 1, "did you mean"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_before_anything_is_written(run: Run, tmp_path: Path, name: str) -> None:
    arguments, code, said = MISTAKES[name]

    result = run("learn", *arguments, "--out", tmp_path / "a.json")

    assert (result.code, said in result.err) == (code, True), result.err
    assert not (tmp_path / "a.json").exists()


def test_a_mistake_deletes_nothing(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("mine")

    result = run("learn", *METHOD, "--overwrite", "--out", file)

    assert result.code == 2
    assert file.read_text() == "mine"
