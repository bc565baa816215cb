"""This file holds the case `steps`: tokens a second of training `tiny` on this CPU, its start, and its memory.

Data are Python's own library. In turns in one process: what a run does, the same with its whole pass compiled at once
and with one sequence at a time, the plain model (one stream, nothing rounded), shorter sequences, and products in
bfloat16. The bound is what the products alone would allow: their speed, measured in the same run, over the operations
of a token. What a batch takes of a step is measured, too. First steps and memory are of processes of their own, with an
empty cache of the compiler.
"""

import dataclasses
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

import torch

from bench.interleaved import Runner, interleaved, ratio
from bench.result import Result, table
from bench.steps_probe import settings, with_whole_pass
from nanochat.backends.host import num_cores
from nanochat.data.batch import Layout
from nanochat.data.prepare import prepare
from nanochat.errors import counted
from nanochat.training.estimate import estimate, flops_per_token
from nanochat.training.layers import compiling
from nanochat.training.loop import Trainer
from nanochat.training.products import measured
from nanochat.training.recipe import Recipe

__all__ = ["run", "table"]

_TOKENS = 4096
# Over the whole pass compiled at once, over the same at 512 tokens, and the time over that of the plain model.
_OVER_WHOLE, _SHORTER, _OVER_PLAIN = 1.1, 1.2, 1.12
# Of the CPU seconds to the first step, and of the memory of a step.
_START, _AGAIN = 0.5, 0.5
# Of a step, for its batch.
_WAITING = 0.02


def run(quick: bool) -> Iterator[Result]:
    """Steps on one thread, and on all; what takes processes of its own only where there is time."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        prepare([f"{sysconfig.get_path('stdlib')}/*.py"], data, 4096, held_out=0.02)
        yield from _speeds(data, Path(folder), quick=quick)
        if not quick:
            yield from _first_steps(data)
            yield from _memory(data)


def _speeds(data: Path, folder: Path, *, quick: bool) -> Iterator[Result]:
    shorter = {"batch_size": 16, "length": 256}
    kinds = {
        "ours": settings(),
        "plain": settings(model={"num_streams": 1}, precision={"weights": "float"}),
        "length 256": settings(data=shorter),
        "bfloat16": settings(precision={"products": "bfloat16"}),
        "one sequence at a time": settings(data={"microbatch": 1}),
    }
    trainers = {
        name: Trainer(recipe, data, folder / name, num_threads=1)
        for name, recipe in kinds.items()
        if not quick or name in ("ours", "plain")
    }
    if not quick:
        trainers["whole"] = with_whole_pass(
            Trainer(settings(), data, folder / "whole", num_threads=1)
        )
    cores = num_cores()
    runners: dict[str, Runner] = {name: _steps(each, 1) for name, each in trainers.items()}
    if cores > 1:
        runners["all threads"] = _steps(trainers["ours"], cores)
    timings = interleaved(runners, turns=2 if quick else 7)
    torch.set_num_threads(1)
    speeds = measured(kinds["ours"].model.width, torch.device("cpu"))

    def bound(recipe: Recipe, threads: int = 1) -> float:
        flops = flops_per_token(recipe.model, recipe.data.length)
        return dataclasses.replace(speeds, threads=threads).peak(recipe.precision.products) / flops

    def result(
        name: str, what: str, limit: float, peer: str = "", target: float | None = None
    ) -> Result:
        times = ratio(timings[name], timings[peer]) if peer else None
        return Result(
            case="steps",
            what=what,
            unit="tokens/s",
            **timings[name].rates(_TOKENS),
            peer=_TOKENS / timings[peer].seconds if peer else None,
            peer_name=peer or None,
            ratio=times,
            bound=limit,
            target=target,
            ok=target is None or times is None or times >= target,
        )

    usual = "8 x 512, float32, 1 thread"
    yield result("ours", f"tiny, {usual}", bound(kinds["ours"]), "plain", 1 / _OVER_PLAIN)
    if "whole" in timings:
        yield result(
            "ours", f"tiny, {usual}: by layers", bound(kinds["ours"]), "whole", _OVER_WHOLE
        )
    for name, target in (
        ("length 256", _SHORTER),
        ("bfloat16", None),
        ("one sequence at a time", None),
    ):
        if name in timings:
            yield result(name, f"tiny, {name}, 1 thread", bound(kinds[name]), "ours", target)
    if cores > 1:
        yield result(
            "all threads",
            f"tiny, 8 x 512, float32, {counted(cores, 'thread')}",
            bound(kinds["ours"], cores),
            "ours",
        )
    yield from _batches(trainers["ours"], timings["ours"].seconds, turns=2 if quick else 7)


def _batches(trainer: Trainer, step: float, turns: int) -> Iterator[Result]:
    """What a batch takes of a step of so many seconds, however its sequences are made."""
    layouts = {
        "windows": Layout(length=512),
        "masked windows": Layout(length=512, document_masks=True),
        "packed": Layout(length=512, packing="best-fit"),
    }
    numbers = count()

    def batch(layout: Layout) -> None:
        trainer.shards.batch(next(numbers), 8, layout)

    runners = {name: Runner(run=partial(batch, layout)) for name, layout in layouts.items()}
    for name, timing in interleaved(runners, turns=turns).items():
        share = timing.seconds / step
        yield Result(
            case="steps",
            what=f"a batch of 8 x 512, {name}, over a step of tiny",
            unit="ms",
            ours=1e3 * timing.seconds,
            low=1e3 * min(timing.turns),
            high=1e3 * max(timing.turns),
            peer=1e3 * step,
            peer_name="step",
            ratio=share,
            target=_WAITING,
            ok=share <= _WAITING,
        )


def _steps(trainer: Trainer, threads: int) -> Runner:
    def step() -> None:
        with compiling():
            trainer._advance()

    return Runner(run=step, start=lambda: torch.set_num_threads(threads))


def _first_steps(data: Path) -> Iterator[Result]:
    ours, whole = (_probe(data, kind) for kind in ("layers", "whole"))
    share = ours["cpu_seconds"] / whole["cpu_seconds"]
    yield Result(
        case="steps",
        what="tiny, first step, nothing compiled before",
        unit="CPU s",
        ours=ours["cpu_seconds"],
        peer=whole["cpu_seconds"],
        peer_name="whole",
        ratio=share,
        target=_START,
        ok=share <= _START,
    )


def _memory(data: Path) -> Iterator[Result]:
    kept, again = (_probe(data, kind) for kind in ("kept", "again"))
    share = again["bytes"] / kept["bytes"]
    for name, found in (("kept", kept), ("again", again)):
        counted_bytes = estimate(settings(name)).bytes
        yield Result(
            case="steps",
            what=f"nano-125m, 8 x 1024, memory of a step, layers {name}",
            unit="GB",
            ours=found["bytes"] / 1e9,
            peer=counted_bytes / 1e9,
            peer_name="counted before",
            ratio=found["bytes"] / counted_bytes,
        )
    yield Result(
        case="steps",
        what="nano-125m, 8 x 1024, memory of a step, computed again over kept",
        unit="GB",
        ours=again["bytes"] / 1e9,
        peer=kept["bytes"] / 1e9,
        peer_name="kept",
        ratio=share,
        target=_AGAIN,
        ok=share <= _AGAIN,
    )


def _probe(data: Path, kind: str) -> dict[str, float]:
    """One step in a process of its own, whose compiler remembers nothing."""
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, "-m", "bench.steps_probe", kind, str(data)],
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
