"""Records of JSON lines, Parquet and data sets are documents, and what cannot be read names its place."""

import gzip
import json
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from nanochat.data.documents import documents
from nanochat.data.index import DataIndex
from nanochat.data.prepare import prepare
from nanochat.errors import DataError
from tests.data.streams import TOKENIZER
from tests.training.runs import command

ROWS = [{"id": i, "text": f"é text {i}\n" * (1 + i % 3)} for i in range(300)]
TEXTS = [str(row["text"]) for row in ROWS]


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def zstd(path: Path, data: bytes) -> None:
    with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
        file.write(data)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "data.jsonl": lambda path: path.write_bytes(lines(ROWS)),
    "by_datasets.jsonl": lambda path: datasets.Dataset.from_list(ROWS).to_json(path),
    "data.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines(ROWS))),
    "data.jsonl.zst": lambda path: zstd(path, lines(ROWS)),
    "data.parquet": lambda path: parquet.write_table(
        pyarrow.Table.from_pylist(ROWS), path, row_group_size=70
    ),
    "by_datasets.parquet": lambda path: datasets.Dataset.from_list(ROWS).to_parquet(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_records_of_every_kind_of_file_are_documents(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)

    read = list(documents([tmp_path], held_out=0.2))

    assert [document.text for document in read] == TEXTS
    assert [document.name for document in read] == [f"{name}#{number}" for number in range(300)]
    assert 30 < sum(document.held_out for document in read) < 90


@pytest.mark.parametrize("name", WRITERS)
def test_a_link_says_what_kind_of_file_it_leads_to(name: str, tmp_path: Path) -> None:
    # As in the Hub's cache.
    WRITERS[name](tmp_path / name)
    (tmp_path / name).rename(tmp_path / "blob")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blob")

    read, both = (list(documents([each])) for each in (tmp_path / "snapshot", tmp_path))

    assert [document.text for document in read] == TEXTS
    assert read[0].place.startswith(str(tmp_path / "snapshot" / name))
    assert [document.text for document in both] == TEXTS


def test_records_that_are_appended_move_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(ROWS[:200]))
    before = {each.name: each.held_out for each in documents([path], held_out=0.2)}

    path.write_bytes(lines(ROWS))

    after = {each.name: each.held_out for each in documents([path], held_out=0.2)}
    assert before.items() <= after.items()


def test_text_is_in_the_field_that_is_named(tmp_path: Path) -> None:
    rows = [{"text": "not this", "content": f"but this {i}"} for i in range(3)]
    (tmp_path / "a.jsonl").write_bytes(lines([*rows, {"content": None}]))
    dropped: Counter[str] = Counter()

    read = documents([tmp_path], column="content", dropped=dropped)

    assert [document.text for document in read] == ["but this 0", "but this 1", "but this 2"]
    assert dropped == {"empty": 1}


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_half_of_a_character_is_no_text(chat: bool, tmp_path: Path) -> None:
    # As of programs that cut a text by its UTF-16 units.
    texts = ["a smile", "half of one \ud83d"]
    answers = [[{"role": "assistant", "content": text}] for text in texts]
    rows = [{"text": text, "messages": m} for text, m in zip(texts, answers, strict=True)]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))

    index = prepare([tmp_path], tmp_path / "out", TOKENIZER, chat=chat, held_out=0)

    assert index.dropped == {"not UTF-8": 1}


def test_of_a_table_only_the_column_with_the_text_is_read(tmp_path: Path) -> None:
    # Python has no date so late.
    times = pyarrow.array([2**60, 0], pyarrow.timestamp("us"))
    table = pyarrow.table({"time": times, "text": ["a", "b"]})
    parquet.write_table(table, tmp_path / "a.parquet")

    assert [document.text for document in documents([tmp_path])] == ["a", "b"]
    with pytest.raises(DataError, match=r"no field 'texts'.*: choose one of time, text with"):
        list(documents([tmp_path], column="texts"))


def test_a_line_that_is_too_long_is_left_out_and_the_others_keep_their_numbers(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([{"text": "a"}, {"text": "b" * 500}, {"text": "c"}]))
    dropped: Counter[str] = Counter()

    read = list(documents([tmp_path], max_file_bytes=99, dropped=dropped))

    assert [document.name for document in read] == ["a.jsonl#0", "a.jsonl#2"]
    assert dropped == {"larger than 99 bytes": 1}


