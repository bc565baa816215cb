"""This file holds the case `rows`: what it costs that texts come, leave, and share a beginning; and to draw for many.

Weights are random, which compute as fast as any. Everything runs on all cores with a cache of float16; what is compared
takes turns.
"""

import time
from collections.abc import Iterator
from statistics import median

import numpy as np

from bench.cpu_models import plain
from bench.engine import decoding
from bench.interleaved import interleaved, ratio
from bench.result import Result, table
from nanochat.backends.host import num_cores
from nanochat.backends.numba.ops import NumbaOps
from nanochat.generation.engine import Engine
from nanochat.generation.sampling import Sampling
from nanochat.generation.session import Session
from nanochat.text.tokenizer import Tokenizer
from tests.parity.random_models import random_packed_weights

__all__ = ["run", "table"]

_CONTEXT, _ROWS = 64, 32
_IDS = [7 + i * i % 250 for i in range(4096)]
_TURN = 0.5


def run(quick: bool) -> Iterator[Result]:
    """A model of 125 million weights."""
    ops = NumbaOps(num_threads=num_cores())
    config = plain("nano-125m")
    weights = ops.prepare(random_packed_weights(config, seed=0))
    engine = Engine(config, weights, ops, kv_cache="float16")
    case = _Case("nano-125m", engine, turns=3 if quick else 15)
    yield from case.membership()
    yield from case.sampling()
    yield from case.conversation()
    yield from case.samples()


class _Case:
    def __init__(self, name: str, engine: Engine, *, turns: int) -> None:  # type: ignore[type-arg]
        self.name = f"{name}, {num_cores()} threads"
        self.engine = engine
        self.turns = turns
        self.tokenizer = Tokenizer.train(["a"], vocab_size=263)

    def membership(self) -> Iterator[Result]:
        """What it costs that a row of 32 leaves and another, with a context of 64, takes its place."""
        engine = self.engine
        state = engine.new_state(rows=_ROWS + 1, capacity=1024)
        source = state.admit()
        engine.extend(state, source, _IDS[:_CONTEXT])
        rows = [state.fork(source) for _ in range(_ROWS)]
        steps, changes = [], []
        for turn in range(40 * self.turns):
            begin = time.perf_counter()
            engine.step(state, rows, [[9]] * _ROWS)
            middle = time.perf_counter()
            place = turn % _ROWS
            state.release(rows[place])
            rows[place] = state.fork(source)
            changes.append(time.perf_counter() - middle)
            steps.append(middle - begin)
        yield self._time("a row leaves and another joins", "steps", changes, steps, target=0.2)

    def sampling(self) -> Iterator[Result]:
        """What drawing adds to a step of 32 rows, for each row, in row steps."""
        runners = {
            "drawn": decoding(self.engine, _ROWS, Sampling(temperature=0.7, top_p=0.95)),
            "greedy": decoding(self.engine, _ROWS),
        }
        timings = interleaved(runners, turns=self.turns, seconds=_TURN)
        share = 1 / ratio(timings["drawn"], timings["greedy"]) - 1
        yield Result(
            case="rows",
            what=f"a draw of {self.engine.config.vocab_size} tokens, temperature .7, top-p .95, {self.name}",
            unit="steps",
            ours=share,
            peer=1.0,
            peer_name="its row's part of a step of 32",
            target=0.06,
            ok=share <= 0.06,
        )

    def conversation(self) -> Iterator[Result]:
        """The first token of the tenth turn, in which as much is new as in the first."""
        firsts: list[float] = []
        tenths: list[float] = []
        for _ in range(self.turns):
            session = Session(self.engine, self.tokenizer, rows=1)
            ids: list[int] = []
            for turn in range(10):
                ids = [*ids, *_IDS[turn * 40 : turn * 40 + 40]]
                begin = time.perf_counter()
                pieces = session.pieces([ids], max_tokens=8)
                first = next(pieces)
                seconds = time.perf_counter() - begin
                ids += [first.token, *(piece.token for piece in pieces)]
                if turn in (0, 9):
                    (firsts if turn == 0 else tenths).append(seconds)
        yield self._time("first token of turn 10", "turn 1", tenths, firsts, target=1.2)

    def samples(self) -> Iterator[Result]:
        """Four texts of a prompt of 500 tokens, beside one."""
        four: list[float] = []
        one: list[float] = []
        for _ in range(self.turns):
            for n, times in ((4, four), (1, one)):
                session = Session(self.engine, self.tokenizer, rows=4, capacity=600)
                begin = time.perf_counter()
                list(session.pieces([_IDS[:500]], n=n, max_tokens=8, temperature=1.0))
                times.append(time.perf_counter() - begin)
        yield self._time(
            "4 texts of 8 tokens after a prompt of 500", "1 text", four, one, target=1.5
        )

    def _time(
        self, what: str, peer_name: str, ours: list[float], peer: list[float], *, target: float
    ) -> Result:
        times = median(ours) / median(peer)
        return Result(
            case="rows",
            what=f"{what}, {self.name}",
            unit="ms",
            ours=1e3 * median(ours),
            low=1e3 * float(np.percentile(ours, 75)),
            high=1e3 * float(np.percentile(ours, 25)),
            peer=1e3 * median(peer),
            peer_name=peer_name,
            ratio=times,
            target=target,
            ok=times <= target,
        )
