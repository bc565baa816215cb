"""This file holds the part of the case `cpu` that times whole models with random weights, which compute as fast as any.

Beside ours runs llama.cpp with the same weights as TQ2_0 and Q8_0, on as many threads.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench.bandwidth import read_bandwidth
from bench.interleaved import Runner, Timing, interleaved, ratio
from bench.result import Result
from nanochat.backends.host import num_cores
from nanochat.backends.numba.ops import NumbaOps
from nanochat.backends.numba.products.packing import Leaf
from nanochat.backends.numba.state import NumbaState
from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.export.gguf.llama_cpp import LlamaCpp
from nanochat.export.gguf.write import write_gguf
from nanochat.generation.engine import Engine
from nanochat.presets import preset
from nanochat.shapes import shapes
from nanochat.text.tokenizer import Tokenizer
from nanochat.weights import Stored, Weights, map_leaves, named_leaves
from tests.parity.random_models import random_packed_weights

__all__ = ["against_llama_cpp", "beside_llama_cpp", "cost_of_streams", "plain"]
__all__ += ["write_for_llama_cpp"]

# Tokens that the sequence holds before decoding is timed, tokens of a prompt, and room for those of a turn.
_CONTEXT, _PROMPT, _ROOM = 64, 512, 2048
_IDS = list(range(7, 7 + _PROMPT))
# Seconds of decoding in a turn.
_TURN = 0.2
_PEER = "llama.cpp TQ2_0"
_DECODE, _PREFILL = 2.0, 4.0


def plain(name: str) -> ModelConfig:
    """A preset's shape with one residual stream, which llama.cpp can run; "2.3b" is that of BitNet b1.58 2B4T."""
    if name == "560m":
        return ModelConfig(
            vocab_size=32_768,
            width=1536,
            num_layers=20,
            num_heads=12,
            num_kv_heads=4,
            head_dim=128,
            ffn_width=4096,
            context_length=4096,
            num_streams=1,
        )
    if name == "2.3b":
        return ModelConfig(
            vocab_size=65_536,
            width=2560,
            num_layers=30,
            num_heads=20,
            num_kv_heads=5,
            head_dim=128,
            ffn_width=6912,
            context_length=4096,
            num_streams=1,
        )
    return replace(preset(name), num_streams=1)


def against_llama_cpp(
    names: list[str], thread_counts: list[int], *, turns: int, prefill_turns: int
) -> Iterator[Result]:
    """Tokens per second of decoding and of reading a prompt."""
    for name in names:
        config = plain(name)
        weights = random_packed_weights(config, seed=0)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write_for_llama_cpp(path, config, weights)
            for threads in thread_counts:
                yield from _compare(name, config, weights, path, threads, turns, prefill_turns)


def cost_of_streams(name: str, *, turns: int) -> Iterator[Result]:
    """Decoding with four residual streams, static and dynamic, beside one stream.

    A static site may cost 3 %; a dynamic one the bytes of its projection, and 5 % more.
    """
    threads = num_cores()
    one = plain(name)
    configs = {
        "1 stream": one,
        "4 static streams": replace(one, num_streams=4, coefficients="static"),
        "4 dynamic streams": replace(one, num_streams=4, coefficients="dynamic"),
    }
    ops = NumbaOps(num_threads=threads)
    most = random_packed_weights(configs["4 dynamic streams"], seed=0)
    # All read the same matrices: where a matrix lies in memory may matter more than the streams do.
    leaves = dict(named_leaves(ops.prepare(most)))
    ours = {
        what: _Ours(config, map_leaves(lambda name, _: leaves[name], shapes(config)), ops)
        for what, config in configs.items()
    }
    runners = {
        what: Runner(run=model.decode, start=model.start, rest=_nothing)
        for what, model in ours.items()
    }
    timings = interleaved(runners, turns=turns, seconds=_TURN)
    plain_bytes = ours["1 stream"].num_bytes
    for what, allowed in (("4 static streams", 1.03), ("4 dynamic streams", 1.05)):
        over = ratio(timings["1 stream"], timings[what])
        limit = ours[what].num_bytes / plain_bytes - 1 + allowed if "dynamic" in what else allowed
        yield Result(
            case="cpu",
            what=f"decode, {name}, {what}, {threads} threads: time over that of 1 stream",
            unit="ratio",
            ours=over,
            peer=1.0,
            peer_name="1 stream",
            target=limit,
            ok=over <= limit,
        )


