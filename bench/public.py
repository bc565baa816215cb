"""This file holds the case `public`: random weights in the shapes and formats of public models, beside llama.cpp.

Each shape is written as PQ2_0, which this package lays out, and with the same codes and scales as Q2_0 and TQ2_0, which
stock llama.cpp runs. Both decode after a short text, in turns; then a prompt of 512 tokens is read. Decoding is bound
by the bytes of the weights, as they lie in memory, over the measured bandwidth. A rotated model beside the same without
rotations shows what those cost.

``--quick`` has the smallest shape, and leaves llama.cpp's Q2_0 out, which has no vector code on x86.
"""

import gc
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.table import Table

from bench.bandwidth import read_bandwidth
from bench.interleaved import Runner, Timing, interleaved, ratio
from bench.memory import measure
from bench.public_files import KINDS, SHAPES, write_shape
from bench.result import Result
from bench.result import table as plain_table
from nanochat.backends.host import num_cores
from nanochat.export.gguf.llama_cpp import LlamaCpp
from nanochat.lm import Model
from nanochat.weights import named_leaves

__all__ = ["run", "table"]

_CONTEXT, _PROMPT, _ROOM = 64, 512, 1024
_IDS = list(range(300, 300 + _PROMPT))
# Seconds of loading, by shape; what decoding reads over what memory gives.
_SECONDS = {"1.7B": 1.0, "8B": 2.0, "27B": 6.0, "27B rotated": 6.0}
_SHARE_OF_BANDWIDTH = 0.85
# Times as fast as llama.cpp, in decoding and in reading a prompt.
_TIMES = {"Q2_0": (5.0, 5.0), "TQ2_0": (1.6, 2.5)}
_RESIDENT, _PEAK = 1.05, 1.15
_ROTATED = {"decode": 1.02, "prefill": 1.05}


def run(quick: bool) -> Iterator[Result]:
    """Every shape; files of one are deleted before those of the next are written."""
    threads = num_cores()
    for name in ("1.7B",) if quick else ("1.7B", "8B"):
        with TemporaryDirectory() as folder:
            files = {kind: _written(Path(folder), name, kind) for kind in KINDS}
            yield from _loading(name, files["PQ2_0"])
            peers = ("TQ2_0",) if quick else ("TQ2_0", "Q2_0")
            yield from _against(name, files, peers, threads, turns=5 if quick else 15)
    if quick:
        return
    with TemporaryDirectory() as folder:
        plain, rotated = (_written(Path(folder), n, "PQ2_0") for n in ("27B", "27B rotated"))
        for name, path in (("27B", plain), ("27B rotated", rotated)):
            yield from _loading(name, path)
        yield from _rotation(plain, rotated, threads)


def table(results: Sequence[Result]) -> Table:
    """One row for each result."""
    return plain_table(results)


def _written(folder: Path, name: str, kind: str) -> Path:
    path = folder / f"{name.replace(' ', '-')}-{kind}.gguf"
    write_shape(path, SHAPES[name], KINDS[kind])
    return path


def _loading(name: str, path: Path) -> Iterator[Result]:
    """Seconds and memory of a second load, in a process of its own."""
    size = path.stat().st_size
    # The first compiles kernels, and reads the file into the system's cache.
    Model.from_pretrained(path, backend="numba").close()
    seconds: list[float] = []
    for _ in range(3):
        gc.collect()
        begin = time.perf_counter()
        Model.from_pretrained(path, backend="numba").close()
        seconds.append(time.perf_counter() - begin)
    yield Result(
        case="public",
        what=f"{name}: second load, file of {size / 1e9:.2f} GB",
        unit="s",
        ours=sorted(seconds)[1],
        low=max(seconds),
        high=min(seconds),
        target=_SECONDS[name],
        ok=sorted(seconds)[1] <= _SECONDS[name],
    )
    taken = measure(path, "numba", _CONTEXT)["load"]
    for what, found, target in (
        ("resident after loading", taken.end, _RESIDENT),
        ("peak of loading, pages of the file included", taken.most_pages, _PEAK),
    ):
        yield Result(
            case="public",
            what=f"{name}: {what}, over the file",
            unit="ratio",
            ours=found / size,
            target=target,
            ok=found / size <= target,
        )


