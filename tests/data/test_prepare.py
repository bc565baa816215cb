"""Preparation writes all documents as one stream of tokens for each split, or nothing."""

import json
import logging
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanochat.data import encoding
from nanochat.data.documents import Document, documents
from nanochat.data.index import DataIndex
from nanochat.data.prepare import prepare
from nanochat.data.shards import Shards
from nanochat.errors import DataError, InputError, SaveError
from nanochat.text.codec import BYTES
from nanochat.text.tokenizer import SPECIALS, Tokenizer
from tests.data.streams import TOKENIZER, WORDS, stream


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
    lengths = [len(np.load(path)) for path in sorted(data.glob("train-0*.npy"))]

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


def test_a_project_with_a_file_of_that_name_is_never_replaced(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('{"mine": 1}')

    with pytest.raises(InputError, match="is not prepared data: pass another path, or delete it"):
        prepare([corpus], tmp_path, TOKENIZER, held_out=0.2, overwrite=True)

    assert (tmp_path / "data.json").read_text() == '{"mine": 1}'


class Meanwhile(logging.Filter):
    """As another process does: something is written while data are prepared, namely before they are told of."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def filter(self, _: logging.LogRecord) -> bool:
        self._path.parent.mkdir(exist_ok=True)
        self._path.write_text("mine")
        return True


def test_what_appears_meanwhile_is_not_replaced(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    note = tmp_path / "out" / "note"

    with caplog.filtering(Meanwhile(note)), pytest.raises(InputError, match="exists and is not"):
        prepare([corpus], tmp_path / "out", TOKENIZER, held_out=0)

    assert "nothing is held out" in caplog.text
    assert note.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_to_a_directory_stays_one(corpus: Path, tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "disk" / "data"
    link.symlink_to(target)

    prepare([corpus], link, TOKENIZER, held_out=0.2)
    again = prepare([corpus], link, TOKENIZER, held_out=0.3, overwrite=True)

    assert link.is_symlink()
    assert DataIndex.read(target) == again
    assert [path.name for path in target.parent.iterdir()] == ["data"]


def test_what_cannot_be_replaced_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)

    with pytest.raises(InputError, match="cannot be replaced: pass a directory below it"):
        prepare(["nothing"], tmp_path, TOKENIZER)


def test_a_large_vocabulary_is_stored_in_32_bits(corpus: Path, tmp_path: Path) -> None:
    # Every pair of bytes is a token.
    pairs = [(left, right) for left in BYTES for right in BYTES]
    many = Tokenizer([*SPECIALS, *BYTES, *map("".join, pairs)], pairs)
    assert many.vocab_size > 65_536

    index = prepare([corpus], tmp_path / "out", many, held_out=0.2, shard_tokens=1009)

    shards = Shards(tmp_path / "out")
    assert np.load(tmp_path / "out/train-00000.npy").dtype == np.dtype("<u4")
    assert shards.index == index
    shards.verify()
    assert stream(tmp_path / "out", "train") == [
        token
        for document in documents([corpus], held_out=0.2)
        if not document.held_out
        for token in [many.bos, *many.encode(document.text)]
    ]


def test_a_small_vocabulary_is_stored_in_16_bits(data: Path) -> None:
    assert np.load(data / "train-00000.npy").dtype == np.dtype("<u2")


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_document_starts_where_the_index_says(data: Path, split: Any) -> None:
    starts = Shards(data, split).document_starts

    assert (
        starts.tolist() == np.flatnonzero(np.array(stream(data, split)) == TOKENIZER.bos).tolist()
    )


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


@pytest.mark.parametrize(
    ("output", "vocab_size", "error", "message"),
    [
        ("out", 100, InputError, "cannot train a vocabulary of 100 tokens"),
        ("a.jsonl/below/out", 300, SaveError, "cannot write .*: Not a directory"),
    ],
    ids=["vocabulary", "output"],
)
def test_what_cannot_be_is_refused_before_all_is_read(
    output: str, vocab_size: int, error: type[Exception], message: str, tmp_path: Path
) -> None:
    rows = [json.dumps({"text": f"text {number}"}) for number in range(50)]
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, "damaged"]))

    with pytest.raises(error, match=message):
        prepare([tmp_path / "a.jsonl"], tmp_path / output, vocab_size, held_out=0.2)


def test_a_directory_that_cannot_be_written_is_named_once(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "below" / "out"

    with pytest.raises(SaveError) as raised:
        prepare([corpus], output, TOKENIZER)

    expected = f"cannot write {output}: Not a directory; free space or pass another path"
    assert str(raised.value) == expected


def test_data_in_the_directory_of_their_text_are_no_part_of_it(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.rs").write_text(f"fn f{number}() {{}}\n" * 9)

    first = prepare([tmp_path], tmp_path / "data", TOKENIZER, held_out=0.2)
    second = prepare([tmp_path], tmp_path / "data", TOKENIZER, held_out=0.2, overwrite=True)

    assert sum(split.files for split in first.splits.values()) == 20
    assert first == second


def test_what_a_killed_process_left_is_told_and_no_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(20):
        (tmp_path / f"{number}.rs").write_text(f"fn f{number}() {{}}\n" * 9)
    left = tmp_path / ".data.abcd_123" / "new"
    left.mkdir(parents=True)
    (left / "tokenizer.json").write_text("no text")

    index = prepare([tmp_path], tmp_path / "data", TOKENIZER, held_out=0.2)

    assert sum(split.files for split in index.splits.values()) == 20
    assert f"{left.parent} is left of a process that did not end" in caplog.text


@pytest.mark.parametrize("kind", ["text", "records", "chats"])
def test_processes_write_the_same_bytes_whatever_their_number(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "in"
    folder.mkdir()
    # Of which some are there twice, and some nearly.
    texts = [" ".join(rng.choice(WORDS, 300 + number % 200)) for number in range(600)] * 2
    texts[-100:] = [f"{text} more" for text in texts[:100]]
    if kind == "text":
        for number, text in enumerate(texts):
            (folder / f"{number}.txt").write_text(text)
    else:
        rows = [{"text": text, "messages": chat(text)} for text in texts]
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    found = [
        prepare(
            [folder],
            tmp_path / f"{processes}",
            TOKENIZER,
            held_out=0.2,
            shard_tokens=10_009,
            chat=kind == "chats",
            near_duplicates=0.8,
            processes=processes,
        )
        for processes in (1, 3)
    ]

    assert found[0] == found[1]
    assert found[0].dropped == {"duplicate": 500, "near-duplicate": 100}


def test_what_is_left_out_is_written_in_one_order(tmp_path: Path) -> None:
    rows = [{"text": text} for text in ("a", "a", "", "b")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    for processes in (1, 2):
        output = tmp_path / f"{processes}"
        prepare([tmp_path / "a.jsonl"], output, TOKENIZER, held_out=0, processes=processes)

    one, two = ((tmp_path / name / "data.json").read_text() for name in ("1", "2"))
    assert one == two


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "say"}, {"role": "assistant", "content": text}]


def test_tokens_take_their_own_memory_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_BATCH_CHARACTERS", 10_000)
    text = " ".join(np.random.default_rng(0).choice(WORDS, 1000))
    read = [Document(name="", text=text, held_out=False) for _ in range(100)]
    tracemalloc.start()

    found = list(encoding._encode(read, TOKENIZER))

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * sum(each.tokens.nbytes for each in found)


def test_what_a_process_cannot_read_is_named_as_if_there_were_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": }\n')

    with pytest.raises(DataError, match=r"a\.jsonl, line 2: not valid JSON"):
        prepare([tmp_path], tmp_path / "out", TOKENIZER, held_out=0, processes=2)


# A process ends as soon as it has something to read.
KILLED = """
import os, sys
from pathlib import Path
from nanochat.data import encoding
from nanochat.data.index import DataIndex
from nanochat.data.prepare import prepare
from nanochat.text.tokenizer import Tokenizer

if __name__ == "__main__":
    prepare([sys.argv[1]], sys.argv[2], Tokenizer.load(sys.argv[3]), held_out=0.2, processes=2)
else:
    encoding._encode = lambda *_: os.kill(os.getpid(), 9)
"""


def test_a_process_that_dies_is_an_error_and_no_hang(
    corpus: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    words = [tmp_path / "killed.py", corpus, tmp_path / "out", data]

    result = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )

    last = result.stderr.splitlines()[-1]
    assert "a process that reads text died" in last
    assert "pass fewer --processes" in last
    assert not (tmp_path / "out").exists()


# What a shell starts in the background ignores Ctrl-C, and so do these tests' processes then.
HEARING = """
import signal
from nanochat.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(number: signal.Signals, data: Path, tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"{row} " + " ".join(WORDS) * 20}) for row in range(20_000)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    words = ["prepare", tmp_path / "a.jsonl", "--out", tmp_path / "out", "--tokenizer", data]
    run = subprocess.Popen(
        [sys.executable, "-c", HEARING, "data", *map(str, words)], stderr=subprocess.DEVNULL
    )
    while not [*tmp_path.glob(".out.*/new")]:
        assert run.poll() is None
        time.sleep(0.01)

    run.send_signal(number)

    assert run.wait(60) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