def test_a_row_that_is_too_long_is_left_out(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["a", "é" * 50, "c"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    dropped: Counter[str] = Counter()

    read = list(documents([tmp_path], max_file_bytes=99, dropped=dropped))

    assert [document.text for document in read] == ["a", "c"]
    assert dropped == {"larger than 99 bytes": 1}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_memory_does_not_grow_with_the_file(kind: str, tmp_path: Path) -> None:
    rows = [{"text": f"{i} " + "a long text " * 2000} for i in range(400)]
    if kind == "jsonl":
        (tmp_path / "a.jsonl").write_bytes(lines(rows))
    else:
        table = pyarrow.Table.from_pylist(rows)
        parquet.write_table(table, tmp_path / "a.parquet", row_group_size=50)
    tracemalloc.start()

    count = sum(1 for _ in documents([tmp_path]))

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 400
    assert peak < 5_000_000 < sum(len(str(row["text"])) for row in rows)


BAD = {
    "a.jsonl": [
        (b'{"text": "a"}\n\n{"text": }\n', r"a\.jsonl, line 3: not valid JSON .*correct or remove"),
        (b'{"text": "a"}\n[1]\n', r"a\.jsonl, line 2: no JSON object"),
        (
            b'{"texts": "a", "id": 1}\n',
            r"line 1: no field 'text' \(did you mean texts\?\).*texts, id",
        ),
        (b'{"messages": []}\n', r"line 1: no field 'text': .* or pass --chat$"),
        (
            b'{"text": 5, "id": 1}\n',
            r"line 1: text is 5, not a text: choose another field of text, id",
        ),
        (b'\xff\xfe{"text"\n', r"a\.jsonl, line 1: not valid JSON"),
    ],
    "a.jsonl.gz": [
        (gzip.compress(lines(ROWS))[:-20], r"a\.jsonl\.gz: .*ended before.*copy it again"),
        (lines(ROWS), r"a\.jsonl\.gz: Not a gzipped file.*copy it again"),
    ],
    "a.jsonl.zst": [(lines(ROWS), r"a\.jsonl\.zst: .*copy it again")],
    "a.parquet": [
        (b"PAR1" + lines(ROWS), r"a\.parquet: .*copy it again"),
        (b"", r"a\.parquet: .*copy it again"),
    ],
}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [(name, data, message) for name, cases in BAD.items() for data, message in cases],
)
def test_what_cannot_be_read_is_named_with_its_place(
    name: str, data: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)

    with pytest.raises(DataError, match=message):
        list(documents([tmp_path]))


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    WRITERS["data.parquet"](path)
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(DataError, match=r"a\.parquet: .*copy it again"):
        list(documents([tmp_path]))


def test_a_table_with_bytes_that_are_no_text_is_named(tmp_path: Path) -> None:
    damaged = pyarrow.array([b"a\xff"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": damaged}), tmp_path / "a.parquet")

    with pytest.raises(DataError, match=r"a\.parquet: .*utf-8.*; copy it again or leave it out"):
        list(documents([tmp_path]))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in a directory, with a training split of two files and a test split."""
    root = tmp_path_factory.mktemp("dataset")
    half = len(ROWS) // 2
    for number, rows in enumerate((ROWS[:half], ROWS[half:])):
        datasets.Dataset.from_list(rows).to_parquet(root / f"train-{number:05d}-of-00002.parquet")
    datasets.Dataset.from_list([{"id": 0, "text": "of the test"}]).to_parquet(
        root / "test-00000-of-00001.parquet"
    )
    return root


def test_a_data_set_is_read_as_its_training_split(dataset: Path, tmp_path: Path) -> None:
    index = prepare([f"hub:{dataset}"], tmp_path / "out", 290, held_out=0.2)

    assert sum(split.files for split in index.splits.values()) == 300
    assert sum(split.bytes for split in index.splits.values()) == sum(
        len(text.encode()) for text in TEXTS
    )
    assert DataIndex.read(tmp_path / "out") == index


@pytest.mark.parametrize(
    ("name", "message"),
    [("{dataset}:other", "BuilderConfig 'other' not found"), ("nowhere", "nowhere")],
    ids=["configuration", "nothing"],
)
def test_a_data_set_that_is_not_there_is_refused(
    name: str, message: str, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = f"hub:{name.format(dataset=dataset)}"

    result = command("data", "prepare", name, "--out", "out", "--vocab-size", 300)

    assert result.returncode == 1
    assert message in result.stderr


def test_without_a_network_nothing_is_written_and_one_line_says_why(tmp_path: Path) -> None:
    words = ("data", "prepare", "hub:org/name", "--out", tmp_path / "out", "--vocab-size", 300)

    # Nobody listens there.
    result = command(*words, HF_ENDPOINT="http://127.0.0.1:9")

    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: hub:org/name: ")
    assert "the network be there" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["hub:", "hub::configuration"])
def test_a_data_set_without_a_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{name}: .*: the data set must be on the Hub"):
        prepare([name], tmp_path / "out", TOKENIZER)


def test_a_directory_has_no_revisions(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a directory, without revisions: leave out 'v1'"):
        prepare([f"hub:{dataset}"], tmp_path / "out", TOKENIZER, revision="v1")


def test_a_revision_without_a_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")

    with pytest.raises(DataError, match="revision='main' is of no data set"):
        prepare([tmp_path], tmp_path / "out", TOKENIZER, revision="main")
