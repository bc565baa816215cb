"""This file holds the case `serve`: what the server adds to the engine, and what its clients wait for.

Weights are random, texts greedy. The server has one core and one thread, the clients another, so that neither takes
from the other; the engine alone, in turns with it, has the server's core. `--url` measures another server, too, which
must have as many threads.
"""

import asyncio
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import psutil

from bench.cpu_models import plain
from bench.curves import Curve, draw_curves
from bench.result import Result, table
from bench.serve_client import Load, Request, closed_loop, open_loop, stream
from nanochat.lm import Model
from nanochat.presets import preset
from nanochat.text.tokenizer import Tokenizer
from tests.parity.random_models import random_packed_weights

__all__ = ["plot", "run", "table"]

_PROMPT, _ANSWER = 128, 128
# They end at different times, or all clients would read together, and then write.
_ANSWERS = range(_ANSWER // 2, _ANSWER * 3 // 2 + 1)
# More than are asked for in one measurement.
_PROMPTS = 1024
_CLIENTS, _QUICK_CLIENTS = (1, 8, 32, 64), (1, 32)
# How much of what the engine does alone 32 clients get.
_OF_ENGINE = {"tiny": 0.6, "nano-125m": 0.9}
_CPU_MICROSECONDS = 25.0
_ROWS = 64
_CLIENTS_OF = re.compile(r"(\S+), (\d+) clients, [^:]*(, beside .*)?")
_READY = re.compile(r"ready: (http://\S+)")


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """A server, its process if it is ours, and the name in results."""

    name: str
    url: str
    process: psutil.Process | None


def run(quick: bool, *, urls: Sequence[str] = ()) -> Iterator[Result]:
    """Models of the targets; only the smallest where there is little time, and one that a peer can have."""
    for name in ("nano-125m",) if urls else ("tiny",) if quick else ("tiny", "nano-125m"):
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / name
            _write(directory, name)
            case = _Case(name, directory, turns=1 if quick else 3, seconds=3.0 if quick else 6.0)
            with case.served() as subject:
                others = [_Subject(name=url, url=url, process=None) for url in urls]
                for clients in _QUICK_CLIENTS if quick else _CLIENTS:
                    yield from case.clients(subject, others, clients)
                yield from case.arrivals(subject)
                yield case.known_prompt(subject)
                yield from case.long_prompt(subject)


def plot(results: Sequence[Result], path: Path) -> None:
    """Draw tokens a second by clients, of the server, of the engine alone and of other servers."""
    charts: dict[str, dict[str, dict[float, float]]] = {}
    for result in results:
        found = _CLIENTS_OF.fullmatch(result.what)
        if found is not None and result.peer is not None:
            curves, clients = charts.setdefault(f"{found[1]}, tokens a second", {}), float(found[2])
            curves.setdefault("the server", {})[clients] = result.ours
            curves.setdefault(result.peer_name or "", {})[clients] = result.peer
    drawn = {
        title: [Curve(name, sorted(points.items())) for name, points in curves.items()]
        for title, curves in charts.items()
    }
    draw_curves(drawn, path, x_label="clients")


def _write(directory: Path, name: str) -> None:
    """A model with random weights, a long context, and more rows than tokens."""
    shape = preset("tiny") if name == "tiny" else plain(name)
    config = replace(shape, context_length=8192)
    tokenizer = Tokenizer.train(["a"], vocab_size=263)
    Model(
        config, random_packed_weights(config, seed=0), tokenizer, backend="reference"
    ).save_pretrained(directory, licence="MIT")


def _requests(
    number: int, *, length: int = _PROMPT, num_tokens: Sequence[int] = _ANSWERS
) -> list[Request]:
    """Prompts of which no two begin alike, with answers of any of those lengths."""
    generator = np.random.default_rng(number)
    prompts = generator.integers(7, 263, (_PROMPTS, length)).tolist()
    answers = generator.choice(num_tokens, _PROMPTS).tolist()
    return [Request(ids=ids, num_tokens=count) for ids, count in zip(prompts, answers, strict=True)]


class _Case:
    def __init__(self, name: str, directory: Path, *, turns: int, seconds: float) -> None:
        self.name = name
        self._directory = directory
        self._turns, self._seconds = turns, seconds
        self._cores = sorted(os.sched_getaffinity(0))
        self._model = Model.from_pretrained(
            directory, backend="numba", kv_cache="float16", num_threads=1
        )
        # So that no prompt was seen before.
        self._number = 0

    @contextmanager
    def served(self) -> Iterator[_Subject]:
        """Our server, on the first core; this process on the others."""
        words = ["--backend", "numba", "--threads", "1", "--kv-cache", "float16", "--port", "0"]
        words += ["--max-rows", str(_ROWS), "--queue", "1000", "--kv-memory", "4GB"]
        # Texts of random weights repeat themselves, and guesses would be half of what is measured.
        words += ["--no-drafts"]
        process = subprocess.Popen(
            [sys.executable, "-m", "nanochat", "serve", str(self._directory), *words],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "NANOCHAT_LOG": "warning"},
            preexec_fn=lambda: os.sched_setaffinity(0, self._cores[:1]),
        )
        try:
            assert process.stderr is not None
            ready = next(found for line in process.stderr if (found := _READY.search(line)))
            yield _Subject(name="nanochat serve", url=ready[1], process=psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait()

    def _fresh(
        self, *, length: int = _PROMPT, num_tokens: Sequence[int] = _ANSWERS
    ) -> list[Request]:
        self._number += 1
        return _requests(self._number, length=length, num_tokens=num_tokens)

    def clients(self, ours: _Subject, others: Sequence[_Subject], clients: int) -> Iterator[Result]:
        """Tokens/s, waits and CPU of so many clients that ask without a pause, beside the engine alone."""
        what = f"{self.name}, {clients} clients, prompts of {_PROMPT}, answers of {_ANSWER} +- {_ANSWER // 2}"
        rates: dict[str, list[float]] = {one.name: [] for one in (ours, *others)}
        alone: list[float] = []
        loads: list[Load] = []
        cpu: list[float] = []
        for _ in range(self._turns):
            for one in (ours, *others):
                rate, load, micros = self._closed(one, clients)
                rates[one.name].append(rate)
                if one is ours:
                    loads.append(load)
                    cpu.append(micros)
            alone.append(self._alone(clients))
        target = _OF_ENGINE[self.name] if clients == 32 else None
        times = median(a / b for a, b in zip(rates[ours.name], alone, strict=True))
        yield Result(
            case="serve",
            what=what,
            unit="tokens/s",
            ours=median(rates[ours.name]),
            low=min(rates[ours.name]),
            high=max(rates[ours.name]),
            peer=median(alone),
            peer_name="the engine alone",
            ratio=times,
            target=target,
            ok=target is None or times >= target,
        )
        for other in others:
            found = rates[other.name]
            yield Result(
                case="serve",
                what=f"{what}, beside {other.name}",
                unit="tokens/s",
                ours=median(rates[ours.name]),
                peer=median(found),
                peer_name=other.name,
                ratio=median(a / b for a, b in zip(rates[ours.name], found, strict=True)),
            )
        yield from self._waits(what, loads)
        yield Result(
            case="serve",
            what=f"{what}: CPU of the server's event loop for each event",
            unit="us",
            ours=median(cpu),
            low=min(cpu),
            high=max(cpu),
            target=_CPU_MICROSECONDS,
            ok=median(cpu) <= _CPU_MICROSECONDS,
        )

    def _waits(self, what: str, loads: Sequence[Load]) -> Iterator[Result]:
        streams = [one for load in loads for one in load.streams]
        firsts = [one.first * 1e3 for one in streams]
        gaps = [gap * 1e3 for one in streams for gap in one.gaps]
        for named, values in (("to the first token", firsts), ("between tokens", gaps)):
            middle, high, most = np.percentile(values or [float("nan")], [50, 95, 99])
            yield Result(
                case="serve",
                what=f"{what}: time {named}, median; 95 and 99 hundredths as low and high",
                unit="ms",
                ours=float(middle),
                low=float(high),
                high=float(most),
            )

    def _closed(self, one: _Subject, clients: int) -> tuple[float, Load, float]:
        before = _loop_seconds(one.process)
        with self._pinned(self._cores[1:] or self._cores):
            load, start, end = asyncio.run(
                closed_loop(one.url, self._fresh(), clients=clients, seconds=self._seconds)
            )
        taken = _loop_seconds(one.process) - before
        events = sum(count for each in load.streams for _, count in each.arrivals)
        return load.rate(start, end), load, taken / max(events, 1) * 1e6

    def _alone(self, rows: int) -> float:
        """Tokens/s of a session of as many texts that are asked for as the clients do."""
        requests = iter(self._fresh())
        with self._pinned(self._cores[:1]):
            session = self._model.session(rows=rows)

            def add() -> int:
                request = next(requests)
                (row,) = session.add(request.ids, max_tokens=request.num_tokens, ignore_eos=True)
                return row

            firsts = {add() for _ in range(rows)}
            count, start, end = 0, math.inf, math.inf
            while (now := time.perf_counter()) < end:
                pieces = session.step()
                count += len(pieces) if now > start else 0
                for piece in pieces:
                    if piece.finish_reason is not None:
                        firsts.discard(piece.row)
                        add()
                # As for clients: once the first answer of each has ended.
                if start == math.inf and not firsts:
                    start, end = now, now + self._seconds
            return count / self._seconds

    @contextmanager
    def _pinned(self, cores: Sequence[int]) -> Iterator[None]:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)

    def arrivals(self, ours: _Subject) -> Iterator[Result]:
        """What clients wait for that come at random, at 70 % of what 32 clients get."""
        rate, _, _ = self._closed(ours, 32)
        load = asyncio.run(
            open_loop(ours.url, self._fresh(), rate=0.7 * rate / _ANSWER, seconds=2 * self._seconds)
        )
        yield from self._waits(f"{self.name}, requests at random, 70 % of the rate of 32", [load])

    def known_prompt(self, ours: _Subject) -> Result:
        """The first token of a prompt of 960 tokens that was seen before, beside one that was not."""
        known: list[float] = []
        unknown: list[float] = []
        for request in self._fresh(length=960, num_tokens=[2])[: 3 * self._turns]:
            for found in (unknown, known):
                found.append(asyncio.run(stream(ours.url, request)).first * 1e3)
        times = median(a / b for a, b in zip(unknown, known, strict=True))
        target = 100 if self.name == "nano-125m" else None
        return Result(
            case="serve",
            what=f"{self.name}: first token after a prompt of 960 that is known",
            unit="ms",
            ours=median(known),
            low=max(known),
            high=min(known),
            peer=median(unknown),
            peer_name="one that is not",
            ratio=times,
            target=target,
            ok=target is None or times >= target,
        )

    def long_prompt(self, ours: _Subject) -> Iterator[Result]:
        """The longest gap of eight streams while a prompt of 4,000 tokens is read, beside their median gap."""

        async def both() -> float:
            shorts = self._fresh(num_tokens=[1500])[:8]
            long = self._fresh(length=4000, num_tokens=[2])[0]
            writing = [asyncio.create_task(stream(ours.url, request)) for request in shorts]
            await asyncio.sleep(1)
            began = time.perf_counter()
            await stream(ours.url, long)
            ended = time.perf_counter()
            for task in writing:
                await task
            inside: list[float] = []
            outside: list[float] = []
            for task in writing:
                arrivals = task.result().arrivals
                for (before, _), (now, _) in pairwise(arrivals):
                    (inside if began < now < ended else outside).append(now - before)
            return max(inside) / median(outside)

        shares = [asyncio.run(both()) for _ in range(self._turns)]
        yield Result(
            case="serve",
            what=f"{self.name}: longest gap of 8 streams while 4,000 tokens are read, in median gaps",
            unit="gaps",
            ours=median(shares),
            low=max(shares),
            high=min(shares),
            target=3.0,
            ok=median(shares) <= 3,
        )


def _loop_seconds(process: psutil.Process | None) -> float:
    """CPU time of a process's first thread, which is that of the event loop."""
    if process is None:
        return 0.0
    loop = next(one for one in process.threads() if one.id == process.pid)
    seconds: float = loop.user_time + loop.system_time
    return seconds
