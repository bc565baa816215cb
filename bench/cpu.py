"""This file holds the case `cpu`: the Numba backend beside what else a user could run on an x86 CPU."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.cpu_models import against_llama_cpp, cost_of_streams
from bench.cpu_products import avx2_only, bandwidth_share, products
from bench.parity import require
from bench.plot import draw
from bench.result import Result, table
from nanochat.backends.host import num_cores

__all__ = ["plot", "run", "table"]


def run(quick: bool) -> Iterator[Result]:
    """Products, whole models, and what residual streams cost; the backend must agree with the reference first."""
    require("numba")
    threads = sorted({1, num_cores()})
    if quick:
        yield from products([2048], [1, 64], [1], turns=3)
        yield from avx2_only(quick=True)
        yield from against_llama_cpp(["nano-125m"], threads[-1:], turns=3, prefill_turns=2)
        return
    yield from products([2048, 4096], [1, 64, 512], threads, turns=20)
    yield from avx2_only(quick=False)
    yield from bandwidth_share(turns=20)
    names = ["nano-125m", "small-560m", "2.3b"]
    yield from against_llama_cpp(names, threads, turns=20, prefill_turns=5)
    yield from cost_of_streams("small-560m", turns=20)


def plot(results: Sequence[Result], path: Path) -> None:
    """Draw whole models beside llama.cpp, decoding first; the table has the products."""
    models = [result for result in results if (result.peer_name or "").startswith("llama.cpp")]
    draw(sorted(models, key=lambda result: result.what.split(",")[0]), path)