def write_for_llama_cpp(path: Path, config: ModelConfig, weights: Weights[Stored]) -> None:
    """A file that the library of llama.cpp runs."""
    # Only token numbers are fed, so the smallest vocabulary of texts will do.
    tokenizer = Tokenizer.train(["a"], vocab_size=263)
    source = Bundle(
        name="benchmark", config=config, weights=weights, tokenizer=tokenizer, generation={}
    )
    write_gguf(path, source, runtime="llama.cpp")


def _compare(
    name: str,
    config: ModelConfig,
    weights: Weights[Stored],
    path: Path,
    threads: int,
    turns: int,
    prefill_turns: int,
) -> Iterator[Result]:
    ops = NumbaOps(num_threads=threads)
    ours = _Ours(config, ops.prepare(weights), ops)
    peer = _LlamaCpp(path, threads)
    runners = {
        "ours": Runner(run=ours.decode, start=ours.start, rest=_nothing),
        _PEER: Runner(run=peer.decode, start=peer.start, rest=peer.model.pause),
    }
    bandwidth = read_bandwidth(threads=threads, num_bytes=2**29, runs=3)
    timings = interleaved(runners, turns=turns, seconds=_TURN)
    where = f"{name}, {threads} thread{'s' * (threads > 1)}"
    bound = bandwidth / ours.num_bytes
    both = timings["ours"], timings[_PEER]
    yield beside_llama_cpp("cpu", f"decode, {where}", *both, 1, target=_DECODE, bound=bound)
    runners = {
        "ours": Runner(run=ours.prefill, rest=_nothing),
        _PEER: Runner(run=peer.prefill, rest=peer.model.pause),
    }
    timings = interleaved(runners, turns=prefill_turns, seconds=0.0)
    both = timings["ours"], timings[_PEER]
    what = f"prefill of {_PROMPT}, {where}"
    yield beside_llama_cpp("cpu", what, *both, _PROMPT, target=_PREFILL, bound=None)
    peer.model.close()


def beside_llama_cpp(
    case: str,
    what: str,
    ours: Timing,
    peer: Timing,
    amount: int,
    *,
    target: float | None,
    bound: float | None,
) -> Result:
    """So many tokens in a call of ours, beside as many of llama.cpp."""
    times = ratio(ours, peer)
    return Result(
        case=case,
        what=what,
        unit="tokens/s",
        **ours.rates(amount),
        peer=amount / peer.seconds,
        peer_name=_PEER,
        ratio=times,
        bound=bound,
        target=target,
        ok=target is None or times >= target,
    )


class _Ours:
    def __init__(self, config: ModelConfig, weights: Weights[Leaf], ops: NumbaOps) -> None:
        # As llama.cpp keeps keys and values by default.
        self._engine = Engine(config, weights, ops, kv_cache="float16")
        self._state: NumbaState | None = None
        # What a token reads: of the table of a tied head all, of another one row.
        leaves = dict(named_leaves(weights))
        if "head" in leaves:
            del leaves["embedding"]
        self.num_bytes = sum(leaf.nbytes for leaf in leaves.values())

    def start(self) -> None:
        self._state, _ = self._engine.prefill(_IDS[:_CONTEXT], capacity=_ROOM)

    def decode(self) -> None:
        assert self._state is not None
        self._engine.decode([7], self._state)

    def prefill(self) -> None:
        self._engine.prefill(_IDS, capacity=_ROOM)


class _LlamaCpp:
    def __init__(self, path: Path, threads: int) -> None:
        self.model = LlamaCpp(path, threads=threads, context=_ROOM)

    def start(self) -> None:
        self.model.reset()
        self.model.prefill(_IDS[:_CONTEXT])

    def decode(self) -> None:
        self.model.decode(7)

    def prefill(self) -> None:
        self.model.reset()
        self.model.prefill(_IDS)


def _nothing() -> None:
    time.sleep(0.01)
