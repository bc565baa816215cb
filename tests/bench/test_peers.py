"""What the benchmark compares us with: that it computes the same, and what it says when it is not there."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench.bandwidth import read_bandwidth
from bench.peers.onnxruntime import MatMulNBits
from bench.peers.torch import Bfloat16, Int8
from nanochat.backends.reference.ops import IntegerLinear, ReferenceOps
from nanochat.proof.tolerances import rms_error

COLUMNS = 768
ROWS = [1, 37, 256]
TOKENS = [1, 5]
Product = Callable[[NDArray[np.float32]], NDArray[np.float32]]


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


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bandwidth_is_that_of_some_memory(threads: int) -> None:
    bandwidth = read_bandwidth(threads=threads, num_bytes=2**25, runs=3)

    assert 1e8 < bandwidth < 1e13
