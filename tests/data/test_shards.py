"""Prepared data gives the same batches for ever, and damaged data are refused."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nanochat.data.batch import Batch, Layout
from nanochat.data.prepare import prepare
from nanochat.data.shards import Shards
from nanochat.data.windows import window_starts
from nanochat.errors import DataError, FormatError, VersionError
from nanochat.text.tokenizer import Tokenizer
from tests.data.streams import TOKENIZER, stream

LAYOUTS = [
    Layout(length=64),
    Layout(length=64, document_masks=True),
    Layout(length=64, packing="best-fit"),
]
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=["windows", "masked", "packed"])


def rewrite(data: Path, **changes: Any) -> None:
    path = data / "data.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rows(batch: Batch) -> NDArray[np.int64]:
    """The windows of a batch with the token after each."""
    return np.append(batch.inputs, batch.targets[:, -1:], axis=1)


@pytest.mark.parametrize("length", [1, 7, 64, 1009, 1100])
def test_targets_are_the_tokens_after_the_inputs(data: Path, length: int) -> None:
    train = np.array(stream(data, "train"))

    batch = Shards(data).batch(3, 2, Layout(length=length))

    windows = np.lib.stride_tricks.sliding_window_view(train, length + 1)
    assert batch.inputs.shape == batch.targets.shape == (2, length)
    assert (windows == rows(batch)[0]).all(axis=1).any()
    assert np.array_equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    assert batch.segments is None


@each_layout
def test_a_batch_depends_on_seed_and_step_only(data: Path, layout: Layout) -> None:
    used = Shards(data, seed=5)
    used.batch(0, 4, layout)

    resumed = Shards(data, seed=5)

    first = rows(used.batch(9, 4, layout))
    assert np.array_equal(first, rows(resumed.batch(9, 4, layout)))
    assert not np.array_equal(first, rows(used.batch(8, 4, layout)))
    assert not np.array_equal(first, rows(Shards(data, seed=6).batch(9, 4, layout)))


def test_the_order_of_the_windows_is_fixed_for_ever() -> None:
    starts = window_starts(num_tokens=100, num_windows=9, length=10, seeds=(1, 2))

    assert starts.tolist() == [69, 9, 29, 39, 79, 89, 19, 59, 49]


def test_an_epoch_visits_each_window_once(data: Path) -> None:
    shards, layout = Shards(data), Layout(length=32)
    num_windows = shards.num_sequences(layout)

    batch = shards.batch(0, num_windows, layout)

    train = np.array(stream(data, "train"))
    views = np.lib.stride_tricks.sliding_window_view(train, 32)
    starts = [np.flatnonzero((views == row).all(axis=1))[0] for row in batch.inputs]
    assert np.diff(np.sort(starts)).tolist() == [32] * (num_windows - 1)


@each_layout
def test_epochs_differ_in_order(data: Path, layout: Layout) -> None:
    shards = Shards(data)
    count = shards.num_sequences(layout)

    first, second = (rows(shards.batch(epoch, count, layout)) for epoch in (0, 1))

    assert not np.array_equal(first, second)


@each_layout
def test_a_batch_may_cross_the_end_of_an_epoch(data: Path, layout: Layout) -> None:
    shards = Shards(data)
    count = shards.num_sequences(layout)

    batch = shards.batch(0, count + 1, layout)

    assert np.array_equal(rows(batch)[-1:], rows(shards.batch(count, 1, layout)))


@given(st.integers(1, 60), st.integers(0, 2**40), st.integers(0, 3), st.data())
def test_windows_of_any_length_lie_in_the_stream(
    length: int, seed: int, epoch: int, draw: st.DataObject
) -> None:
    num_tokens = draw.draw(st.integers(length + 1, 200))
    num_windows = max(1, (num_tokens - length) // length)

    starts = window_starts(num_tokens, num_windows, length, (seed, epoch))

    assert starts.min() >= 0
    assert starts.max() + length + 1 <= num_tokens
    assert len(set(starts.tolist())) == num_windows


def test_the_longest_window_is_the_whole_stream(data: Path) -> None:
    shards = Shards(data, "held_out")

    batch = shards.batch(0, 1, Layout(length=shards.num_tokens - 1))

    assert rows(batch)[0].tolist() == stream(data, "held_out")


def test_documents_in_a_masked_window_are_numbered_from_its_start(data: Path) -> None:
    layout = Layout(length=300, document_masks=True)

    batch = Shards(data).batch(1, 4, layout)

    begins = batch.inputs == TOKENIZER.bos
    begins[:, 0] = False
    assert begins.sum() > 4
    assert batch.segments is not None
    assert np.array_equal(batch.segments, begins.cumsum(axis=1))
    assert np.array_equal(rows(batch), rows(Shards(data).batch(1, 4, Layout(length=300))))


@pytest.mark.parametrize("length", [7, 64, 100, 1009])
def test_an_epoch_of_packed_documents_has_every_token_and_the_one_after_it(
    data: Path, length: int
) -> None:
    shards, layout = Shards(data), Layout(length=length, packing="best-fit")
    train = stream(data, "train")

    batch = shards.batch(0, shards.num_sequences(layout), layout)

    filled = batch.targets >= 0
    pairs = zip(batch.inputs[filled].tolist(), batch.targets[filled].tolist(), strict=True)
    # Behind the last document comes what comes behind the others.
    assert Counter(pairs) == Counter(pairwise([*train, TOKENIZER.bos]))
    assert (batch.inputs[~filled] == TOKENIZER.pad).all()


def test_packed_documents_are_whole_and_have_numbers_of_their_own(data: Path) -> None:
    shards, layout = Shards(data), Layout(length=250, packing="best-fit")
    train = np.array(stream(data, "train"))
    documents = [row.tolist() for row in np.split(train, shards.document_starts[1:])]

    batch = shards.batch(0, shards.num_sequences(layout), layout)

    assert batch.segments is not None
    found = [
        tokens[numbers == number].tolist()
        for tokens, numbers in zip(batch.inputs, batch.segments, strict=True)
        for number in np.unique(numbers)
    ]
    assert max(map(len, documents)) <= 250
    assert sorted(each for each in found if each[0] != TOKENIZER.pad) == sorted(documents)


def test_evaluation_reads_the_stream_once_in_order(data: Path) -> None:
    shards = Shards(data, "held_out")

    batches = [batch for batch, _ in shards.in_order(3, Layout(length=50))]

    targets = np.concatenate([batch.targets.ravel() for batch in batches])
    assert targets.tolist() == stream(data, "held_out")[1 : len(targets) + 1]
    assert shards.num_tokens - 1 - len(targets) < 50
    assert {len(batch.inputs) for batch in batches[:-1]} == {3}


@each_layout
def test_evaluation_counts_the_bytes_of_the_targets(data: Path, layout: Layout) -> None:
    batch, num_bytes = next(Shards(data, "held_out").in_order(2, layout))

    texts = [TOKENIZER.decode_bytes(row[row >= 0]) for row in batch.targets]
    assert num_bytes.tolist() == [len(text) for text in texts]


def test_evaluation_of_packed_documents_reads_all_of_them(data: Path) -> None:
    shards = Shards(data, "held_out")
    layout = Layout(length=64, packing="best-fit")

    batches = [batch for batch, _ in shards.in_order(3, layout)]

    assert sum(len(batch.inputs) for batch in batches) == shards.num_in_order(layout)
    assert sum(int((batch.targets >= 0).sum()) for batch in batches) == shards.num_tokens


def test_a_text_that_is_shorter_than_a_window_is_evaluated_as_one(data: Path) -> None:
    shards = Shards(data, "held_out")

    ((batch, _),) = shards.in_order(2, Layout(length=10**6))

    assert rows(batch).tolist() == [stream(data, "held_out")]


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
        Shards(data).batch(step, batch_size, Layout(length=length))


def test_evaluation_in_batches_of_nothing_is_refused(data: Path) -> None:
    with pytest.raises(DataError, match="batch_size=0"):
        next(Shards(data).in_order(0, Layout(length=8)))


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
    rewrite(copy, format=4)

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
        pytest.param({"splits": {"train": SPLIT | {"starts": SHARD}}}, id="starts"),
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


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(lambda data: data[:-2], id="the last token"),
        pytest.param(lambda _: b"", id="everything"),
        pytest.param(lambda data: b"PK\x03\x04" + data[4:], id="the first bytes"),
    ],
)
def test_a_damaged_shard_is_refused_at_open(copy: Path, cut: Callable[[bytes], bytes]) -> None:
    path = copy / "train-00000.npy"
    path.write_bytes(cut(path.read_bytes()))

    with pytest.raises(FormatError, match=r"train-00000\.npy: .*; copy or prepare it again"):
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


def test_another_tokenizer_is_refused(copy: Path) -> None:
    Tokenizer.train(["abc"], 263).save(copy)

    with pytest.raises(FormatError, match="is not the tokenizer that wrote the tokens"):
        Shards(copy)


def without_starts(data: Path, version: int) -> None:
    """Make of prepared data what was written before documents had an index."""
    splits = json.loads((data / "data.json").read_text())["splits"]
    for name, split in splits.items():
        (data / f"{name}-starts.npy").unlink()
        del split["starts"]
    rewrite(data, format=version, splits=splits)


@pytest.mark.parametrize("version", [1, 2])
def test_data_of_before_documents_had_an_index_give_the_same_windows(
    copy: Path, version: int
) -> None:
    windows = rows(Shards(copy).batch(3, 2, Layout(length=64)))

    without_starts(copy, version)

    shards = Shards(copy)
    shards.verify()
    assert np.array_equal(rows(shards.batch(3, 2, Layout(length=64))), windows)
    with pytest.raises(DataError, match=r"has no index of its documents.*prepare them again"):
        shards.batch(0, 1, Layout(length=64, packing="best-fit"))


def test_verification_finds_a_changed_start(copy: Path) -> None:
    path = copy / "train-starts.npy"
    np.save(path, np.load(path) + 1)

    with pytest.raises(FormatError, match=r"train-starts\.npy: not the SHA-256"):
        Shards(copy).verify()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda starts: starts[:-1], "bytes, int64 of shape"),
        (lambda starts: starts + 1, "not ascending places"),
        (lambda starts: starts * 1000, "not ascending places"),
        (lambda starts: np.sort(np.where(starts > 99, 5, starts)), "not ascending places"),
    ],
    ids=["truncated", "late", "beyond the end", "twice"],
)
def test_an_index_of_documents_that_cannot_be_is_refused(
    copy: Path, changed: Any, message: str
) -> None:
    path = copy / "train-starts.npy"
    np.save(path, changed(np.load(path)))

    with pytest.raises(FormatError, match=message):
        _ = Shards(copy).document_starts
