"""What stock programs make of a text by the tokenizer of an export are the tokens that this package makes of it.

They differ where a program cannot be told better, which docs/export.md says; that is shown with the files of the
tokenizer's publisher, by which the program makes the same of the same texts.
"""

import json
import platform
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from transformers.utils import logging

from nanochat.bundle import Bundle, default_generation
from nanochat.config import ModelConfig
from nanochat.export.export import export_model
from nanochat.export.formats import format_named, load
from nanochat.export.gguf.container import read_gguf
from nanochat.export.verify import verify_model
from nanochat.proof.golden import tokenizer_digest, with_golden
from nanochat.text.chat import Message, render
from nanochat.text.codec import TextCodec
from nanochat.text.library import load_tokenizer
from tests.core.foreign_tokenizers import CHAT_TEMPLATE, llama_3, write, write_llama_3
from tests.core.real_tokenizers import NAMES, real_tokenizer
from tests.export import foreign_ggufs
from tests.export.llama_cpp_vocabulary import LlamaCppVocabulary
from tests.export.pages import tiny
from tests.export.texts import MARKS, ODD_STRINGS
from tests.export.tokenizer_readers import READERS, Genai, Reader, Transformers
from tests.parity.random_models import random_packed_weights

on_linux_x86 = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="the prebuilt llama.cpp is for Linux x86-64",
)
TEXTS = [*ODD_STRINGS, *MARKS]
# So many texts are the same even to a program with faults of its own.
LEAST = 230
EXPORTS: dict[str, tuple[str, dict[str, object]]] = {
    "nanochat": ("nanochat", {}),
    "hf": ("transformers", {}),
    "hf for transformers": ("transformers", {"runtime": "transformers"}),
    "mlx": ("mlx", {"runtime": "mlx-lm"}),
    "mlx for nanochat": ("mlx", {"runtime": "nanochat"}),
    "onnx": ("onnx", {}),
    "onnx standard": ("onnx", {"target": "standard"}),
    "web": ("web", {}),
    "gguf": ("gguf", {"outtype": "q2_0"}),
}
FOLDERS = [name for name in EXPORTS if name != "gguf"]
OWN = "ours"
# Names of roles in GGUF files, where they are others than in Hugging Face's.
ROLES = {"bos": "bos", "eos": "eos", "pad": "padding"}


def _as_others_write_it(folder: Path) -> TextCodec:
    """A tokenizer whose files leave more to their reader than its tokens."""
    library = type(llama_3()).from_str(llama_3().to_str())
    library.enable_truncation(8)
    library.enable_padding(length=16)
    # The start is asked for beside it.
    library.post_processor = None
    start = "<|begin_of_text|>"
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": start, "add_bos_token": True}
    return load_tokenizer(write(library, folder, settings=settings))


def _of_older_files(folder: Path) -> TextCodec:
    start = "<|begin_of_text|>"
    names = {"bos_token": start, "eos_token": {"content": "<|eot_id|>", "lstrip": False}}
    settings = {"bos_token": "<|end_of_text|>", "chat_template": CHAT_TEMPLATE}
    (write(llama_3(), folder, settings=settings) / "special_tokens_map.json").write_text(
        json.dumps(names)
    )
    return load_tokenizer(folder)


def _without_settings(folder: Path) -> TextCodec:
    start = llama_3().token_to_id("<|begin_of_text|>")
    return load_tokenizer(write(llama_3(), folder, generation={"bos_token_id": start}))


SMALL: dict[str, Callable[[Path], TextCodec]] = {
    OWN: lambda _: tiny().tokenizer,
    "a chat model's": lambda folder: load_tokenizer(write_llama_3(folder)),
    "settings apart": _as_others_write_it,
    "older files": _of_older_files,
    "no settings": _without_settings,
    "no files but one": lambda folder: load_tokenizer(write(llama_3(), folder)),
    "of a GGUF file": lambda folder: foreign_ggufs.vocabulary_again(folder, {}),
    "of a GGUF file, SentencePiece": lambda folder: foreign_ggufs.vocabulary_again(
        folder, foreign_ggufs.sentencepiece_vocabulary()
    ),
}


def _published(name: str) -> Callable[[Path], TextCodec]:
    return lambda _: load_tokenizer(real_tokenizer(name))