class _Ours:
    def __init__(self, path: Path, threads: int) -> None:
        self.model = Model.from_pretrained(
            path, backend="numba", kv_cache="float16", num_threads=threads
        )
        self._engine = self.model.engine
        self._state: object = None
        leaves = dict(named_leaves(self._engine.weights))  # type: ignore[attr-defined]  # of numba
        if "head" in leaves:
            del leaves["embedding"]
        self.num_bytes = sum(leaf.nbytes for leaf in leaves.values())

    def start(self) -> None:
        self._state, _ = self._engine.prefill(_IDS[:_CONTEXT], capacity=_ROOM)

    def decode(self) -> None:
        self._engine.decode([7], self._state)

    def prefill(self) -> None:
        self._engine.prefill(_IDS, capacity=_ROOM)


class _Peer:
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


def _against(
    name: str, files: dict[str, Path], peers: Sequence[str], threads: int, *, turns: int
) -> Iterator[Result]:
    ours = _Ours(files["PQ2_0"], threads)
    bandwidth = read_bandwidth(threads=threads)
    for kind in peers:
        peer = _Peer(files[kind], threads)
        # A token of Q2_0 takes seconds.
        few = 2 if kind == "Q2_0" else turns
        for what, tokens, place in (("decode", 1, 0), ("prefill", _PROMPT, 1)):
            runners = {
                "ours": Runner(
                    run=getattr(ours, what), start=ours.start if what == "decode" else _nothing
                ),
                kind: Runner(
                    run=getattr(peer, what),
                    start=peer.start if what == "decode" else _nothing,
                    rest=peer.model.pause,
                ),
            }
            count = few if what == "decode" else max(1, few // 5)
            timings = interleaved(runners, turns=count, seconds=0.2 if what == "decode" else 0.0)
            if what == "decode" and kind == "TQ2_0":
                yield _share(name, timings["ours"], ours.num_bytes, bandwidth)
            yield _times(f"{name}: {what}", timings, kind, tokens, _TIMES[kind][place])
        peer.model.close()
    ours.model.close()


def _share(name: str, timing: Timing, num_bytes: int, bandwidth: float) -> Result:
    share = num_bytes / timing.seconds / bandwidth
    return Result(
        case="public",
        what=f"{name}: bytes that decoding reads a second, over the measured bandwidth",
        unit="ratio",
        ours=share,
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


def _rotation(plain: Path, rotated: Path, threads: int) -> Iterator[Result]:
    """What rotations cost: both models are in memory, and take turns."""
    models = {"plain": _Ours(plain, threads), "rotated": _Ours(rotated, threads)}
    bandwidth = read_bandwidth(threads=threads)
    for what, turns in (("decode", 10), ("prefill", 1)):
        runners = {
            name: Runner(
                run=getattr(model, what),
                start=model.start if what == "decode" else _nothing,
                rest=_nothing,
            )
            for name, model in models.items()
        }
        timings = interleaved(runners, turns=turns, seconds=0.5 if what == "decode" else 0.0)
        if what == "decode":
            for name, timing in timings.items():
                yield _share(f"27B {name}", timing, models[name].num_bytes, bandwidth)
        over = ratio(timings["plain"], timings["rotated"])
        yield Result(
            case="public",
            what=f"27B: {what}, rotated, time over that without rotations",
            unit="ratio",
            ours=over,
            target=_ROTATED[what],
            ok=over <= _ROTATED[what],
        )
    for model in models.values():
        model.model.close()


def _nothing() -> None:
    """Our threads rest by themselves."""
