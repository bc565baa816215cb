"""This file holds the case `memory`: what a model takes on each backend, beside what `nanochat.memory` says.

A model is loaded and used in a process of its own, whose memory is looked at from outside about every millisecond. What
counts is memory that the process has for itself: pages of a mapped file are left out, as in the estimate.
"""

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from mmap import PAGESIZE
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from rich.table import Table

from bench.memory_probe import STAGES
from bench.result import Result
from nanochat import backends, checkpoint
from nanochat.config import ModelConfig
from nanochat.memory import needed_bytes
from nanochat.presets import preset
from nanochat.text.library import load_tokenizer
from nanochat.zoo.hub import resolve
from tests.parity.random_models import random_packed_weights

__all__ = [
    "Taken",
    "can_run",
    "measure",
    "model_peak",
    "process_peak",
    "run",
    "table",
    "write_random_model",
]

_ROOT = Path(__file__).parents[1]
_PAUSE = 0.0005
# Of a text: a prompt that most users have, and one that is read at once.
_LENGTHS = (64, 512)
# Minutes each, on two cores.
_SLOW = {("small-560m", "mlx", 512), ("small-560m", "reference", 512)}


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Bytes of a stage: of a process's own memory the `peak`, and what is left at the `end`.

    `most_pages` and `pages` are the same with pages of mapped files, counted from the beginning of the stage.
    """

    peak: int
    end: int
    most_pages: int
    pages: int


def run(quick: bool) -> Iterator[Result]:
    """Every backend that can run here, with models of two sizes and texts of two lengths."""
    for name in ("nano-125m",) if quick else ("nano-125m", "small-560m"):
        config = preset(name)
        with TemporaryDirectory() as folder:
            write_random_model(Path(folder), config)
            for backend in filter(can_run, backends.BACKENDS):
                for length in _LENGTHS[:1] if quick else _LENGTHS:
                    if (name, backend, length) not in _SLOW:
                        yield _result(Path(folder), name, config, backend, length)


def table(results: Sequence[Result]) -> Table:
    """One row for each result."""
    drawn = Table("what", box=None)
    for name in ("peak, MB", "estimate, MB", "peak / estimate", "weights stay, MB"):
        drawn.add_column(name, justify="right")
    drawn.add_column("ok")
    for result in results:
        numbers = (result.ours, result.peer, result.ratio, result.low)
        cells = ("" if number is None else f"{number:,.3g}" for number in numbers)
        drawn.add_row(result.what, *cells, "yes" if result.ok else "[red]no")
    return drawn


def can_run(backend: str) -> bool:
    """Whether the backend can run here."""
    return backends.unavailable(backend) is None


def write_random_model(directory: Path, config: ModelConfig) -> None:
    """Write a model directory with weights that mean nothing."""
    tokenizer = load_tokenizer(Path(resolve("nanochat-tiny")))
    weights = random_packed_weights(config, seed=0)
    checkpoint.save(directory, config, weights, generation={}, others=tokenizer.files())


def measure(
    directory: Path,
    backend: str,
    num_tokens: int,
    *,
    answer: int = 2,
    sampling: Mapping[str, object] = MappingProxyType({}),
) -> dict[str, Taken]:
    """What each stage of `bench.memory_probe` takes, counted from before the backend is imported.

    What the process has by then comes first, as "python", counted from nothing.
    """
    arguments = [str(directory), backend, str(num_tokens), str(answer), json.dumps(dict(sampling))]
    command = [sys.executable, "-m", "bench.memory_probe", *arguments]
    with subprocess.Popen(
        command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=_copy, args=(process.stdout, lines), daemon=True).start()
        before, mapped = _look(process.pid, lines)[-1]
        whole = before + mapped
        found = {"python": Taken(peak=before, end=before, most_pages=whole, pages=whole)}
        for stage in STAGES:
            process.stdin.write("\n")
            process.stdin.flush()
            looks = _look(process.pid, lines)
            pages = [own + mapped for own, mapped in looks]
            found[stage] = Taken(
                peak=max(own for own, _ in looks) - before,
                end=looks[-1][0] - before,
                most_pages=max(pages) - pages[0],
                pages=pages[-1] - pages[0],
            )
        process.stdin.write("\n")
        process.stdin.close()
    return found


def model_peak(taken: Mapping[str, Taken]) -> int:
    """The most bytes that the model takes, beside what its backend takes."""
    stages = (stage for name, stage in taken.items() if name not in ("python", "backend"))
    return max(stage.peak for stage in stages) - taken["backend"].end


def process_peak(taken: Mapping[str, Taken]) -> int:
    """The most bytes that the process has at a time, pages of mapped files included."""
    most = total = 0
    for stage in taken.values():
        most = max(most, total + stage.most_pages)
        total += stage.pages
    return most


def _result(directory: Path, name: str, config: ModelConfig, backend: str, length: int) -> Result:
    taken = measure(directory, backend, length)
    peak = model_peak(taken) / 1e6
    estimate = needed_bytes(config, backend, context=length) / 1e6
    return Result(
        case="memory",
        what=f"{name} on {backend}, {length} tokens",
        unit="MB",
        ours=peak,
        low=(taken["load"].end - taken["backend"].end) / 1e6,
        peer=estimate,
        peer_name="nanochat.memory.needed_bytes",
        ratio=peak / estimate,
        ok=0.7 <= peak / estimate <= 1.15,
    )


def _copy(source: Iterator[str], lines: "queue.SimpleQueue[str]") -> None:
    for line in source:
        lines.put(line)
    lines.put("")


def _look(pid: int, lines: "queue.SimpleQueue[str]") -> list[tuple[int, int]]:
    """What `_taken` gives, again and again until the next line."""
    looks = [_taken(pid)]
    while lines.empty():
        looks.append(_taken(pid))
        time.sleep(_PAUSE)
    assert lines.get(), "the process that is watched has failed"
    return [*looks, _taken(pid)]


def _taken(pid: int) -> tuple[int, int]:
    """Bytes of memory that a process has for itself, and of mapped files."""
    _, resident, mapped, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    return (resident - mapped) * PAGESIZE, mapped * PAGESIZE
