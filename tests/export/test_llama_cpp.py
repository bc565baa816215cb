"""The unmodified llama.cpp at work: what it computes, what it refuses, and what is said when it is not there."""

import gc
import platform
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.errors import (
    BackendError,
    ContextLengthError,
    FormatError,
    InputError,
    NanochatError,
)
from nanochat.export import npm
from nanochat.export.gguf.llama_cpp import LlamaCpp
from nanochat.export.gguf.llama_cpp_library import library, library_folder
from nanochat.export.gguf.write import write_gguf
from nanochat.export.transform import with_float16_tables
from nanochat.proof.parity import check_parity
from nanochat.proof.tolerances import rms_error
from nanochat.text.tokenizer import CHAT_TEMPLATE, Tokenizer
from tests.export.llama_cpp_vocabulary import LlamaCppVocabulary
from tests.parity.random_models import random_packed_weights

on_linux_x86 = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="the prebuilt llama.cpp is for Linux x86-64",
)

CONFIG = ModelConfig(
    vocab_size=300,
    width=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    ffn_width=512,
    context_length=1024,
    num_streams=1,
    tie_embeddings=False,
)


def some_ids(count: int = 16) -> list[int]:
    ids: list[int] = np.random.default_rng(0).integers(0, 300, count).tolist()
    return ids


