"""`nanochat eval` and `nanochat judge`, with the model that ships and with samples whose rates are known."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nanochat.export.directory import save_model
from nanochat.lm import Model
from nanochat.problems.sets import load
from tests.core.command_line import Run
from tests.parity.random_models import random_tokenizer, reciting_bundle

# Of level 0 and 1: what was written, and what becomes of it.
FEW = [
    "--problems",
    "own",
    "--level",
    "0",
    "--limit",
    "6",
    "--samples",
    "4",
    "--max-tokens",
    "16",
    "--temperature",
    "1",
]


def lines(path: Path) -> list[dict[str, object]]:
    """The rows of a file of records, in an order of their own."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: (row.get("problem", ""), row.get("sample", 0)))


def test_an_evaluation_writes_its_samples_verdicts_results_and_card(
    run: Run, tmp_path: Path
) -> None:
    result = run("eval", "nanochat-tiny", *FEW, "--k", "1", "--k", "4", "--out", str(tmp_path))

    assert result.code == 0, result.err
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["programs"]["num_problems"] == 6
    assert found["programs"]["num_samples"] == 4
    assert sum(found["programs"]["verdicts"].values()) == 24
    assert found["programs"]["sandbox"] == ["bubblewrap", "landlock", "seccomp"]
    assert found["programs"]["rustc"].startswith("rustc 1.")
    assert len(found["model"]["sha256"]) == 64
    assert "| pass@4 |" in (tmp_path / "card.md").read_text()
    assert "compiles" in result.out


