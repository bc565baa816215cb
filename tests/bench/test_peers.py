"""What the benchmark compares us with: that it computes the same, and what it says when it is not there."""

import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench.bandwidth import read_bandwidth
from bench.parity_cases import CASES
from bench.peers.llama_cpp import LlamaCpp
from bench.peers.llama_cpp_file import TableType, write_model, write_random_model
from bench.peers.llama_cpp_install import library_folder
from bench.peers.llama_cpp_library import library
from bench.peers.onnxruntime import MatMulNBits
from bench.peers.torch import Bfloat16, Int8
from bench.random_model import random_packed_weights
from bench.tolerances import TOLERANCES, rms_error
from nanochat.backends.reference import IntegerLinear, ReferenceOps
from nanochat.checkpoint import require_complete
from nanochat.config import ModelConfig
from nanochat.errors import (
    BackendError,
    ConfigError,
    ContextLengthError,
    FormatError,
    InputError,
    NanochatError,
)
from nanochat.export import npm
from nanochat.model import forward
from nanochat.weights import Stored, Weights, named_leaves

COLUMNS = 768
ROWS = [1, 37, 256]
TOKENS = [1, 5]
Product = Callable[[NDArray[np.float32]], NDArray[np.float32]]

on_linux_x86 = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="the prebuilt llama.cpp is for Linux x86-64",
)


def matrix(rows: int) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    generator = np.random.default_rng(0)
    codes = generator.integers(-1, 2, (rows, COLUMNS), np.int8)
    return codes, generator.uniform(0.5, 1.5, (rows, COLUMNS // 256)).astype(np.float16)


def activations(tokens: int, *, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((tokens, COLUMNS), np.float32)


def contract(x: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    codes, scales = matrix(rows)
    (y,) = ReferenceOps().project(
        x, IntegerLinear(codes=codes, scales=scales, activation_block=128)
    )
    return y


@pytest.fixture(autouse=True)
def threads_of_torch() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_onnxruntime_computes_the_contracts_product(tokens: int, rows: int, threads: int) -> None:
    x = activations(tokens)

    y = MatMulNBits(*matrix(rows), threads=threads)(x)

    assert rms_error(y, contract(x, rows)) < 1e-5


def test_onnxruntime_reads_the_array_that_it_is_given_now() -> None:
    first, second = activations(1), activations(5, seed=1)
    product = MatMulNBits(*matrix(37), threads=1)
    product(first)

    y = product(second)

    assert rms_error(y, contract(second, 37)) < 1e-5


@pytest.mark.parametrize("rows", ROWS[1:])
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(
    ("peer", "limit"), [(Bfloat16, 1e-2), (Int8, 4e-2)], ids=["bfloat16", "int8"]
)
def test_torch_is_near_the_contracts_product(
    peer: Callable[..., Product], limit: float, tokens: int, rows: int
) -> None:
    x = activations(tokens)

    y = peer(*matrix(rows), threads=1)(x)

    assert rms_error(y, contract(x, rows)) < limit


@pytest.mark.parametrize("peer", [Bfloat16, Int8])
def test_torch_runs_on_the_threads_that_it_was_given(peer: Callable[..., Product]) -> None:
    product = peer(*matrix(37), threads=2)
    torch.set_num_threads(1)

    product(activations(1))

    assert torch.get_num_threads() == 2


def test_torchs_choice_of_a_quantized_engine_stays() -> None:
    engine = torch.backends.quantized.engine

    Int8(*matrix(37), threads=1)

    assert torch.backends.quantized.engine == engine


@pytest.mark.parametrize("option", sorted(CASES))
def test_random_weights_are_complete_and_legal_for_every_option(option: str) -> None:
    config = CASES[option]

    weights = random_packed_weights(config, 0)

    require_complete(config, weights)


def test_random_weights_of_a_seed_are_always_the_same() -> None:
    first, second = (dict(named_leaves(random_packed_weights(small(), 3))) for _ in range(2))

    assert all(
        np.array_equal(a, b)
        for name, leaf in first.items()
        for a, b in zip(vars(leaf).values(), vars(second[name]).values(), strict=True)
    )


@pytest.mark.parametrize("num_layers", [1, 12])
@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("num_streams", [1, 4])
def test_logits_of_random_weights_neither_explode_nor_vanish(
    num_streams: int, tie_embeddings: bool, num_layers: int
) -> None:
    config = small(num_streams=num_streams, tie_embeddings=tie_embeddings, num_layers=num_layers)

    logits = reference_logits(config, random_packed_weights(config, 0))

    assert 0.3 < logits.std() < 3


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


@on_linux_x86
@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "cannot fetch .*connect to the network once", id="missing"),
        pytest.param(b"other bytes", "11 bytes with the SHA-512", id="changed"),
    ],
)
def test_a_library_that_cannot_be_fetched_whole_is_not_installed(
    content: bytes | None, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NANOCHAT_LLAMA_CPP", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(npm, "_REGISTRY", tmp_path.as_uri())
    package = tmp_path / "@node-llama-cpp" / "linux-x64" / "-" / "linux-x64-3.22.1.tgz"
    package.parent.mkdir(parents=True)
    if content is not None:
        package.write_bytes(content)

    with pytest.raises(BackendError, match=message):
        library_folder()

    assert not (tmp_path / ".cache").exists()


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_other_systems_are_told_that_there_is_no_library(
    system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", system)

    with pytest.raises(BackendError, match="on Linux x86-64 only"):
        library_folder()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bandwidth_is_that_of_some_memory(threads: int) -> None:
    bandwidth = read_bandwidth(threads=threads, num_bytes=2**25, runs=3)

    assert 1e8 < bandwidth < 1e13
