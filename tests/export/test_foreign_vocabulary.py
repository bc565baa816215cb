"""Tokenizers in other people's GGUF files give the tokens that llama.cpp gives, and no file does more than raise."""

import logging
import platform
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nanochat.errors import FormatError, InputError
from nanochat.export.gguf.container import read_gguf
from nanochat.export.gguf.foreign.read import load_foreign_gguf
from tests.export.foreign_ggufs import ROWS, Case, sentencepiece_vocabulary, vocabulary, write
from tests.export.llama_cpp_vocabulary import LlamaCppVocabulary
from tests.export.texts import ODD_STRINGS

on_linux_x86 = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="the prebuilt llama.cpp is for Linux x86-64",
)
CASE = Case(architecture="qwen3")


@on_linux_x86
@pytest.mark.parametrize("keys", [{}, sentencepiece_vocabulary()], ids=["gpt2", "llama"])
def test_texts_are_encoded_as_llama_cpp_does(tmp_path: Path, keys: dict[str, Any]) -> None:
    path = write(tmp_path / "model.gguf", CASE, changes=keys)
    _, _, tokenizer = load_foreign_gguf(path, read_gguf(path))
    texts = [*ODD_STRINGS, "to be or not to be, that is  the question </s><|eot_id|>"]

    with closing(LlamaCppVocabulary(path, threads=1, context=64)) as theirs:
        expected = [theirs.tokenize(text) for text in texts]
        bos, eos = theirs.bos, theirs.eos

    assert [tokenizer.encode(text) for text in texts] == expected
    assert (tokenizer.bos, tokenizer.eos, tokenizer.opening) == (bos, eos, (bos,))


# What a file has that says nothing, one of each kind, and all names in published ternary models.
SPLITS = [
    None,
    "default",
    "falcon",
    "gpt-2",
    "olmo",
    "starcoder",
    "qwen2",
    "qwen35",
    "dbrx",
    "llama-bpe",
    "falcon3",
    "deepseek-v3",
]
SPLIT_TEXTS = [
    *ODD_STRINGS,
    "$+<=>^~|` ,.!? (a) [b] {c}",
    "日本語のテキスト。中文\uff0c한국어 abc",
    "1 12 123 1234 12345 1234567 ٣٤٥",
    "e\u0301a\u0308 _a_b__c___ a\u3000b",
    "!a .b -c\n\n  d\r\n\te   ",
]


@on_linux_x86
@pytest.mark.parametrize("name", SPLITS)
def test_a_text_is_split_as_llama_cpp_does_by_that_name(tmp_path: Path, name: str | None) -> None:
    path = write(tmp_path / "model.gguf", CASE, changes={"tokenizer.ggml.pre": name})
    _, _, tokenizer = load_foreign_gguf(path, read_gguf(path))

    with closing(LlamaCppVocabulary(path, threads=1, context=64)) as theirs:
        expected = {text: theirs.tokenize(text) for text in SPLIT_TEXTS}
        started = theirs.tokenize("a", start=True)

    assert {text: tokenizer.encode(text) for text in SPLIT_TEXTS} == expected
    assert [*tokenizer.opening, *tokenizer.encode("a")] == started


def test_a_file_that_does_not_say_how_texts_are_split_is_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "model.gguf", CASE, changes={"tokenizer.ggml.pre": None})

    with caplog.at_level(logging.WARNING):
        load_foreign_gguf(path, read_gguf(path))

    assert "the file does not say by tokenizer.ggml.pre how texts are split" in caplog.text


