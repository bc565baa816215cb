"""The unmodified llama.cpp at work: what it computes, what it refuses, and what is said when it is not there."""

import platform
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.peers.llama_cpp_file import TableType, write_model, write_random_model
from bench.random_model import random_packed_weights
from bench.tolerances import TOLERANCES, rms_error
from nanochat.backends.reference import ReferenceOps
from nanochat.config import ModelConfig
from nanochat.errors import (
    BackendError,
    ConfigError,
    ContextLengthError,
    FormatError,
    InputError,
    NanochatError,
)
from nanochat.export.llama_cpp import LlamaCpp
from nanochat.export.llama_cpp_install import library_folder
from nanochat.export.llama_cpp_library import library
from nanochat.model import forward
from nanochat.weights import Stored, Weights

on_linux_x86 = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="the prebuilt llama.cpp is for Linux x86-64",
)


def small(**options: Any) -> ModelConfig:
    shape: dict[str, Any] = {
        "vocab_size": 300,
        "width": 256,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "ffn_width": 512,
        "context_length": 1024,
        "num_streams": 1,
        "tie_embeddings": False,
    }
    return ModelConfig(**shape | options)


def some_ids(count: int = 16) -> list[int]:
    ids: list[int] = np.random.default_rng(0).integers(0, 300, count).tolist()
    return ids


def reference_logits(config: ModelConfig, weights: Weights[Stored]) -> NDArray[np.float32]:
    ops = ReferenceOps()
    ids = ops.tokens(np.array([some_ids()]))
    logits: NDArray[np.float32] = ops.numpy(forward(ids, ops.prepare(weights), config, ops))[0]
    return logits


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peers") / "small.gguf"
    write_random_model(path, small(), 1)
    return path


@pytest.fixture
def peer(file: Path) -> Iterator[LlamaCpp]:
    with closing(LlamaCpp(file, threads=2, context=600)) as opened:
        yield opened


@on_linux_x86
@pytest.mark.parametrize("table", ["Q8_0", "F16"])
@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
def test_llama_cpp_computes_the_same_model(
    tie_embeddings: bool, table: TableType, tmp_path: Path
) -> None:
    config = small(tie_embeddings=tie_embeddings)
    weights = random_packed_weights(config, 1)
    write_model(tmp_path / "model.gguf", config, weights, table=table)

    with closing(LlamaCpp(tmp_path / "model.gguf", threads=1, context=64)) as opened:
        logits = np.stack([opened.decode(token) for token in some_ids()])

    limit = TOLERANCES["logits"].limit
    assert rms_error(logits, reference_logits(config, weights)) < limit


@on_linux_x86
def test_prefill_of_more_than_a_batch_is_as_token_after_token(peer: LlamaCpp) -> None:
    ids = some_ids(530)
    expected = [peer.decode(token) for token in ids][-1]
    peer.reset()

    logits = peer.prefill(ids)

    assert rms_error(logits, expected) < 1e-2


@on_linux_x86
def test_a_reset_forgets_the_sequence(peer: LlamaCpp) -> None:
    first = peer.prefill(some_ids())
    peer.reset()

    again = peer.prefill(some_ids())

    assert np.array_equal(first, again)


@on_linux_x86
def test_a_paused_peer_goes_on_with_the_next_token(peer: LlamaCpp) -> None:
    expected = [peer.decode(token) for token in some_ids(2)][-1]
    peer.reset()
    peer.decode(some_ids(2)[0])
    peer.pause()

    logits = peer.decode(some_ids(2)[1])

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
    ids: list[int], error: type[NanochatError], message: str, peer: LlamaCpp
) -> None:
    with pytest.raises(error, match=message):
        peer.prefill(ids)


@on_linux_x86
def test_a_file_that_llama_cpp_cannot_load_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF, or not")

    with pytest.raises(FormatError, match=r"cannot load it \(.*model.gguf"):
        LlamaCpp(tmp_path / "model.gguf", threads=1, context=64)


@pytest.mark.parametrize(
    "options",
    [
        {"num_streams": 2},
        {"qk_norm": False},
        {"activation": "relu2"},
        {"weight_block": 128},
        {"layer_pattern": ("attention", "delta")},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_model_that_stock_llama_cpp_cannot_express_is_refused(
    options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))}=.*only with"):
        write_random_model(tmp_path / "model.gguf", small(**options), 0)


@on_linux_x86
def test_a_folder_without_the_library_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NANOCHAT_LLAMA_CPP", str(tmp_path))

    # Past the cache: another test may have loaded the library.
    with pytest.raises(BackendError, match=r"holds no libllama\.so.*unset NANOCHAT_LLAMA_CPP"):
        library.__wrapped__()


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_other_systems_are_told_that_there_is_no_library(
    system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", system)

    with pytest.raises(BackendError, match="on Linux x86-64 only"):
        library_folder()
