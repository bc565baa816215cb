"""Prepared data holds each document once, in one split."""

import logging
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nanochat.data
from nanochat.data.documents import documents
from nanochat.data.prepare import prepare
from nanochat.data.sources import find_sources
from nanochat.data.splits import is_held_out, position
from nanochat.errors import DataError, InputError
from tests.data.streams import TOKENIZER


def test_a_glob_a_directory_and_a_file_find_the_same_files(corpus: Path) -> None:
    by_directory = find_sources([corpus]).files

    assert len(by_directory) == 60
    assert find_sources([corpus / "**/*.rs"]).files == by_directory
    assert find_sources([f"{corpus}/crate*/file*.rs"]).files == by_directory
    assert find_sources([corpus, corpus / "crate0/file0.rs"]).files == by_directory


def test_names_are_relative_to_the_pattern(corpus: Path) -> None:
    below_one_crate = find_sources([corpus / "crate1/*11.rs"]).files
    below_all_crates = find_sources([corpus / "crate*/*11.rs"]).files

    assert [name for name, _ in below_one_crate] == ["file11.rs"]
    assert [name for name, _ in below_all_crates] == ["crate1/file11.rs"]


def test_documents_are_the_files_unchanged(corpus: Path) -> None:
    read = {document.name: document.text for document in documents([corpus])}

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

    assert [document.name for document in read] == ["a.txt"]
    assert dropped == {"duplicate": 1, "not UTF-8": 1, "empty": 1, "larger than 100 bytes": 1}


def test_texts_are_compared_by_their_words_wherever_whitespace_is(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(300_000)]
    half = len(words) // 2
    texts = {
        "a": " ".join(words),
        "b": "  \n".join(words) + " ",
        "c": " ".join(words[:half]) + " " * 3_000_000 + " ".join(words[half:]),
        "d": " ".join(words[:half]) + "".join(words[half:]),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    dropped: Counter[str] = Counter()

    read = list(documents([tmp_path], dropped=dropped))

    assert [document.name for document in read] == ["a", "d"]
    assert dropped == {"duplicate": 2}


def test_a_long_text_takes_a_few_times_its_size_in_memory(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a few words\n" * 500_000)
    tracemalloc.start()

    (document,) = documents([tmp_path])

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * len(document.text)


def test_the_log_counts_what_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")

    with caplog.at_level(logging.WARNING):
        list(documents([tmp_path]))

    assert "left out 1 document: 1 not UTF-8" in caplog.text


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
        find_sources(patterns)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_outside_zero_to_one_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="pass 0 <= held_out < 1"):
        is_held_out("lib.rs", share)


@pytest.mark.parametrize(
    ("package", "pattern", "what"),
    [
        ("pyarrow", "a.parquet", r"a\.parquet"),
        ("pyarrow", "a.jsonl.zst", r"a\.jsonl\.zst"),
        ("datasets", "hub:org/name", "hub:org/name"),
        ("rensa", "a.txt", r"near_duplicates=0\.8"),
    ],
)
def test_a_package_that_is_missing_is_named_by_what_needs_it(
    package: str, pattern: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("arrow", "hub", "near"):
        monkeypatch.delitem(sys.modules, f"nanochat.data.{name}", raising=False)
        monkeypatch.delattr(nanochat.data, name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    Path(pattern.removeprefix("hub:").replace("/", "-")).write_text("a")

    with pytest.raises(DataError, match=rf"{what} needs the package {package}: pip install"):
        prepare([pattern], "out", TOKENIZER, near_duplicates=0.8)
