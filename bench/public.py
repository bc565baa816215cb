"""This file holds the case `public`: random weights in the shapes and formats of public models, beside llama.cpp.

Each shape is written as PQ2_0, which this package lays out, and with the same codes and scales as Q2_0 and TQ2_0, which
stock llama.cpp runs. Both decode after a short text, in turns; then a prompt of 512 tokens is read. A rotated model
beside the same without rotations shows what those cost. What long texts take, and what `nanochat models show` says of
all this beforehand, is measured by `bench.public_long`.

What is bound by memory says so: decoding by the bytes of the weights over the bandwidth with which the same memory is
read, in turns with it; what memory is taken, by the file's size. There is no bound for reading a prompt, which is
arithmetic.

llama.cpp's Q2_0 has no vector code on x86: beside it, both decode after 4 tokens, read a prompt of 32, and do so once.
``--quick`` has the smallest shape, and leaves it out.
"""

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from rich.table import Table

from bench.bandwidth import read_bandwidth
from bench.interleaved import Runner, Timing, interleaved, ratio
from bench.memory import measure
from bench.public_files import KINDS, SHAPES, write_shape
from bench.public_long import answer_memory, expected_memory, expected_speed, long_contexts
from bench.public_models import IDS, SHORT, Ours, Peer, forget_bandwidth
from bench.result import Result
from bench.result import table as plain_table
from nanochat.backends.host import num_cores
from nanochat.lm import Model
from nanochat.zoo.catalog import CATALOG