def small() -> Bundle:
    return Bundle(
        name="small",
        config=CONFIG,
        weights=random_packed_weights(CONFIG, 1),
        tokenizer=Tokenizer.train(["to be or not to be"], vocab_size=270),
        generation={},
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama.cpp") / "small.gguf"
    write_gguf(path, small())
    return path


@pytest.fixture
def model(file: Path) -> Iterator[LlamaCppVocabulary]:
    with closing(LlamaCppVocabulary(file, threads=1, context=600)) as opened:
        yield opened


@on_linux_x86
def test_logits_after_every_token_are_those_of_token_after_token(model: LlamaCppVocabulary) -> None:
    ids = some_ids()
    expected = [model.decode(token) for token in ids]

    logits = model.logits(ids)

    assert logits.shape == (16, 300)
    assert rms_error(logits, np.stack(expected)) < 1e-2


@on_linux_x86
def test_logits_of_more_than_a_batch_begin_as_those_of_less(model: LlamaCppVocabulary) -> None:
    logits = model.logits(some_ids(530))

    assert logits.shape == (530, 300)
    assert rms_error(logits[:16], model.logits(some_ids(530)[:16])) < 3e-2


@on_linux_x86
def test_logits_and_greedy_text_are_of_a_new_sequence(model: LlamaCppVocabulary) -> None:
    ids = some_ids()
    first, text = model.logits(ids), model.greedy(ids, num_tokens=4)

    assert np.array_equal(model.logits(ids), first)
    assert model.greedy(ids, num_tokens=4) == text


@on_linux_x86
def test_rows_are_continued_side_by_side(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", small())
    texts = [[5, 6, 7], [9, 8, 5]]
    with closing(LlamaCpp(tmp_path / "x.gguf", threads=1, context=16, rows=2)) as model:
        for tokens in zip(*texts, strict=True):
            found = model.decode_rows(tokens)

        expected = np.stack([model.logits(text)[-1] for text in texts])
        assert rms_error(found, expected) < 1e-2
        model.reset()
        for _ in range(16):
            model.decode_rows([5, 5])
        with pytest.raises(ContextLengthError, match="larger one"):
            model.decode_rows([5, 5])


@on_linux_x86
def test_a_library_between_two_passes_may_shape_the_tiles_of_amx(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    # Of these rows a table in Q8_0 is multiplied in tiles.
    config = replace(CONFIG, vocab_size=320)
    bundle = replace(small(), config=config, weights=random_packed_weights(config, 1))
    write_gguf(tmp_path / "x.gguf", bundle)
    matrix = torch.ones(256, 256, dtype=torch.int8)
    with closing(LlamaCpp(tmp_path / "x.gguf", threads=1, context=64)) as model:
        first = model.logits(some_ids())

        torch._int_mm(matrix, matrix)

        assert np.array_equal(model.logits(some_ids()), first)


@on_linux_x86
def test_greedy_text_is_that_of_the_largest_logits(model: LlamaCppVocabulary) -> None:
    ids = some_ids()

    text = model.greedy(ids, num_tokens=3)

    model.reset()
    logits = model.prefill(ids)
    expected = [int(logits.argmax())]
    expected += [int(model.decode(expected[0]).argmax())]
    expected += [int(model.decode(expected[1]).argmax())]
    assert text == expected


@on_linux_x86
def test_special_tokens_and_the_chat_template_are_the_file_s(model: LlamaCppVocabulary) -> None:
    assert (model.bos, model.eos, model.pad, model.eot) == (0, 1, 2, 6)
    assert [token for token in range(300) if model.ends_generation(token)] == [1, 6]
    assert model.chat_template == CHAT_TEMPLATE


@on_linux_x86
@pytest.mark.parametrize(
    ("choices", "rounding", "tolerance"),
    [
        ({}, "other", 6e-2),
        ({"outtype": "f16"}, "other", 6e-2),
        ({"outtype": "f16", "tables": "f16"}, "none", 3e-3),
    ],
    ids=str,
)
def test_parity_is_as_close_as_the_types_of_the_file_allow(
    choices: dict[str, Any], rounding: str, tolerance: float, tmp_path: Path
) -> None:
    source = with_float16_tables(small()) if "tables" in choices else small()
    write_gguf(tmp_path / "x.gguf", source, **choices)

    with closing(LlamaCppVocabulary(tmp_path / "x.gguf", threads=1, context=64)) as model:
        parity = check_parity(source, model)

    assert (model.rounding, model.tolerance) == (rounding, tolerance)
    assert parity.ok, parity


@on_linux_x86
def test_the_runtime_says_its_version(model: LlamaCppVocabulary) -> None:
    assert model.runtime.startswith("llama.cpp 0.5.")


@on_linux_x86
def test_a_model_that_nobody_has_closed_is_freed_with_its_last_reference(file: Path) -> None:
    model = LlamaCppVocabulary(file, context=64)
    finalizer = model._close

    del model
    gc.collect()

    assert not finalizer.alive


@on_linux_x86
def test_prefill_of_more_than_a_batch_is_as_token_after_token(model: LlamaCppVocabulary) -> None:
    ids = some_ids(530)
    expected = [model.decode(token) for token in ids][-1]
    model.reset()

    logits = model.prefill(ids)

    assert rms_error(logits, expected) < 1e-2


@on_linux_x86
def test_a_reset_forgets_the_sequence(model: LlamaCppVocabulary) -> None:
    first = model.prefill(some_ids())
    model.reset()

    again = model.prefill(some_ids())

    assert np.array_equal(first, again)


@on_linux_x86
def test_a_paused_model_goes_on_with_the_next_token(model: LlamaCppVocabulary) -> None:
    expected = [model.decode(token) for token in some_ids(2)][-1]
    model.reset()
    model.decode(some_ids(2)[0])
    model.pause()

    logits = model.decode(some_ids(2)[1])

    assert np.array_equal(logits, expected)


@on_linux_x86
@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        pytest.param([], InputError, "must be there and lie in 0 to 299", id="none"),
        pytest.param([300], InputError, "lie in 0 to 299", id="large"),
        pytest.param([-1], InputError, "lie in 0 to 299", id="negative"),
        pytest.param([0] * 601, ContextLengthError, "context of 600.*call reset", id="many"),
    ],
)
def test_tokens_that_llama_cpp_cannot_take_are_refused(
    ids: list[int], error: type[NanochatError], message: str, model: LlamaCppVocabulary
) -> None:
    with pytest.raises(error, match=message):
        model.prefill(ids)
    with pytest.raises(error, match=message):
        model.logits(ids)


@on_linux_x86
def test_a_file_that_llama_cpp_cannot_load_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF, or not")

    with pytest.raises(FormatError, match=r"cannot load it \(.*model.gguf"):
        LlamaCppVocabulary(tmp_path / "model.gguf", threads=1, context=64)


@on_linux_x86
def test_a_folder_without_the_library_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NANOCHAT_LLAMA_CPP", str(tmp_path))

    # Past the cache: another test may have loaded the library.
    with pytest.raises(BackendError, match=r"holds no libllama\.so.*unset NANOCHAT_LLAMA_CPP"):
        library.__wrapped__()


@on_linux_x86
def test_the_library_is_fetched_when_no_folder_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NANOCHAT_LLAMA_CPP", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(npm, "_REGISTRY", tmp_path.as_uri())

    with pytest.raises(BackendError, match=r"cannot fetch .*linux-x64-3\.22\.1\.tgz"):
        library_folder()


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_other_systems_are_told_that_there_is_no_library(
    system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", system)

    with pytest.raises(BackendError, match="on Linux x86-64 only"):
        library_folder()