# Every process begins as the script does, and may not start others.
UNGUARDED = """
import sys
from nanochat.data.prepare import prepare
from nanochat.text.tokenizer import Tokenizer

prepare([sys.argv[1]], sys.argv[2], Tokenizer.load(sys.argv[3]), held_out=0.2, processes=2)
"""


def test_a_process_that_does_not_begin_is_an_error_and_no_hang(
    corpus: Path, tmp_path: Path
) -> None:
    pairs = [(left, right) for left in [*BYTES][:40] for right in BYTES]
    # Of more pieces than a pipe holds.
    Tokenizer([*SPECIALS, *BYTES, *map("".join, pairs)], pairs).save(tmp_path / "tokenizer")
    (tmp_path / "script.py").write_text(UNGUARDED)
    words = [tmp_path / "script.py", corpus, tmp_path / "out", tmp_path / "tokenizer"]

    result = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, timeout=30, check=False
    )

    (line,) = (line for line in result.stderr.splitlines() if "DataError: " in line)
    assert "a process that reads text died" in line
    assert 'in a script below `if __name__ == "__main__":`' in line
    assert not (tmp_path / "out").exists()


# Its process reads, and waits for more.
WAITING = """
import multiprocessing, sys, time
from collections import Counter
from pathlib import Path
from nanochat.data.encoding import encoded_documents
from nanochat.data.reading import Reading
from nanochat.data.sources import find_sources

if __name__ == "__main__":
    reading = Reading(held_out=0.2, max_bytes=10**6)
    sources = find_sources([sys.argv[1]])
    found = encoded_documents(sources, reading, Counter(), Path(sys.argv[2]), 2)
    next(found)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


def test_no_process_outlives_one_that_is_killed(corpus: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    words = [sys.executable, *map(str, (tmp_path / "waiting.py", corpus, data))]
    # Python counts aloud what it cleans up then.
    quiet = subprocess.DEVNULL
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=quiet, text=True) as run:
        assert run.stdout is not None
        pids = list(map(int, run.stdout.readline().split()))
        run.kill()

    assert pids
    end = time.monotonic() + 10
    while any(map(lives, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(lives, pids))


def lives(pid: int) -> bool:
    try:
        # Of one that has ended, and that nobody has waited for, it is empty.
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


# No file may be larger, as if the disk were full.
FULL = """
import resource, signal, sys
from nanochat.data.index import DataIndex
from nanochat.data.prepare import prepare
from nanochat.text.tokenizer import Tokenizer

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
prepare([sys.argv[1]], sys.argv[2], Tokenizer.load(sys.argv[2]), held_out=0.2, overwrite=True)
"""


@pytest.mark.parametrize("name", ["tokenizer.json", "train-00000.npy", "data.json"])
def test_without_space_the_data_that_were_there_stay(corpus: Path, copy: Path, name: str) -> None:
    room = (copy / name).stat().st_size - 1
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    words = [sys.executable, "-c", FULL, str(corpus), str(copy), str(room)]

    result = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)

    last = result.stderr.splitlines()[-1]
    assert f"SaveError: cannot write {copy}: " in last
    assert last.endswith("free space or pass another path")
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