KINDS = {**SMALL, **{name: _published(name) for name in NAMES}}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model, and the tokens of all texts by its own tokenizer."""

    kind: str
    bundle: Bundle
    tokens: dict[str, list[int]]

    @property
    def tokenizer(self) -> TextCodec:
        return self.bundle.tokenizer

    def started(self, text: str) -> list[int]:
        return [*self.tokenizer.opening, *self.tokens[text]]


@pytest.fixture(scope="module")
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Source]:
    kind: str = request.param
    # It says which class it takes instead of one that the folder names.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # the library's
    tokenizer = KINDS[kind](tmp_path_factory.mktemp("tokenizer"))
    config = ModelConfig(
        # More rows than tokens.
        vocab_size=tokenizer.vocab_size + 3,
        width=128,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=64,
        ffn_width=128,
        context_length=64,
        num_streams=1,
        weight_block=128,
        activation_block=128,
    )
    # Nobody compares what is computed, with as many rows as a tokenizer has tokens, in each export.
    bundle = with_golden(
        Bundle(
            name="odd",
            config=config,
            weights=random_packed_weights(config, 0),
            tokenizer=tokenizer,
            generation=default_generation(tokenizer),
        )
    )
    yield Source(kind=kind, bundle=bundle, tokens={text: tokenizer.encode(text) for text in TEXTS})
    logging.set_verbosity_warning()  # type: ignore[no-untyped-call]  # the library's


@pytest.fixture(scope="module")
def exported(
    request: pytest.FixtureRequest, source: Source, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    kind, chosen = EXPORTS[request.param]
    form = format_named(kind)
    path = tmp_path_factory.mktemp("export") / f"model{form.suffix}"
    if kind == "web":
        path.mkdir()
    options = form.choose(**chosen)
    adapted = replace(form.adapt(source.bundle, options), golden=source.bundle.golden)
    form.write(path, adapted, options, None)
    return path


@pytest.fixture(scope="module")
def genai(exported: Path) -> Genai:
    return Genai(exported)


@pytest.fixture(scope="module")
def reader(request: pytest.FixtureRequest, exported: Path) -> Reader:
    return READERS[request.param](exported)


def _case(*parts: str) -> Any:
    return pytest.param(*parts, id=", ".join(parts))


# Files of a tokenizer are the same in all folders, so that large ones are not read by all programs from each.
CASES = [
    *(_case(OWN, export, reader) for export in FOLDERS for reader in READERS),
    *(
        _case(kind, export, reader)
        for kind in KINDS
        if kind != OWN
        for export, reader in (
            ("hf", "transformers"),
            ("hf for transformers", "transformers"),
            ("hf for transformers", "tokenizers"),
            ("mlx", "mlx-lm"),
            ("onnx", "tokenizers"),
        )
    ),
]
of_every_kind = pytest.mark.parametrize(("source", "exported", "reader"), CASES, indirect=True)


@of_every_kind
def test_texts_have_our_tokens_behind_their_start(source: Source, reader: Reader) -> None:
    found = {text: reader.encode(text, specials=False) for text in TEXTS}

    assert [text for text in TEXTS if found[text] != source.started(text)] == []


@of_every_kind
def test_names_of_special_tokens_are_tokens_where_that_is_asked_for(
    source: Source, reader: Reader
) -> None:
    tokenizer = source.tokenizer

    found = {text: reader.encode(text, specials=True) for text in TEXTS}

    expected = {
        text: [*tokenizer.opening, *tokenizer.encode(text, specials=True)] for text in TEXTS
    }
    assert [text for text in TEXTS if found[text] != expected[text]] == []


@of_every_kind
def test_tokens_have_our_text(source: Source, reader: Reader) -> None:
    found = {text: reader.decode(source.tokens[text]) for text in TEXTS}

    expected = {text: source.tokenizer.decode(source.tokens[text]) for text in TEXTS}
    assert [text for text in TEXTS if found[text] != expected[text]] == []


@of_every_kind
def test_what_starts_and_ends_texts_has_no_text(source: Source, reader: Reader) -> None:
    tokenizer = source.tokenizer
    tokens = tokenizer.encode("to be, or not")

    found = reader.decode([*tokenizer.opening, *tokens, *sorted(tokenizer.stop_ids)])

    assert found == tokenizer.decode(tokens) == "to be, or not"


CONVERSATION: list[Message] = [
    {"role": "user", "content": "Hi,\n\nwörld 🦀"},
    {"role": "assistant", "content": "yes  no"},
    {"role": "user", "content": "'s 日本 12345 it's"},
]
WITH_TEMPLATE = {OWN, "a chat model's", "older files", *NAMES} - {"llama2"}


@pytest.mark.parametrize(
    ("source", "exported", "reader"),
    [
        case
        for case in CASES
        if case.values[0] in WITH_TEMPLATE and case.values[2] in ("transformers", "mlx-lm")
    ],
    indirect=True,
)
@pytest.mark.parametrize("reply", [True, False])
def test_conversations_have_our_tokens(source: Source, reader: Transformers, reply: bool) -> None:
    assert reader.chat(CONVERSATION, reply=reply) == render(
        CONVERSATION, source.tokenizer, reply=reply
    )


@pytest.mark.parametrize(
    ("source", "exported"),
    [_case(kind, "onnx") for kind in KINDS if kind in WITH_TEMPLATE],
    indirect=True,
)
@pytest.mark.parametrize("reply", [True, False])
def test_onnxruntime_genai_has_our_tokens_of_conversations(
    source: Source, genai: Genai, reply: bool
) -> None:
    tokens = genai.encode(genai.chat(CONVERSATION, reply=reply), starts=False)

    assert tokens == render(CONVERSATION, source.tokenizer, reply=reply)


@pytest.mark.parametrize(
    ("source", "exported"), [_case(kind, "onnx") for kind in (OWN, *NAMES)], indirect=True
)
def test_onnxruntime_genai_differs_by_faults_of_its_own_only(
    source: Source, exported: Path, genai: Genai, tmp_path: Path
) -> None:
    theirs, tokenizer = genai, source.tokenizer
    # To it, a text ends at the first NUL.
    cut = {text: text.partition("\0")[0] for text in TEXTS}

    ids = {text: theirs.encode(text) for text in TEXTS}
    texts = {text: theirs.decode(source.tokens[text]) for text in TEXTS}

    expected = {
        text: [*tokenizer.opening, *tokenizer.encode(cut[text], specials=True)] for text in TEXTS
    }
    other_ids = [text for text in TEXTS if ids[text] != expected[text]]
    # It leaves the space of SentencePiece before a text.
    spaces = " " if source.kind == "llama2" else ""
    other_texts = [
        text
        for text in TEXTS
        if texts[text] != (text and spaces) + tokenizer.decode(source.tokens[text])
        # Nor does it know these, in a text that it writes.
        and not any(character in text for character in "\0\ufffe")
    ]
    if source.kind == OWN:
        assert (other_ids, other_texts) == ([], [])
        return
    shutil.copytree(exported, tmp_path / "published")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(real_tokenizer(source.kind) / name, tmp_path / "published" / name)
    published = Genai(tmp_path / "published")
    assert min(len(TEXTS) - len(other) for other in (other_ids, other_texts)) >= LEAST
    assert {text: published.encode(text) for text in other_ids} == {
        text: ids[text] for text in other_ids
    }
    assert {text: published.decode(source.tokens[text]) for text in other_texts} == {
        text: texts[text] for text in other_texts
    }


def _is_read_otherwise_by_llama_cpp(kind: str, text: str) -> bool:
    """Whether the program itself is in the way, whatever the file says."""
    if kind == "qwen3" and not unicodedata.is_normalized("NFC", text):
        return True
    # It looks for runs of spaces that a user defined as they are in a text, and so not for the marks.
    if kind == "gemma3" and "▁" in text:
        return True
    # Pieces of these names are control tokens to it.
    return kind in ("qwen3", "gemma3") and ("</s>" in text or "<|fim_" in text)


@on_linux_x86
@pytest.mark.parametrize(
    ("source", "exported"), [_case(kind, "gguf") for kind in KINDS], indirect=True
)
def test_llama_cpp_has_our_tokens_and_texts(source: Source, exported: Path) -> None:
    tokenizer = source.tokenizer
    texts = [text for text in TEXTS if not _is_read_otherwise_by_llama_cpp(source.kind, text)]

    with closing(LlamaCppVocabulary(exported, threads=1, context=64)) as theirs:
        ids = {text: theirs.tokenize(text, start=True) for text in texts}
        named = {text: theirs.tokenize(text, start=True, specials=True) for text in texts}
        written = {text: theirs.detokenize(source.tokens[text]) for text in texts}

    specials = {text: tokenizer.encode(text, specials=True) for text in texts}
    # Its programs write one token after the other, with the space that some tokenizers put before a text.
    streams = {text: b"".join(map(tokenizer.token_bytes, source.tokens[text])) for text in texts}
    assert len(texts) >= LEAST
    assert [text for text in texts if ids[text] != source.started(text)] == []
    assert [t for t in texts if named[t] != [*tokenizer.opening, *specials[t]]] == []
    assert [t for t in texts if written[t] != streams[t].decode("utf-8", "replace")] == []


@pytest.mark.parametrize(
    ("source", "exported"), [_case(kind, "gguf") for kind in NAMES], indirect=True
)
def test_keys_are_those_of_llama_cpp_s_own_converter(source: Source, exported: Path) -> None:
    metadata, folder = read_gguf(exported).metadata, real_tokenizer(source.kind)
    has_merges = metadata["tokenizer.ggml.model"] == "gpt2"
    converter = gguf.SpecialVocab(folder, load_merges=has_merges)

    found = metadata.get("tokenizer.ggml.merges")

    assert found == (converter.merges if has_merges else None)
    for role, token in converter.special_token_ids.items():
        if role != "unk":
            assert metadata[f"tokenizer.ggml.{ROLES[role]}_token_id"] == token


@pytest.mark.parametrize(
    ("source", "exported"), [_case(kind, "gguf") for kind in KINDS], indirect=True
)
def test_a_gguf_file_gives_the_tokenizer_back(source: Source, exported: Path) -> None:
    loaded = load(exported).tokenizer

    assert tokenizer_digest(loaded) == tokenizer_digest(source.tokenizer)
    assert {text: loaded.encode(text) for text in TEXTS} == source.tokens


@on_linux_x86
@pytest.mark.parametrize("source", ["settings apart", "llama2"], indirect=True)
def test_a_model_with_another_program_s_tokenizer_is_exported_as_gguf_and_verified(
    source: Source, tmp_path: Path
) -> None:
    path = tmp_path / "x.gguf"
    options = format_named("gguf").choose(outtype="q2_0")

    exported = export_model(source.bundle, path, kind="gguf", options=options)

    assert exported.parity is not None
    assert exported.parity.ok
    assert verify_model(path, backend="reference").golden is not None
