"""Prepared data gives the same batches for ever, and damaged data are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.data.prepare import prepare
from nanochat.data.shards import Shards, _window_starts
from nanochat.errors import DataError, FormatError, VersionError
from nanochat.text.tokenizer import Tokenizer
from tests.data.streams import TOKENIZER, stream


def rewrite(data: Path, **changes: Any) -> None:
    path = data / "data.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


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
    inputs, targets = Shards(copy).batch(3, 2, 64)

    without_starts(copy, version)

    shards = Shards(copy)
    shards.verify()
    assert np.array_equal(shards.batch(3, 2, 64), (inputs, targets))
    with pytest.raises(DataError, match=r"has no index of its documents.*prepare them again"):
        _ = shards.document_starts


def test_verification_finds_a_changed_start(copy: Path) -> None:
    path = copy / "train-starts.npy"
    np.save(path, np.load(path) + 1)

    with pytest.raises(FormatError, match=r"train-starts\.npy: not the SHA-256"):
        Shards(copy).verify()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda starts: starts[:-1], "bytes, int64 of shape"),
        (lambda starts: starts + 1, "not the ascending starts"),
        (lambda starts: starts * 1000, "not the ascending starts"),
        (lambda starts: np.sort(np.where(starts > 99, 5, starts)), "not the ascending starts"),
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
