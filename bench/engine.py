"""This file holds the case `engine`: tokens a second of 1 to 64 texts at a time, beside llama.cpp and the prompt rate.

Weights are random, texts greedy after a context of 64, on all cores with a cache of float16. llama.cpp runs the same
weights as TQ2_0 with as many sequences in a batch, and need not even choose tokens. The bound is the rate at which this
engine reads a prompt: products cannot be used better than that. As a program, ``python -m bench.engine`` prints JSON
lines of 32 rows beside one; so AVX2 alone can be timed, in a process whose compiler knows no AVX-512.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.avx2 import with_avx2
from bench.cpu_models import beside_llama_cpp, plain, write_for_llama_cpp
from bench.interleaved import Runner, interleaved, ratio
from bench.result import Result, table
from nanochat.backends.host import num_cores
from nanochat.backends.numba.ops import NumbaOps
from nanochat.backends.numba.runtime.isa import chosen
from nanochat.errors import counted
from nanochat.export.gguf.llama_cpp import LlamaCpp
from nanochat.generation.engine import Engine
from nanochat.generation.sampling import Sampling, batch_samplers
from tests.parity.random_models import random_packed_weights

__all__ = ["decoding", "run", "table"]

_CONTEXT, _PROMPT, _ROOM = 64, 512, 4096
_IDS = [7 + i * i % 250 for i in range(4096)]
_ROWS = (1, 2, 4, 8, 16, 32, 64)
_MOST = 32
_TURN = 0.5
_GREEDY = Sampling(temperature=0.0)
# How many times as fast as llama.cpp, and 32 rows over one (with AVX2 alone, and with more), and over a prompt.
_OVER_PEER = {("nano-125m", 8): 2.2, ("nano-125m", 32): 2.2}
_OVER_ONE_AVX2 = {"nano-125m": 2.2, "560m": 1.9}
_OVER_ONE = {"nano-125m": 3.3, "560m": 2.3, "2.3b": 2.7}
_OVER_PROMPT = 0.92


def run(quick: bool) -> Iterator[Result]:
    """The models of the targets; the larger ones, and AVX2 alone, only where there is time."""
    for name in ("nano-125m",) if quick else ("nano-125m", "560m"):
        engine = _engine(name)
        rows = (1, 8, 32) if quick else _ROWS
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.gguf"
            write_for_llama_cpp(path, engine.config, random_packed_weights(engine.config, seed=0))
            peer = LlamaCpp(path, threads=num_cores(), context=512, rows=max(rows))
            yield from _results(name, engine, peer, rows, turns=3 if quick else 9)
            peer.close()
    if not quick:
        yield from _results("2.3b", _engine("2.3b"), None, (1, _MOST), turns=9)
        yield from with_avx2("bench.engine")


def _engine(name: str) -> Engine[Any, Any, Any]:
    ops = NumbaOps(num_threads=num_cores())
    config = plain(name)
    weights = ops.prepare(random_packed_weights(config, seed=0))
    return Engine(config, weights, ops, kv_cache="float16")


def _results(
    name: str,
    engine: Engine[Any, Any, Any],
    peer: LlamaCpp | None,
    rows: tuple[int, ...],
    *,
    turns: int,
) -> Iterator[Result]:
    runners: dict[str, Runner] = {
        "prompt": Runner(run=lambda: engine.prefill(_IDS[:_PROMPT], capacity=_PROMPT))
    }
    for count in rows:
        runners[f"ours, {count}"] = decoding(engine, count)
        if peer is not None:
            runners[f"peer, {count}"] = _decoding_by_peer(peer, count)
    timings = interleaved(runners, turns=turns, seconds=_TURN)
    where = f"{name}, {counted(num_cores(), 'thread')}"
    prompt = timings["prompt"]
    if peer is not None:
        for count in rows:
            yield beside_llama_cpp(
                "engine",
                f"{counted(count, 'row')}, context {_CONTEXT}, {where}",
                timings[f"ours, {count}"],
                timings[f"peer, {count}"],
                count,
                target=_OVER_PEER.get((name, count)),
                bound=_PROMPT / prompt.seconds,
            )
    avx2 = chosen() == "avx2"
    over_one = _OVER_ONE_AVX2 if avx2 else _OVER_ONE
    most = timings[f"ours, {_MOST}"]
    for over, other, amount, target in (
        ("1 row", timings["ours, 1"], 1, over_one.get(name)),
        ("prompt", prompt, _PROMPT, None if avx2 else _OVER_PROMPT),
    ):
        times = ratio(most, other) * _MOST / amount
        yield Result(
            case="engine",
            what=f"{_MOST} rows over {over}, {where}{', AVX2' if avx2 else ''}",
            unit="tokens/s",
            **most.rates(_MOST),
            peer=amount / other.seconds,
            peer_name=over,
            ratio=times,
            target=target,
            ok=target is None or times >= target,
        )


def decoding(engine: Engine[Any, Any, Any], rows: int, settings: Sampling = _GREEDY) -> Runner:
    """A token for each of so many rows, as a session does it."""
    state = None
    vocab_size = engine.config.vocab_size
    samplers = batch_samplers(settings, [[]] * rows)

    def start() -> None:
        nonlocal state
        state = engine.new_state(rows=rows, capacity=1024)
        row = state.admit()
        engine.extend(state, row, _IDS[:_CONTEXT])
        for _ in range(rows - 1):
            state.fork(row)

    def step() -> None:
        # Another draw each time: to be turned down by a filter takes a token several passes.
        for sampler in samplers:
            sampler.push(9)
        engine.draw(state, range(rows), [[9]] * rows, samplers, vocab_size=vocab_size)

    return Runner(run=step, start=start)


def _decoding_by_peer(peer: LlamaCpp, rows: int) -> Runner:
    def start() -> None:
        peer.reset()
        for token in _IDS[:_CONTEXT]:
            peer.decode_rows([token] * rows)

    return Runner(run=lambda: peer.decode_rows([9] * rows), start=start, rest=peer.pause)


def _main() -> None:
    for name in _OVER_ONE_AVX2:
        for result in _results(name, _engine(name), None, (1, _MOST), turns=9):
            print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    _main()
