"""This file holds the case `load`: seconds until a large model's files have become a model that runs, stage by stage.

Files are in the system's cache and kernels are compiled; the backends take turns. A load reads every byte of the files
and writes what the backend keeps, which memory bounds: `bound` is the time of reading as many bytes.
"""

import gc
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

from bench.bandwidth import read_bandwidth
from bench.memory import can_run, measure, write_random_model
from bench.result import Result
from bench.result import table as plain_table
from nanochat import backends, checkpoint
from nanochat.lm import from_pretrained
from nanochat.ops import Ops
from nanochat.presets import preset

__all__ = ["run", "table"]

_TURNS, _QUICK_TURNS = 15, 3
_TARGET_SECONDS, _TARGET_RATIO = 3.0, 1.3
_TARGETED = "numba"
# Tokens of a text, for the memory that is looked at while a model is loaded.
_TOKENS = 4

_Seconds = dict[tuple[str, str], list[float]]


def run(quick: bool) -> Iterator[Result]:
    """Every backend that can run here, and the memory that loading takes at its height."""
    name = "nano-125m" if quick else "small-560m"
    with TemporaryDirectory() as folder:
        directory = Path(folder) / name
        write_random_model(directory, preset(name))
        num_bytes = sum(path.stat().st_size for path in directory.iterdir())
        bound = num_bytes / read_bandwidth(threads=1)
        names = [backend for backend in backends.names() if can_run(backend)]
        seconds = _seconds(directory, names, _QUICK_TURNS if quick else _TURNS)
        for (backend, stage), times in seconds.items():
            target = _TARGET_SECONDS if (backend, stage) == (_TARGETED, "all") else None
            yield Result(
                case="load",
                what=f"{name} on {backend}: {stage}",
                unit="s",
                ours=median(times),
                low=min(times),
                high=max(times),
                bound=bound,
                target=target,
                ok=target is None or median(times) < target,
            )
        for backend in names:
            yield _memory(directory, name, backend)


def table(results: Sequence[Result]) -> Table:
    """One row for each result."""
    return plain_table(results)


def _seconds(directory: Path, names: Sequence[str], turns: int) -> _Seconds:
    """Times of every turn by backend and stage; a first turn warms files and kernels and is not counted."""
    seconds: _Seconds = defaultdict(list)
    ops = {name: backends.get(name) for name in names}
    for turn in range(turns + 1):
        for name in names:
            for stage, spent in _stages(directory, name, ops[name]):
                if turn:
                    seconds[name, stage].append(spent)
    return seconds


def _stages(directory: Path, name: str, ops: Ops[Any, Any, Any]) -> Iterator[tuple[str, float]]:
    gc.collect()
    begin = time.perf_counter()
    _, weights = checkpoint.load(directory)
    read = time.perf_counter()
    prepared = ops.prepare(weights)
    end = time.perf_counter()
    yield "read and check", read - begin
    yield "prepare", end - read
    # What is freed now need not be freed while the whole is timed.
    del prepared, weights
    gc.collect()
    begin = time.perf_counter()
    model = from_pretrained(directory, backend=name)
    yield "all", time.perf_counter() - begin
    del model


def _memory(directory: Path, name: str, backend: str) -> Result:
    load = measure(directory, backend, _TOKENS)["load"]
    target = _TARGET_RATIO if backend == _TARGETED else None
    ratio = load.most_pages / load.pages
    return Result(
        case="load",
        what=f"{name} on {backend}: memory at its height, beside what stays",
        unit="MB",
        ours=load.most_pages / 1e6,
        peer=load.pages / 1e6,
        peer_name="resident when loaded",
        ratio=ratio,
        target=target,
        ok=target is None or ratio <= target,
    )
