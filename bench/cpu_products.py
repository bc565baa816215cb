"""This file holds the part of the case `cpu` that times products of int8 activations with ternary matrices.

Ours is what a decoded token runs: float32 in, rounded, multiplied, float32 out, in one native call. As a program,
``python -m bench.cpu_products --quick`` prints JSON lines of the products on one thread; so AVX2 alone can be timed, in
a process whose compiler knows no AVX-512.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray

from bench.avx2 import with_avx2
from bench.bandwidth import read_bandwidth
from bench.interleaved import Runner, interleaved, ratio
from bench.peers.onnxruntime import MatMulNBits
from bench.peers.torch import Bfloat16, Int8
from bench.result import Result
from nanochat import ternary
from nanochat.backends.host import num_cores
from nanochat.backends.numba.ops import NumbaOps
from nanochat.backends.numba.products.packing import TiledLinear, prepare_leaf
from nanochat.backends.numba.runtime.isa import chosen
from nanochat.backends.numba.runtime.launch import Pool
from nanochat.backends.numba.runtime.memory import WeightMemory
from nanochat.weights import Ternary

__all__ = ["avx2_only", "bandwidth_share", "products"]

_UNIT = "GOPS"
# Ratios to ONNX Runtime, by the instruction set and whether one token or many are multiplied.
_TARGETS = {
    "avx512vnni": (1.8, 1.5),
    "avxvnni": (1.3, 1.5),
    "avx2": (1.3, None),
    "portable": (None, None),
}
# Far more than the last level of cache of a desktop or of one core's share of a server: 256 MiB of codes.
_LARGE = (65_536, 16_384)


def products(
    sizes: list[int], token_counts: list[int], thread_counts: list[int], *, turns: int
) -> Iterator[Result]:
    """GEMV and GEMM of square matrices, beside ONNX Runtime's 2 bits and torch's bfloat16 and 8 bits."""
    isa = chosen()
    bandwidth = {n: read_bandwidth(threads=n, num_bytes=2**29, runs=3) for n in thread_counts}
    for size in sizes:
        matrix = _Matrix(size, size)
        for threads in thread_counts:
            for tokens in token_counts:
                gemv, gemm = _TARGETS[isa]
                target = gemv if tokens == 1 else gemm
                if tokens == 1 and threads > 1:
                    target = None
                for result in _compare(matrix, tokens, threads, isa, target, turns):
                    # What memory would allow; a matrix that lies in a cache is not bound by it.
                    share = bandwidth[threads] / matrix.num_bytes * matrix.operations
                    yield replace(result, bound=share if tokens == 1 else None)


def avx2_only(*, quick: bool) -> Iterator[Result]:
    """The GEMV on one thread in a process that compiles for AVX2; nothing where that is all there is, or less."""
    return with_avx2("bench.cpu_products", *(["--quick"] if quick else []))


def bandwidth_share(*, turns: int) -> Iterator[Result]:
    """The GEMV of a matrix far larger than the caches, as a share of what all threads can read."""
    threads = num_cores()
    matrix = _Matrix(*_LARGE)
    ours = matrix.ours(1, threads)
    shares, rates = [], []
    for _ in range(turns):
        bound = read_bandwidth(threads=threads, num_bytes=2**29, runs=3)
        timing = interleaved({"ours": Runner(run=ours)}, turns=1)["ours"]
        rates.append(matrix.num_bytes / timing.seconds)
        shares.append(rates[-1] / bound)
    share = float(np.median(shares))
    rate = float(np.median(rates))
    yield Result(
        case="cpu",
        what=f"GEMV {_LARGE[0]}x{_LARGE[1]}, {threads} threads: share of read bandwidth",
        unit="GB/s",
        ours=rate / 1e9,
        low=min(rates) / 1e9,
        high=max(rates) / 1e9,
        peer=rate / share / 1e9,
        peer_name="read bandwidth",
        ratio=share,
        bound=rate / share / 1e9,
        target=0.8,
        ok=share >= 0.8,
    )


def _compare(
    matrix: "_Matrix", tokens: int, threads: int, isa: str, target: float | None, turns: int
) -> Iterator[Result]:
    runners = {"ours": Runner(run=matrix.ours(tokens, threads))}
    for name, peer in matrix.peers(tokens, threads).items():
        runners[name] = Runner(run=peer)
    timings = interleaved(runners, turns=turns)
    operations = matrix.operations * tokens
    kind = "GEMV" if tokens == 1 else f"GEMM {tokens} tokens"
    for name, timing in timings.items():
        if name == "ours":
            continue
        judged = target if name == _ORT else None
        times = ratio(timings["ours"], timing)
        yield Result(
            case="cpu",
            what=f"{kind}, {matrix.rows}x{matrix.columns}, {isa}, {threads} thread{'s' * (threads > 1)}",
            unit=_UNIT,
            **timings["ours"].rates(operations),
            peer=operations / timing.seconds,
            peer_name=name,
            ratio=times,
            target=judged,
            ok=judged is None or times >= judged,
        )


_ORT = "onnxruntime 2-bit"


class _Matrix:
    """A random ternary matrix in everybody's form."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self._generator = np.random.default_rng(0)
        combinations = np.array([byte for byte in range(256) if _legal(byte)], np.uint8)
        packed = combinations[
            self._generator.integers(0, len(combinations), (rows, columns // 4), np.uint8)
        ]
        scales = self._generator.uniform(0.01, 0.02, (rows, columns // 256)).astype(np.float16)
        self._leaf = Ternary(packed=packed, scales=scales, columns=columns, activation_block=128)
        prepared = prepare_leaf("matrix", self._leaf, WeightMemory())
        assert isinstance(prepared, TiledLinear)
        self._ours = prepared

    @property
    def num_bytes(self) -> int:
        """What one product reads."""
        return self._ours.nbytes

    @property
    def operations(self) -> float:
        """Of one product with one token, in 10^9."""
        return 2 * self.rows * self.columns / 1e9

    def ours(self, tokens: int, threads: int) -> Callable[[], object]:
        """Our product with random activations."""
        ops = NumbaOps(num_threads=threads)
        x = self._activations(tokens)
        _, notes = ops.launch.note(lambda: ops.project(x, self._ours), Pool(most=1 << 30))
        return lambda: notes.repeat(threads, positions=1)

    def peers(self, tokens: int, threads: int) -> dict[str, Callable[[], object]]:
        """The others' products, those that can run here."""
        codes = ternary.unpack(self._leaf.packed, columns=self.columns)
        found = {_ORT: MatMulNBits(codes, self._leaf.scales, threads=threads)}
        x = self._activations(tokens)
        others: dict[str, Callable[[NDArray[np.float32]], object]] = {**found}
        others["torch bfloat16"] = Bfloat16(codes, self._leaf.scales, threads=threads)
        if Int8.unavailable() is None:
            others["torch int8"] = Int8(codes, self._leaf.scales, threads=threads)
        return {name: _bound(peer, x) for name, peer in others.items()}

    def _activations(self, tokens: int) -> NDArray[np.float32]:
        return self._generator.standard_normal((tokens, self.columns), np.float32)


def _bound(
    peer: Callable[[NDArray[np.float32]], object], x: NDArray[np.float32]
) -> Callable[[], object]:
    return lambda: peer(x)


def _legal(byte: int) -> bool:
    return all(byte >> shift & 3 < 3 for shift in (0, 2, 4, 6))


def _main() -> None:
    turns = 3 if "--quick" in sys.argv else 20
    sizes = [2048] if "--quick" in sys.argv else [2048, 4096]
    for result in products(sizes, [1], [1], turns=turns):
        print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    _main()