def test_an_interrupted_evaluation_goes_on_to_the_same_end(run: Run, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run("eval", "nanochat-tiny", *FEW, "--out", str(whole))
    cut.mkdir()
    samples = (whole / "samples.jsonl").read_bytes()
    (cut / "samples.jsonl").write_bytes(samples[: len(samples) // 2])

    result = run("eval", "nanochat-tiny", *FEW, "--out", str(cut))

    assert result.code == 0, result.err
    for name in ("samples.jsonl", "verdicts.jsonl"):
        assert lines(cut / name) == lines(whole / name)
    assert (cut / "result.json").read_text() == (whole / "result.json").read_text()


def test_another_setting_does_not_go_on_with_these_samples(run: Run, tmp_path: Path) -> None:
    run("eval", "nanochat-tiny", *FEW, "--out", str(tmp_path))

    result = run("eval", "nanochat-tiny", *FEW, "--seed", "1", "--out", str(tmp_path))
    anew = run("eval", "nanochat-tiny", *FEW, "--seed", "1", "--out", str(tmp_path), "--overwrite")

    assert result.code == 2
    assert "is of seed=0, not 1: pass another --out, or --overwrite" in result.err
    assert anew.code == 0


def values(found: Mapping[str, Any]) -> dict[str, float]:
    """The rates by name."""
    return {name: estimate["value"] for name, estimate in found["rates"].items()}


def test_a_model_that_always_writes_the_same_has_exactly_its_rates(
    run: Run, tmp_path: Path
) -> None:
    tokenizer = random_tokenizer()
    last = tokenizer.encode("fn f() -> i32 {")[-1]
    save_model(tmp_path / "zero", reciting_bundle([last, *tokenizer.encode(" 0}")]))
    source = tmp_path / "four.rs"
    source.write_text(
        "fn zero() -> i32 { 0 }\n\nfn none_of(a: u8) -> u8 { a - a }\n\n"
        "fn same(a: i32) -> i32 { a }\n\nfn text(a: i32) -> String { a.to_string() }\n"
    )

    result = run(
        "eval",
        tmp_path / "zero",
        "--problems",
        source,
        "--samples",
        1,
        "--temperature",
        0,
        "--out",
        tmp_path / "out",
        "--json",
    )

    assert result.code == 0, result.err
    programs = result.last_json["programs"]
    assert isinstance(programs, dict)
    found = values(programs)
    assert found["ends"] == 1
    assert found["compiles"] == 3 / 4
    assert found["runs"] == 3 / 4
    assert found["passes"] == 2 / 4
    assert found["correct"] == pytest.approx(2 / 3)
    assert found["trivial"] == 1


@pytest.fixture
def scripted(tmp_path: Path) -> Path:
    """Samples of a model that knows some answers: of 4 for each problem, as many are right as the problem's number."""
    problems = [problem for problem in load("own").problems if problem.level == 1][:5]
    rows = [
        {
            "problem": problem.id,
            "sample": sample,
            "completion": problem.reference
            if sample < number
            else ("" if sample == 3 else " todo!() }"),
        }
        for number, problem in enumerate(problems)
        for sample in range(4)
    ]
    source = tmp_path / "five.rs"
    source.write_text("".join(f"{problem.prompt}{problem.reference}\n\n" for problem in problems))
    named = {
        problem.id: new.id
        for problem, new in zip(problems, load(str(source)).problems, strict=True)
    }
    header = {
        "format": "nanochat-records",
        "version": 1,
        "problems": source.name,
        "problems_sha256": load(str(source)).identity,
    }
    path = tmp_path / "samples.jsonl"
    text = [
        json.dumps(header),
        *(json.dumps({**row, "problem": named[str(row["problem"])]}) for row in rows),
    ]
    path.write_text("\n".join(text) + "\n")
    return path


def test_known_samples_have_exactly_their_rates(run: Run, scripted: Path) -> None:
    source = scripted.with_name("five.rs")

    result = run(
        "judge",
        str(scripted),
        "--problems",
        str(source),
        "--k",
        "1",
        "--k",
        "2",
        "--k",
        "4",
        "--json",
    )

    assert result.code == 0, result.err
    rates = values(result.last_json)
    assert rates["ends"] == pytest.approx(16 / 20)
    assert rates["compiles"] == pytest.approx(16 / 20)
    assert rates["runs"] == pytest.approx(10 / 20)
    assert rates["passes"] == pytest.approx(10 / 20)
    assert rates["correct"] == pytest.approx(10 / 16)
    assert rates["pass@1"] == pytest.approx((0 + 1 + 2 + 3 + 4) / 4 / 5)
    # Of six pairs of samples, those without a right one are 6, 3, 1 and none.
    assert rates["pass@2"] == pytest.approx((0 + 3 / 6 + 5 / 6 + 1 + 1) / 5)
    assert rates["pass@4"] == pytest.approx(4 / 5)
    assert result.last_json["verdicts"] == {"open": 4, "panic": 6, "pass": 10}


def test_two_models_are_compared_problem_by_problem(run: Run, tmp_path: Path) -> None:
    for name, temperature in (("hot", "1"), ("cold", "0.5")):
        run("eval", "nanochat-tiny", *FEW[:-1], temperature, "--out", str(tmp_path / name))
    run("eval", "nanochat-tiny", *FEW, "--out", str(tmp_path / "same"))

    same = run("eval", "--compare", str(tmp_path / "hot"), str(tmp_path / "same"), "--json")
    other = run("eval", "--compare", str(tmp_path / "hot"), str(tmp_path / "cold"))

    assert same.last_json["passes"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert other.code == 2
    assert "differ in temperature (1.0 and 0.5)" in other.err


def test_texts_are_scored_beside_programs(run: Run, tmp_path: Path) -> None:
    text = tmp_path / "text.rs"
    text.write_text('fn main() {\n    println!("{}", 1);\n}\n')

    alone = run("eval", "nanochat-tiny", "--text", text, "--out", tmp_path / "alone", "--json")
    both = run(
        "eval",
        "nanochat-tiny",
        "--text",
        text,
        *FEW,
        "--out",
        tmp_path / "both",
        "--convention",
        "disjoint",
    )

    model = Model.from_pretrained("nanochat-tiny", backend="reference")
    assert alone.code == 0, alone.err
    assert alone.last_json["text"]["bits_per_byte"] == model.score(text.read_text()).bits_per_byte  # type: ignore[index]
    assert "programs" not in alone.last_json
    assert both.code == 0, both.err
    assert "bits per byte" in both.out
    assert "disjoint" in both.out
    assert "compiles" in both.out
    assert "bits per byte" in (tmp_path / "both" / "card.md").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--k", "5", "--samples", "4"], "pass@5 cannot be told from 4 samples"),
        (["--temperature", "0"], "10 samples at temperature 0 are all the same"),
        (["--problems", "nowhere"], "there are no problems at nowhere"),
        (["--level", "0", "--split", "other-types"], "has no problems of levels [0]"),
        (["--sandbox", "seatbelt"], "there is no /usr/bin/sandbox-exec"),
    ],
    ids=["k", "greedy", "set", "split", "sandbox"],
)
def test_a_mistake_is_told_before_anything_is_written(
    run: Run, tmp_path: Path, options: list[str], said: str
) -> None:
    result = run("eval", "nanochat-tiny", *options, "--out", str(tmp_path / "out"))

    assert result.code in (1, 2)
    assert said in result.err
    assert not (tmp_path / "out").exists()


def test_samples_of_other_problems_are_refused(run: Run, scripted: Path) -> None:
    result = run("judge", str(scripted))

    assert result.code == 1
    assert "holds samples of other problems than own is today" in result.err


def test_a_file_that_holds_no_samples_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n')

    assert "does not begin with a line of the format" in run("judge", str(path)).err
    assert "there is no file" in run("judge", str(tmp_path / "none.jsonl")).err