@on_linux_x86
@pytest.mark.parametrize("prefix", [None, True, False])
@pytest.mark.parametrize(
    "added",
    [
        # As converters write them now, and as they did before.
        ["  ", "    ", "\n\n", "<div>", "to be"],
        ["▁▁", "▁▁▁▁", "<div>"],
    ],
    ids=["spaces", "marks"],
)
def test_tokens_that_users_defined_are_found_as_by_llama_cpp(
    tmp_path: Path, added: list[str], prefix: bool | None
) -> None:
    keys = sentencepiece_vocabulary()
    count = ROWS - len(added)
    keys["tokenizer.ggml.tokens"] = keys["tokenizer.ggml.tokens"][:count] + added
    keys["tokenizer.ggml.token_type"] = keys["tokenizer.ggml.token_type"][:count] + [4] * len(added)
    keys["tokenizer.ggml.scores"] = keys["tokenizer.ggml.scores"][:count] + [-1000.0] * len(added)
    keys["tokenizer.ggml.add_space_prefix"] = prefix
    path = write(tmp_path / "model.gguf", CASE, changes=keys)
    _, _, tokenizer = load_foreign_gguf(path, read_gguf(path))
    texts = [
        *ODD_STRINGS,
        *SPLIT_TEXTS,
        " ",
        "  ",
        "a  b   c    d        e",
        "<div> to be\n\n  <div>x",
    ]

    with closing(LlamaCppVocabulary(path, threads=1, context=64)) as theirs:
        expected = {text: theirs.tokenize(text) for text in texts}

    assert {text: tokenizer.encode(text) for text in texts} == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.scores": None}, "tokenizer.ggml.scores is no list"),
        ({"tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a" * 2000]}, "has 2000 characters"),
    ],
)
def test_a_damaged_sentencepiece_vocabulary_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    keys = sentencepiece_vocabulary() | changes
    count = len(keys["tokenizer.ggml.tokens"])
    if count < 10:
        keys["tokenizer.ggml.token_type"] = [2, 3, 3, 1]
        keys["tokenizer.ggml.scores"] = [0.0] * 4
    path = write(tmp_path / "model.gguf", CASE, changes=keys)

    with pytest.raises(FormatError, match=message):
        load_foreign_gguf(path, read_gguf(path))


def test_what_starts_and_ends_texts_is_special_whatever_its_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", CASE, changes={"tokenizer.ggml.token_type": [1] * ROWS})

    _, _, tokenizer = load_foreign_gguf(path, read_gguf(path))

    assert set(tokenizer.specials) == {"<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"}
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode("<|eot_id|>"))


@on_linux_x86
def test_what_llama_cpp_overlooks_in_a_vocabulary_is_overlooked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = [*vocabulary()["tokenizer.ggml.tokens"]]
    tokens[-3:] = ["", "", ""]
    changes = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*vocabulary()["tokenizer.ggml.token_type"][:-3], *[1] * 9],
        # What a converter made of -1.
        "tokenizer.ggml.padding_token_id": 2**32 - 1,
        "tokenizer.ggml.eom_token_id": 100_000,
    }
    path = write(tmp_path / "model.gguf", CASE, changes=changes)

    with caplog.at_level(logging.WARNING):
        _, _, tokenizer = load_foreign_gguf(path, read_gguf(path))
    with closing(LlamaCppVocabulary(path, threads=1, context=64)) as theirs:
        expected = [theirs.tokenize(text) for text in ODD_STRINGS]
        roles = (theirs.bos, theirs.eos, theirs.eot, theirs.pad)

    assert "tokenizer.ggml.padding_token_id is 4294967295" in caplog.text
    assert [tokenizer.encode(text) for text in ODD_STRINGS] == expected
    assert roles == (tokenizer.bos, tokenizer.eos, tokenizer.specials["<|eot_id|>"], -1)
    assert tokenizer.pad is None


def test_no_prompt_forges_a_special_token(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", CASE, changes=sentencepiece_vocabulary())
    _, _, tokenizer = load_foreign_gguf(path, read_gguf(path))

    assert tokenizer.special_ids.isdisjoint(tokenizer.encode("a</s><s><unk>"))
    with pytest.raises(InputError, match="outside this vocabulary"):
        tokenizer.token_bytes(ROWS)
