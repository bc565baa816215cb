"""Scores of many texts are those of each, summed once, and say how long texts were read."""

import json
import math
from pathlib import Path

import pytest

from nanochat.errors import DataError, InputError
from nanochat.evaluation.texts import read_texts, score_texts
from nanochat.generation.scoring import Convention
from tests.evaluation.models import RUNNERS, model

CONVENTIONS: list[Convention] = ["overlapping", "disjoint", "lm-eval"]
SHORT = {"a": "fn main() {}", "b": "to be or not to be, that is the wörld", "c": "x"}
LONG = {"long": "the question is 'Hello' // to be or not; " * 12, **SHORT}


@pytest.mark.parametrize("runner", RUNNERS)
def test_texts_that_are_read_together_have_their_own_scores(runner: str) -> None:
    found = score_texts(model(runner), LONG)

    alone = {name: model(runner).score(text) for name, text in LONG.items()}
    assert list(found.scores) == list(LONG)
    for name, score in alone.items():
        assert found.scores[name].tokens == score.tokens
        assert found.scores[name].bytes == score.bytes == len(LONG[name].encode())
        # A library's products may depend on how many rows there are, and then an activation is rounded the other way.
        tolerance = 1e-3 if runner == "torch" else 0
        assert found.scores[name].nats == pytest.approx(score.nats, rel=tolerance, abs=0)


def test_the_whole_is_the_sum_of_nats_over_the_sum_of_bytes() -> None:
    found = score_texts(model("numba"), LONG)

    nats = math.fsum(score.nats for score in found.scores.values())
    num_bytes = sum(len(text.encode()) for text in LONG.values())
    assert found.total.bits_per_byte == nats / math.log(2) / num_bytes
    assert found.total.perplexity == math.exp(nats / found.total.tokens)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_texts_that_a_window_holds_have_one_score(convention: Convention) -> None:
    found = score_texts(model("numba"), SHORT, convention=convention)

    assert found.convention == convention
    assert found.scores == score_texts(model("numba"), SHORT).scores


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("convention", ["disjoint", "lm-eval"])
def test_long_texts_have_the_score_of_their_windows(runner: str, convention: Convention) -> None:
    tested = model(runner)
    ids = [*tested.tokenizer.opening, *tested.tokenizer.encode(LONG["long"])]

    found = score_texts(tested, LONG, convention=convention, window=16).scores["long"]

    num_whole, rest = divmod(len(ids) - 1, 16)
    assert rest
    parts = [tested.engine.losses(ids[16 * i : 16 * i + 17]) for i in range(num_whole)]
    last = ids[-17:] if convention == "lm-eval" else ids[16 * num_whole :]
    expected = sum(part.sum() for part in parts) + tested.engine.losses(last)[-rest:].sum()
    assert found.nats == pytest.approx(float(expected), rel=1e-3)


def test_conventions_give_a_long_text_different_scores() -> None:
    nats = {c: score_texts(model("numba"), LONG, convention=c).total.nats for c in CONVENTIONS}

    assert len(set(nats.values())) == 3


def test_names_of_special_tokens_in_a_text_are_bytes_like_others() -> None:
    found = score_texts(model("numba"), ["<|bos|>"])

    assert found.total.bytes == 7
    assert found.total.tokens == len(model("numba").tokenizer.encode("<|bos|>")) > 1


def test_texts_without_names_are_numbered() -> None:
    assert list(score_texts(model("numba"), ["one", "two"]).scores) == ["0", "1"]


def test_a_record_is_json_and_says_all() -> None:
    found = score_texts(model("numba"), SHORT, convention="lm-eval", window=32)

    record = json.loads(json.dumps(found.record()))
    assert record["convention"] == "lm-eval"
    assert record["window"] == 32
    assert record["documents"] == 3
    assert record["bits_per_byte"] == found.total.bits_per_byte
    assert record["scores"]["c"] == vars(found.scores["c"])


def test_progress_counts_tokens_up_to_all() -> None:
    told: list[tuple[int, int]] = []

    found = score_texts(model("numba"), LONG, progress=lambda *counts: told.append(counts))

    assert told[0] == (0, found.total.tokens)
    assert told[-1] == (found.total.tokens, found.total.tokens)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        pytest.param([], {}, "no text to score", id="none"),
        pytest.param("abc", {}, "texts is one text: pass a list", id="a string"),
        pytest.param({"a.txt": ""}, {}, "text a.txt: the prompt is empty", id="empty"),
        pytest.param(["a"], {"window": 65}, "window=65 tokens: pass 2 to 64", id="too long"),
        pytest.param(["a"], {"window": 1}, "window=1 tokens: pass 2 to 64", id="too short"),
        pytest.param(["a"], {"convention": "x"}, "choose one of overlapping", id="convention"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    texts: list[str], options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        score_texts(model("numba"), texts, **options)  # type: ignore[arg-type]  # it is what is refused


def test_files_and_folders_are_read_as_preparing_data_reads_them(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.md").write_text(f"of {folder}")
    (tmp_path / "lines.jsonl").write_text('{"text": "first"}\n{"text": "second"}\n')

    found = read_texts([tmp_path / "one", tmp_path / "two", tmp_path / "lines.jsonl"])

    assert found == {
        "lines.jsonl#0": "first",
        "lines.jsonl#1": "second",
        "same.md": "of one",
        str(tmp_path / "two/same.md"): "of two",
    }


def test_of_held_out_texts_only_those_are_read(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")

    found = read_texts([tmp_path], held_out=0.2)

    assert 0 < len(found) < 20
    assert found.items() < read_texts([tmp_path]).items()


def test_paths_without_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n")

    with pytest.raises(DataError, match=r"no text in .*: pass files of UTF-8"):
        read_texts([tmp_path])
    with pytest.raises(DataError, match="matches no file"):
        read_texts([tmp_path / "missing"])
