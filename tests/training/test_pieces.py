"""A corpus of one file, or of too few to hold one of them out, is held out by pieces, and a model trains on it."""

import logging
from pathlib import Path

import pytest

from nanochat.data.documents import Document, documents
from nanochat.data.prepare import prepare
from nanochat.data.shards import Shards
from nanochat.errors import DataError
from nanochat.text.tokenizer import Tokenizer
from nanochat.training.loop import Trainer
from tests.training.runs import command_here, entries, options, quiet, recipe

LINE = "fn main() {}\n"
TOKENIZER = Tokenizer.train([LINE] * 2, vocab_size=270)


def pieces(path: Path, share: float) -> list[Document]:
    return list(documents([path], held_out=share, unit="piece"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of 400 lines."""
    path = tmp_path / "one.txt"
    path.write_text(LINE * 400)
    return path


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_the_last_share_of_a_file_is_held_out_in_whole_lines(file: Path, share: float) -> None:
    train, held_out = pieces(file, share)

    assert (train.held_out, held_out.held_out) == (False, True)
    assert train.text + held_out.text == file.read_text()
    assert held_out.text.startswith(LINE)
    assert len(held_out.text) / 5200 == pytest.approx(share, abs=len(LINE) / 5200)


def test_pieces_lie_all_over_a_long_text(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("".join(f"line {number}\n" for number in range(400_000)))

    found = pieces(path, 0.02)

    held_out = [document.text for document in found if document.held_out]
    assert "".join(document.text for document in found) == path.read_text()
    assert all(document.text.startswith("line ") for document in found)
    assert len(held_out) == 5
    assert sum(map(len, held_out)) / path.stat().st_size == pytest.approx(0.02, rel=0.01)
    assert len({document.name for document in found}) == 5


def test_a_text_without_lines_is_cut_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    path.write_text("word " * 2000)

    train, held_out = pieces(path, 0.1)

    assert (len(train.text), len(held_out.text)) == (9000, 1000)


def test_a_long_line_does_not_swell_the_share(tmp_path: Path) -> None:
    path = tmp_path / "paragraphs.txt"
    path.write_text(("word " * 160 + "\n") * 4)

    _, held_out = pieces(path, 0.02)

    assert len(held_out.text) <= 2 * round(0.02 * path.stat().st_size)


def test_one_file_is_prepared_with_every_share_that_leaves_text_on_both_sides(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for share in (0.02, 0.5, 0.9):
        index = prepare([file], tmp_path / f"{share}", TOKENIZER, held_out=share)

        assert min(index.splits["train"].tokens, index.splits["held_out"].tokens) > 10
    assert "too few documents to hold some of them out (documents: 1, share: 0.5)" in caplog.text


def test_files_of_which_none_is_held_out_are_held_out_by_pieces(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "in" / name).write_text(f"{name}: {LINE}" * 100)
    # It alone would be held out, and it cannot be read.
    (tmp_path / "in" / "main.rs").write_bytes(b"\xff")

    splits = prepare([tmp_path / "in"], tmp_path / "out", TOKENIZER, held_out=0.22).splits

    assert (splits["train"].files, splits["held_out"].files) == (3, 3)


def test_files_are_held_out_whole_where_they_can_be(tmp_path: Path) -> None:
    # "lib.rs" sits at 0.69, "main.rs" at 0.21.
    (tmp_path / "in").mkdir()
    (tmp_path / "in/lib.rs").write_text("struct S;\n" * 20)
    (tmp_path / "in/main.rs").write_text(LINE * 20)

    splits = prepare([tmp_path / "in"], tmp_path / "out", TOKENIZER, held_out=0.5).splits

    assert (splits["train"].bytes, splits["held_out"].bytes) == (200, 260)


def test_a_new_tokenizer_learns_from_the_pieces_to_train_on(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("training\n" * 90 + "evaluation\n" * 10)

    prepare([path], tmp_path / "out", 290, held_out=0.1)

    pieces = Tokenizer.load(tmp_path / "out").pieces
    assert "training" in pieces
    assert "evaluation" not in pieces


def test_a_sample_of_a_long_text_is_a_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A long text is cut into sections, which are a sixteenth as long here.
    monkeypatch.setattr("nanochat.data.splits._SECTION_CHARACTERS", 2**16)
    # As a file, it would be held out.
    path = tmp_path / "main.rs"
    path.write_text("".join(f"line {number}\n" for number in range(40_000)))

    whole = prepare([path], tmp_path / "whole", 290, held_out=0.22)
    sample = prepare([path], tmp_path / "sample", 290, held_out=0.22, sample_bytes=200_000)

    assert whole.tokenizer != sample.tokenizer


@pytest.mark.parametrize(
    ("share", "message"),
    [(1e-9, "no text is held out at held_out=1e-09"), (1 - 1e-9, "no text is left to train on")],
)
def test_a_share_that_leaves_no_text_on_a_side_is_refused(
    share: float, message: str, file: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        prepare([file], tmp_path / "out", TOKENIZER, held_out=share)


def test_data_that_cannot_be_trained_on_says_so(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        prepare([file], tmp_path / "out", TOKENIZER, held_out=0)

    assert "nothing is held out: to train on this data" in caplog.text
    assert "too few documents" not in caplog.text


@pytest.mark.parametrize("held_out", [[], ["--held-out", "0.5"]], ids=["default", "half"])
def test_a_model_trains_on_one_file(held_out: list[str], file: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    small = ("steps=2", "schedule.warmup_steps=0", "data.batch_size=1", "model.num_layers=1")
    settings = [word for setting in small for word in ("--set", setting)]

    prepared = command_here("data", "prepare", file, "--out", data, "--vocab-size", 270, *held_out)
    trained = command_here(*options(data, run), "--preset", "tiny", *settings)

    assert (prepared.returncode, trained.returncode) == (0, 0), prepared.stderr + trained.stderr
    num_tokens = Shards(data, "held_out").num_tokens
    # A short text is one sequence.
    scored = 512 * 2 if held_out else num_tokens - 1
    assert entries(run)[-1]["held_out_tokens"] == scored < num_tokens


def test_text_that_is_shorter_than_a_sequence_is_named_before_the_first_step(
    file: Path, tmp_path: Path
) -> None:
    file.write_text(LINE * 20)
    prepare([file], tmp_path / "data", TOKENIZER, held_out=0.5)

    with pytest.raises(DataError, match=r"data: no window of 512 tokens in .* from 1 to 60 "):
        Trainer(
            recipe(data={"length": 512}), tmp_path / "data", tmp_path / "run", compile_model=False
        )


def test_held_out_text_that_is_shorter_than_a_sequence_is_evaluated_as_one(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepare([file], tmp_path / "data", TOKENIZER, held_out=0.02)

    run = Trainer(
        recipe(data={"length": 256}, steps=1, schedule={"warmup_steps": 0, "decay_steps": 0}),
        tmp_path / "data",
        tmp_path / "run",
        num_threads=1,
        compile_model=False,
    )

    assert run.run(quiet)
    assert "is evaluated as one sequence, shorter than the 256" in caplog.text
    assert entries(tmp_path / "run")[-1]["held_out_tokens"] == run.held_out.num_tokens - 1
