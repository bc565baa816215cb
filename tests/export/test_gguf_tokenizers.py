"""Other people's tokenizers are written to GGUF files as llama.cpp does the same, or not at all."""

import dataclasses
import json
import platform
import sys
from contextlib import closing
from pathlib import Path

import pytest
import tokenizers

from nanochat.errors import ConfigError, FormatError
from nanochat.export.formats import format_named, load
from nanochat.export.gguf.container import read_gguf
from nanochat.export.gguf.splits import SPLITS
from nanochat.export.gguf.write import write_gguf
from nanochat.text.library import LibraryTokenizer, load_tokenizer
from nanochat.text.roles import Roles
from tests.core.foreign_tokenizers import llama_3, unigram, write, write_llama_3
from tests.export.foreign_ggufs import vocabulary_again
from tests.export.llama_cpp_vocabulary import LlamaCppVocabulary
from tests.export.texts import MARKS, ODD_STRINGS
from tests.parity.random_models import random_bundle

on_linux_x86 = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="the prebuilt llama.cpp is for Linux x86-64",
)
TEXTS = [*ODD_STRINGS, *MARKS]


@on_linux_x86
@pytest.mark.parametrize("name", SPLITS)
def test_a_text_is_split_by_the_name_that_is_written(name: str, tmp_path: Path) -> None:
    tokenizer = vocabulary_again(tmp_path, {"tokenizer.ggml.pre": name})
    path = tmp_path / "again.gguf"
    write_gguf(path, dataclasses.replace(random_bundle(), tokenizer=tokenizer))

    with closing(LlamaCppVocabulary(path, threads=1, context=64)) as theirs:
        ids = {text: theirs.tokenize(text) for text in TEXTS}

    assert SPLITS[str(read_gguf(path).metadata["tokenizer.ggml.pre"])] == SPLITS[name]
    assert [text for text in TEXTS if ids[text] != tokenizer.encode(text)] == []


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_a_token_that_llama_cpp_would_find_elsewhere_is_refused(tmp_path: Path, flag: str) -> None:
    library = tokenizers.Tokenizer.from_str(llama_3().to_str())
    library.add_tokens([tokenizers.AddedToken("<odd>", **{flag: True})])
    tokenizer = load_tokenizer(write(library, tmp_path / "tokenizer"))
    source = dataclasses.replace(random_bundle(), tokenizer=tokenizer)

    with pytest.raises(ConfigError, match="'<odd>' is found by what stands beside it"):
        write_gguf(tmp_path / "x.gguf", source)


def test_accents_that_llama_cpp_does_not_compose_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(llama_3(), tmp_path / "tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": {"type": "NFC"}}))
    source = dataclasses.replace(random_bundle(), tokenizer=load_tokenizer(path.parent))

    with caplog.at_level("WARNING"):
        write_gguf(tmp_path / "x.gguf", source)

    assert caplog.text.count("composes accents with their letters (NFC)") == 1


def test_what_llama_cpp_has_no_name_for_is_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(unigram(), tmp_path / "tokenizer"))
    source = dataclasses.replace(random_bundle(), tokenizer=tokenizer)

    with pytest.raises(ConfigError, match=r"llama\.cpp has no tokenizer that does what this"):
        write_gguf(tmp_path / "x.gguf", source)

    with pytest.raises(ConfigError, match="its model is 'Unigram'"):
        format_named("gguf").adapt(source, format_named("gguf").choose())
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": " "},
                "behavior": "Removed",
                "invert": False,
            }
        },
    ],
    ids=["case", "words", "bytes"],
)
def test_a_way_to_read_texts_that_llama_cpp_does_not_know_is_refused(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    path = write(llama_3(), tmp_path / "tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    source = dataclasses.replace(random_bundle(), tokenizer=load_tokenizer(path.parent))

    with pytest.raises(ConfigError, match="splits or changes texts in a way for which"):
        write_gguf(tmp_path / "x.gguf", source)


@on_linux_x86
def test_no_ordinary_token_ends_a_text_in_llama_cpp(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer.from_str(llama_3().to_str().replace("<|e", "<|x"))
    source = random_bundle(tokenizer=LibraryTokenizer(json.loads(library.to_str()), Roles()))
    write_gguf(tmp_path / "x.gguf", source)

    with closing(LlamaCppVocabulary(tmp_path / "x.gguf", threads=1, context=64)) as theirs:
        ends = [token for token in range(source.config.vocab_size) if theirs.ends_generation(token)]

    assert ends == [source.config.vocab_size - 1]
    assert load(tmp_path / "x.gguf").tokenizer.stop_ids == frozenset()


@pytest.mark.parametrize("key", ["settings", "roles"])
def test_a_file_without_all_of_a_tokenizer_is_refused(tmp_path: Path, key: str) -> None:
    tokenizer = load_tokenizer(write_llama_3(tmp_path / "tokenizer"))
    path = tmp_path / "x.gguf"
    write_gguf(path, dataclasses.replace(random_bundle(), tokenizer=tokenizer))
    name = f"nanochat.tokenizer.{key}".encode()
    path.write_bytes(path.read_bytes().replace(name, name[:-1] + b"_"))

    with pytest.raises(FormatError, match=f"not all of .*nanochat.tokenizer.{key}"):
        load(path)
