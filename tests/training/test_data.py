"""Prepared data holds each document once, in one split, and gives the same batches for ever."""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.errors import DataError, FormatError, InputError, SaveError, VersionError
from nanochat.text.codec import BYTES
from nanochat.text.tokenizer import SPECIALS, Tokenizer
from nanochat.training.corpus import documents, find_files, is_held_out, position, prepare
from nanochat.training.data import Shards, _window_starts

WORDS = ["fn", "let", "mut", "struct", "impl", "(self)", "{\n", "}\n", "->", "u32", "é", "🙂"]
TOKENIZER = Tokenizer.train([" ".join(WORDS)] * 2, vocab_size=290)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty files of random words in two levels of directories."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("corpus")
    for index in range(60):
        path = root / f"crate{index % 5}" / f"file{index}.rs"
        path.parent.mkdir(exist_ok=True)
        path.write_text(" ".join(rng.choice(WORDS, size=50 + index)))
    return root


@pytest.fixture(scope="module")
def data(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data of the corpus, in shards of 1,009 tokens."""
    output = tmp_path_factory.mktemp("data") / "prepared"
    prepare([corpus / "**/*.rs"], output, TOKENIZER, held_out=0.2, shard_tokens=1009)
    return output


@pytest.fixture
def copy(corpus: Path, tmp_path: Path) -> Path:
    """Prepared data that a test may damage."""
    prepare([corpus], tmp_path / "copy", TOKENIZER, held_out=0.2)
    return tmp_path / "copy"


def stream(data: Path, split: str) -> list[int]:
    paths = sorted(data.glob(f"{split}-*.npy"))
    tokens: list[int] = np.concatenate([np.load(path) for path in paths]).tolist()
    return tokens


def rewrite(data: Path, **changes: Any) -> None:
    path = data / "data.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Documents


def test_a_glob_a_directory_and_a_file_find_the_same_files(corpus: Path) -> None:
    by_directory = find_files([corpus])

    assert len(by_directory) == 60
    assert find_files([corpus / "**/*.rs"]) == by_directory
    assert find_files([f"{corpus}/crate*/file*.rs"]) == by_directory
    assert find_files([corpus, corpus / "crate0/file0.rs"]) == by_directory


def test_names_are_relative_to_the_pattern(corpus: Path) -> None:
    below_one_crate = find_files([corpus / "crate1/*11.rs"])
    below_all_crates = find_files([corpus / "crate*/*11.rs"])

    assert [name for name, _ in below_one_crate] == ["file11.rs"]
    assert [name for name, _ in below_all_crates] == ["crate1/file11.rs"]


def test_documents_are_the_files_unchanged(corpus: Path) -> None:
    read = {document.path: document.text for document in documents([corpus])}

    assert read["crate3/file3.rs"] == (corpus / "crate3/file3.rs").read_text()
    assert list(read) == sorted(read)


def test_files_that_cannot_serve_are_left_out_with_a_count(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the same\n\ntext")
    (tmp_path / "b.txt").write_text("the same text\n")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "d.txt").write_text(" \n")
    (tmp_path / "e.txt").write_text("e" * 101)
    dropped: Counter[str] = Counter()

    read = list(documents([tmp_path], max_file_bytes=100, dropped=dropped))

    assert [document.path for document in read] == ["a.txt"]
    assert dropped == {"duplicate": 1, "not UTF-8": 1, "empty": 1, "larger than 100 bytes": 1}


def test_the_log_counts_what_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")

    with caplog.at_level(logging.WARNING):
        list(documents([tmp_path]))

    assert "left out 1 files: 1 not UTF-8" in caplog.text


@given(st.text(st.characters(codec="utf-8")), st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_larger_share_holds_out_the_same_files_and_more(name: str, a: float, b: float) -> None:
    assert is_held_out(name, min(a, b)) <= is_held_out(name, max(a, b))


def test_the_share_of_held_out_files_is_kept() -> None:
    held_out = [is_held_out(f"src/file{index}.rs", 0.1) for index in range(10_000)]

    # Four standard deviations of a binomial.
    assert abs(np.mean(held_out) - 0.1) < 0.012


def test_the_split_of_a_file_is_fixed_for_ever() -> None:
    assert position("lib.rs") == 0.6900514364006228
    assert is_held_out("lib.rs", 0.7)
    assert not is_held_out("lib.rs", 0.69)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        pytest.param([], "at least one path", id="no pattern"),
        pytest.param("src", "pass a list", id="one string"),
        pytest.param(["nothing/**/*.rs"], "matches no file below", id="no match"),
        pytest.param(["src/a**.rs/x"], "matches no file|is not a glob", id="stars in a name"),
    ],
)
def test_patterns_without_files_are_refused(patterns: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_files(patterns)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_outside_zero_to_one_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="pass 0 <= held_out < 1"):
        is_held_out("lib.rs", share)


# Preparation


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_a_split_is_its_documents_behind_bos(corpus: Path, data: Path, split: str) -> None:
    read = documents([corpus], held_out=0.2)

    texts = [document.text for document in read if document.held_out is (split == "held_out")]

    assert stream(data, split) == [
        token for text in texts for token in [TOKENIZER.bos, *TOKENIZER.encode(text)]
    ]


def test_the_index_counts_files_bytes_and_tokens(corpus: Path, data: Path) -> None:
    splits = Shards(data).index.splits
    train, held_out = splits["train"], splits["held_out"]

    assert train.files + held_out.files == 60
    assert train.bytes + held_out.bytes == sum(p.stat().st_size for p in corpus.rglob("*.rs"))
    assert (train.tokens, held_out.tokens) == (
        len(stream(data, "train")),
        len(stream(data, "held_out")),
    )


def test_all_shards_but_the_last_have_the_same_length(data: Path) -> None:
    lengths = [len(np.load(path)) for path in sorted(data.glob("train-*.npy"))]

    assert set(lengths[:-1]) == {1009}
    assert 1 <= lengths[-1] <= 1009


def test_preparing_twice_writes_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    first = prepare([corpus], tmp_path / "first", 300, held_out=0.2)
    second = prepare([corpus], tmp_path / "second", 300, held_out=0.2)

    assert first == second


def test_a_new_tokenizer_learns_from_training_files_only(tmp_path: Path) -> None:
    # "lib.rs" sits at 0.69, "main.rs" at 0.21.
    (tmp_path / "in").mkdir()
    (tmp_path / "in/lib.rs").write_text("training " * 20)
    (tmp_path / "in/main.rs").write_text("evaluation " * 20)

    prepare([tmp_path / "in"], tmp_path / "out", 300, held_out=0.5)

    pieces = Tokenizer.load(tmp_path / "out").pieces
    assert "Ġtraining" in pieces
    assert "Ġevaluation" not in pieces


def test_a_smaller_sample_trains_another_tokenizer(corpus: Path, tmp_path: Path) -> None:
    whole = prepare([corpus], tmp_path / "whole", 300, held_out=0.2)
    sample = prepare([corpus], tmp_path / "sample", 300, held_out=0.2, sample_bytes=3000)

    assert whole.tokenizer != sample.tokenizer


def test_prepared_data_is_replaced_on_request_only(corpus: Path, copy: Path) -> None:
    with pytest.raises(InputError, match="pass --overwrite, or overwrite=True"):
        prepare([corpus], copy, TOKENIZER)

    index = prepare([corpus], copy, TOKENIZER, held_out=0.3, overwrite=True)

    assert Shards(copy).index == index
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_a_directory_with_other_files_is_never_replaced(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")

    with pytest.raises(InputError, match="is not prepared data"):
        prepare([corpus], tmp_path, TOKENIZER, overwrite=True)


def test_a_large_vocabulary_is_stored_in_32_bits(corpus: Path, tmp_path: Path) -> None:
    # Every pair of bytes is a token.
    pairs = [(left, right) for left in BYTES for right in BYTES]
    many = Tokenizer([*SPECIALS, *BYTES, *map("".join, pairs)], pairs)
    assert many.vocab_size > 65_536

    index = prepare([corpus], tmp_path / "out", many, held_out=0.2, shard_tokens=1009)

    shards = Shards(tmp_path / "out")
    assert np.load(tmp_path / "out/train-00000.npy").dtype == np.dtype("<u4")
    assert json.loads((tmp_path / "out/data.json").read_text())["format"] == 2
    assert shards.index == index
    shards.verify()
    assert stream(tmp_path / "out", "train") == [
        token
        for document in documents([corpus], held_out=0.2)
        if not document.held_out
        for token in [many.bos, *many.encode(document.text)]
    ]


def test_a_small_vocabulary_is_written_as_older_versions_read_it(data: Path) -> None:
    assert np.load(data / "train-00000.npy").dtype == np.dtype("<u2")
    assert json.loads((data / "data.json").read_text())["format"] == 1


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text("  ")

    with pytest.raises(DataError, match="the files hold no text"):
        prepare([tmp_path / "in"], tmp_path / "out", TOKENIZER)

    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            {"held_out": 1e-9},
            "no text is held out at held_out=1e-09: pass a larger share",
            id="nothing held out",
        ),
        pytest.param({"held_out": 1 - 1e-9}, "no text is left to train on", id="all held out"),
    ],
)
def test_shares_that_leave_a_split_without_text_are_refused(
    corpus: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        prepare([corpus], tmp_path / "out", TOKENIZER, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"shard_tokens": 0}, "leaves no room", id="no shard length"),
        pytest.param({"sample_bytes": -5}, "sample_bytes=-5 leaves no room", id="no sample"),
        pytest.param({"max_file_bytes": -1}, "max_file_bytes=-1 leaves no room", id="no file"),
    ],
)
def test_options_that_cannot_work_are_refused(
    corpus: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare([corpus], tmp_path / "out", **({"tokenizer": TOKENIZER} | options))


def test_a_directory_that_cannot_be_written_is_named_once(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "below" / "out"

    with pytest.raises(SaveError) as raised:
        prepare([corpus], output, TOKENIZER)

    expected = f"cannot write {output}: Not a directory; free space or pass another path"
    assert str(raised.value) == expected


# Batches


@pytest.mark.parametrize("length", [1, 7, 64, 1009, 1100])
def test_targets_are_the_tokens_after_the_inputs(data: Path, length: int) -> None:
    train = np.array(stream(data, "train"))

    inputs, targets = Shards(data).batch(3, 2, length)

    windows = np.lib.stride_tricks.sliding_window_view(train, length + 1)
    assert inputs.shape == targets.shape == (2, length)
    assert (windows == np.append(inputs[0], targets[0, -1])).all(axis=1).any()
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])


def test_a_batch_depends_on_seed_and_step_only(data: Path) -> None:
    used = Shards(data, seed=5)
    used.batch(0, 4, 16)

    resumed = Shards(data, seed=5)

    assert np.array_equal(used.batch(9, 4, 16), resumed.batch(9, 4, 16))
    assert not np.array_equal(used.batch(9, 4, 16), used.batch(8, 4, 16))
    assert not np.array_equal(used.batch(9, 4, 16), Shards(data, seed=6).batch(9, 4, 16))


def test_the_order_of_the_windows_is_fixed_for_ever() -> None:
    starts = _window_starts(num_tokens=100, num_windows=9, length=10, seeds=(1, 2))

    assert starts.tolist() == [69, 9, 29, 39, 79, 89, 19, 59, 49]


def test_an_epoch_visits_each_window_once(data: Path) -> None:
    shards = Shards(data)
    num_windows = shards.num_windows(32)

    inputs, _ = shards.batch(0, num_windows, 32)

    train = np.array(stream(data, "train"))
    views = np.lib.stride_tricks.sliding_window_view(train, 32)
    starts = [np.flatnonzero((views == row).all(axis=1))[0] for row in inputs]
    assert np.diff(np.sort(starts)).tolist() == [32] * (num_windows - 1)


def test_epochs_differ_in_order(data: Path) -> None:
    shards = Shards(data)
    num_windows = shards.num_windows(32)

    assert not np.array_equal(shards.batch(0, num_windows, 32), shards.batch(1, num_windows, 32))


def test_a_batch_may_cross_the_end_of_an_epoch(data: Path) -> None:
    shards = Shards(data)
    num_windows = shards.num_windows(32)

    inputs, _ = shards.batch(0, num_windows + 1, 32)

    assert np.array_equal(inputs[-1], shards.batch(num_windows, 1, 32)[0][0])


@given(st.integers(1, 60), st.integers(0, 2**40), st.integers(0, 3), st.data())
def test_windows_of_any_length_lie_in_the_stream(
    length: int, seed: int, epoch: int, draw: st.DataObject
) -> None:
    num_tokens = draw.draw(st.integers(length + 1, 200))
    num_windows = max(1, (num_tokens - length) // length)

    starts = _window_starts(num_tokens, num_windows, length, (seed, epoch))

    assert starts.min() >= 0
    assert starts.max() + length + 1 <= num_tokens
    assert len(set(starts.tolist())) == num_windows


def test_the_longest_window_is_the_whole_stream(data: Path) -> None:
    shards = Shards(data, "held_out")

    inputs, targets = shards.batch(0, 1, shards.num_tokens - 1)

    assert [*inputs[0], targets[0, -1]] == stream(data, "held_out")


def test_evaluation_reads_the_stream_once_in_order(data: Path) -> None:
    shards = Shards(data, "held_out")

    batches = list(shards.windows(3, 50))

    targets = np.concatenate([targets.ravel() for _, targets, _ in batches])
    assert targets.tolist() == stream(data, "held_out")[1 : len(targets) + 1]
    assert shards.num_tokens - 1 - len(targets) < 50
    assert {len(inputs) for inputs, _, _ in batches[:-1]} == {3}


def test_evaluation_counts_the_bytes_of_the_targets(data: Path) -> None:
    _, targets, num_bytes = next(Shards(data, "held_out").windows(2, 200))

    texts = [TOKENIZER.decode_bytes(row) for row in targets.tolist()]
    assert num_bytes.tolist() == [len(text) for text in texts]


@pytest.mark.parametrize(
    ("step", "batch_size", "length", "message"),
    [
        pytest.param(-1, 1, 8, "pass step >= 0", id="negative step"),
        pytest.param(0, 0, 8, "batch_size >= 1", id="empty batch"),
        pytest.param(0, 1, 0, "no window of 0 tokens", id="empty window"),
        pytest.param(0, 1, 10**9, "no window of 1000000000 tokens", id="long window"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused(
    data: Path, step: int, batch_size: int, length: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Shards(data).batch(step, batch_size, length)


def test_evaluation_in_batches_of_nothing_is_refused(data: Path) -> None:
    with pytest.raises(DataError, match="batch_size=0"):
        next(Shards(data).windows(0, 8))


# Damaged data


def test_a_directory_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pass a directory that `prepare` has written"):
        Shards(tmp_path)


def test_an_empty_split_is_refused(corpus: Path, tmp_path: Path) -> None:
    prepare([corpus], tmp_path / "data", TOKENIZER, held_out=0)

    with pytest.raises(DataError, match="split 'held_out' is empty"):
        Shards(tmp_path / "data", "held_out")


def test_an_unknown_split_is_refused(data: Path) -> None:
    with pytest.raises(DataError, match="unknown split 'test'"):
        Shards(data, "test")  # type: ignore[arg-type] # the mistake under test


def test_a_newer_index_asks_for_an_upgrade(copy: Path) -> None:
    rewrite(copy, format=3)

    with pytest.raises(VersionError, match="upgrade nanochat-ternary"):
        Shards(copy)


SPLIT = {"files": 1, "bytes": 1, "tokens": 1, "shards": []}
SHARD = {"name": "train-00000.npy", "tokens": 1, "bytes": 130, "sha256": ""}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"format": "1"}, id="format"),
        pytest.param({"splits": []}, id="no splits"),
        pytest.param({"splits": {"train": SPLIT}}, id="one split"),
        pytest.param({"splits": {"train": SPLIT, "held_out": SPLIT}}, id="wrong sum"),
        pytest.param({"splits": {"train": SPLIT | {"shards": 1}}}, id="shards"),
        pytest.param(
            {"splits": {"train": SPLIT | {"shards": [SHARD | {"tokens": -1}]}}}, id="count"
        ),
        pytest.param(
            {"splits": {"train": SPLIT | {"shards": [SHARD | {"name": "/x"}]}}}, id="name"
        ),
        pytest.param({"splits": {"train": SPLIT | {"shards": [SHARD | {"sha256": 1}]}}}, id="hash"),
        pytest.param({"vocab_size": None}, id="vocabulary"),
        pytest.param({"surprise": 1}, id="unknown field"),
    ],
)
def test_a_damaged_index_is_refused(copy: Path, changes: dict[str, Any]) -> None:
    rewrite(copy, **changes)

    with pytest.raises(FormatError, match=r"data\.json: .*prepare the data again"):
        Shards(copy)


def test_an_index_that_is_not_json_is_refused(copy: Path) -> None:
    (copy / "data.json").write_text('{"format": 1')

    with pytest.raises(FormatError, match=r"data\.json: not valid JSON"):
        Shards(copy)


def test_a_truncated_shard_is_refused_at_open(copy: Path) -> None:
    path = copy / "train-00000.npy"
    path.write_bytes(path.read_bytes()[:-2])

    with pytest.raises(FormatError, match=r"train-00000\.npy: "):
        Shards(copy)


def test_a_missing_shard_is_refused_at_open(copy: Path) -> None:
    (copy / "train-00000.npy").unlink()

    with pytest.raises(FormatError, match=r"train-00000\.npy: .*No such file"):
        Shards(copy)


def test_a_shard_of_another_type_is_refused_at_open(copy: Path) -> None:
    path = copy / "train-00000.npy"
    np.save(path, np.load(path).astype(np.int16))

    with pytest.raises(FormatError, match="int16 of shape"):
        Shards(copy)


def test_verification_finds_one_changed_token(copy: Path) -> None:
    path = copy / "train-00000.npy"
    tokens = np.load(path)
    tokens[17] ^= 1
    np.save(path, tokens)
    shards = Shards(copy)

    with pytest.raises(FormatError, match="not the SHA-256"):
        shards.verify()


def test_verification_accepts_what_prepare_wrote(data: Path) -> None:
    Shards(data).verify()


def test_a_token_outside_the_vocabulary_is_refused(copy: Path) -> None:
    path = copy / "train-00000.npy"
    np.save(path, np.full_like(np.load(path), 60_000))
    shards = Shards(copy)

    with pytest.raises(FormatError, match="token 60000 near position"):
        shards.batch(0, 1, 8)


def test_another_tokenizer_is_refused(copy: Path) -> None:
    Tokenizer.train(["abc"], 263).save(copy)

    with pytest.raises(FormatError, match="is not the tokenizer that wrote the tokens"):
        Shards(copy)


def test_data_in_the_directory_of_their_text_are_no_part_of_it(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.rs").write_text(f"fn f{number}() {{}}\n" * 9)

    first = prepare([tmp_path], tmp_path / "data", TOKENIZER, held_out=0.2)
    second = prepare([tmp_path], tmp_path / "data", TOKENIZER, held_out=0.2, overwrite=True)

    assert sum(split.files for split in first.splits.values()) == 20
    assert first == second