__all__ = ["PEERS", "Work", "against", "loading", "rotation", "run", "table"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """Tokens before decoding, and of a prompt; turns of both; and how many times as fast as the peer ours shall be."""

    before: int = SHORT
    prompt: int = len(IDS)
    turns: tuple[int, int]
    times: tuple[float, float]


PEERS = {
    "TQ2_0": Work(turns=(10, 2), times=(1.6, 2.5)),
    "Q2_0": Work(before=4, prompt=32, turns=(1, 1), times=(5.0, 5.0)),
}
# Seconds of loading, by shape; what decoding reads over what memory gives.
_SECONDS = {"1.7B": 1.0, "8B": 2.0, "27B": 6.0, "27B rotated": 6.0}
_SHARE_OF_BANDWIDTH = 0.85
_RESIDENT, _PEAK = 1.05, 1.15
_ROTATED = {"decode": 1.02, "prefill": 1.05}


def run(quick: bool) -> Iterator[Result]:
    """Every shape; files of one are deleted before those of the next are written."""
    threads = num_cores()
    peers = {"TQ2_0": replace(PEERS["TQ2_0"], turns=(3, 1))} if quick else PEERS
    for name in ("1.7B",) if quick else ("1.7B", "8B"):
        with TemporaryDirectory() as folder:
            files = {kind: _written(Path(folder), name, kind) for kind in ("PQ2_0", *peers)}
            yield from loading(name, files["PQ2_0"], threads)
            for kind, work in peers.items():
                yield from against(name, files["PQ2_0"], files[kind], kind, work, threads)
                gc.collect()
            if name == "8B":
                yield from long_contexts(name, files["PQ2_0"], {"int8": None, "int4": 2.0}, threads)
    if quick:
        return
    with TemporaryDirectory() as folder:
        plain, rotated = (_written(Path(folder), n, "PQ2_0") for n in ("27B", "27B rotated"))
        for name, path in (("27B", plain), ("27B rotated", rotated)):
            yield from loading(name, path, threads)
        yield from rotation(plain, rotated, threads)
        gc.collect()
        plain.unlink()
        yield answer_memory("27B rotated", rotated, CATALOG["ternary-bonsai-2-27b"].sampling)
        yield from long_contexts("27B rotated", rotated, {"int8": 1.25}, threads)


def table(results: Sequence[Result]) -> Table:
    """One row for each result."""
    return plain_table(results)


def _written(folder: Path, name: str, kind: str) -> Path:
    path = folder / f"{name.replace(' ', '-')}-{kind}.gguf"
    write_shape(path, SHAPES[name], KINDS[kind])
    return path


def loading(name: str, path: Path, threads: int) -> Iterator[Result]:
    """Seconds of a second load, and the memory of a process that loads, less what it has before, as compiled code."""
    size = path.stat().st_size
    # The first compiles kernels, and reads the file into the system's cache.
    Model.from_pretrained(path, backend="numba").close()
    bandwidth = read_bandwidth(threads=threads)
    seconds: list[float] = []
    for _ in range(3):
        gc.collect()
        begin = time.perf_counter()
        model = Model.from_pretrained(path, backend="numba")
        seconds.append(time.perf_counter() - begin)
        config = model.config
        model.close()
        del model
    target = _SECONDS[name]
    yield Result(
        case="public",
        what=f"{name}: second load, file of {size / 1e9:.2f} GB",
        unit="s",
        ours=median(seconds),
        low=max(seconds),
        high=min(seconds),
        bound=size / bandwidth,
        target=target,
        ok=median(seconds) <= target,
    )
    stages = measure(path, "numba", SHORT)
    before = stages["python"].pages + stages["backend"].pages
    taken = stages["load"]
    for what, number in (
        ("before loading", before),
        ("after loading", before + taken.pages),
        ("at the peak of loading", before + taken.most_pages),
    ):
        yield Result(
            case="public",
            what=f"{name}: resident memory of a process {what}",
            unit="MB",
            ours=number / 1e6,
        )
    for what, found, target in (
        ("after loading", taken.pages, _RESIDENT),
        ("at the peak of loading", taken.most_pages, _PEAK),
    ):
        yield Result(
            case="public",
            what=f"{name}: resident memory {what}, less that before, over the file",
            unit="ratio",
            ours=found / size,
            bound=1.0,
            target=target,
            ok=found / size <= target,
        )
    yield expected_memory(name, stages, config, context=SHORT)


def against(
    name: str, path: Path, other: Path, kind: str, work: Work, threads: int
) -> Iterator[Result]:
    """Our speed with a file beside llama.cpp's with another, in turns."""
    ours, peer = Ours(path, threads), Peer(other, threads)
    text, prompt = IDS[: work.before], IDS[: work.prompt]
    forget_bandwidth()
    decoding = {
        who: Runner(run=one.decode, start=partial(one.start, text), rest=one.rest)
        for who, one in (("ours", ours), (kind, peer))
    } | {"reading": ours.reader}
    prompts = {
        who: Runner(run=partial(one.prefill, prompt), rest=one.rest)
        for who, one in (("ours", ours), (kind, peer))
    }
    timings = interleaved(decoding, turns=work.turns[0], seconds=0.2)
    bandwidth = ours.bandwidth(timings["reading"])
    if kind == "TQ2_0":
        yield _share(name, ours.share(timings["ours"], timings["reading"], ours.num_bytes))
        yield expected_speed(name, timings["ours"], ours, context=SHORT, bandwidth=bandwidth)
    decoded = _times(f"{name}: decode", timings, kind, 1, work.times[0])
    yield replace(decoded, bound=bandwidth / ours.num_bytes)
    timings = interleaved(prompts, turns=work.turns[1], seconds=0.0)
    yield _times(f"{name}: prompt of {work.prompt}", timings, kind, work.prompt, work.times[1])
    peer.model.close()
    ours.close()


def _share(name: str, share: float) -> Result:
    return Result(
        case="public",
        what=f"{name}: bytes that decoding reads a second, over the measured bandwidth",
        unit="ratio",
        ours=share,
        bound=1.0,
        target=_SHARE_OF_BANDWIDTH,
        ok=share >= _SHARE_OF_BANDWIDTH,
    )


def _times(what: str, timings: dict[str, Timing], kind: str, tokens: int, target: float) -> Result:
    times = ratio(timings["ours"], timings[kind])
    return Result(
        case="public",
        what=what,
        unit="tokens/s",
        **timings["ours"].rates(tokens),
        peer=tokens / timings[kind].seconds,
        peer_name=f"llama.cpp {kind}",
        ratio=times,
        target=target,
        ok=times >= target,
    )


def rotation(
    plain: Path, rotated: Path, threads: int, *, turns: tuple[int, int] = (30, 2)
) -> Iterator[Result]:
    """What rotations cost: both models are in memory, and take turns."""
    models = {"plain": Ours(plain, threads), "rotated": Ours(rotated, threads)}
    forget_bandwidth()
    for what, count in zip(_ROTATED, turns, strict=True):
        runners = {
            name: Runner(run=model.decode, start=partial(model.start, IDS[:SHORT]), rest=model.rest)
            if what == "decode"
            else Runner(run=partial(model.prefill, IDS), rest=model.rest)
            for name, model in models.items()
        }
        if what == "decode":
            runners |= {f"{name}, read": model.reader for name, model in models.items()}
        timings = interleaved(runners, turns=count, seconds=0.0)
        if what == "decode":
            for name, model in models.items():
                timing, reading = timings[name], timings[f"{name}, read"]
                yield _share(f"27B {name}", model.share(timing, reading, model.num_bytes))
                bandwidth = model.bandwidth(reading)
                yield expected_speed(
                    f"27B {name}", timing, model, context=SHORT, bandwidth=bandwidth
                )
        over = ratio(timings["plain"], timings["rotated"])
        yield Result(
            case="public",
            what=f"27B: {what}, rotated, time over that without rotations",
            unit="ratio",
            ours=over,
            bound=1.0,
            target=_ROTATED[what],
            ok=over <= _ROTATED[what],
        )
    for model in models.values():
        model.close()
