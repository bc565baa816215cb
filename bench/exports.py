"""This file holds the case `parity --exports`: every export in the runtime of its users, compared with the reference.

Each is written by `nanochat.export.formats`, as `nanochat-export` does, and opened in its runtime. Errors are those of
a fixed prompt; choices of tokens are those of `bench.agreement`; the speed is that of a token of a greedy text, all
exports in turns. What this package runs itself is compared on the reference backend, where nothing but the file can
differ, and timed on the backend that its users get.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from bench.agreement import Agreement, measure_agreement
from bench.export_cases import CASES, FEW, ExportCase, source
from bench.result import Result
from nanochat import backends
from nanochat.export.export import export_model
from nanochat.export.formats import format_named, load
from nanochat.export.run import start
from nanochat.proof.parity import (
    Artefact,
    Parity,
    Rounding,
    check_parity,
    greedy,
    reference_backend,
)
from nanochat.proof.tolerances import TOLERANCES

__all__ = ["Opened", "Reloaded", "open_export", "run", "table"]

_ERROR, _MEDIAN = "RMS error of logits", "median RMS error of a token"
_CHOICE, _TEXT = "same most probable token", "same greedy text"
_SPEED, _BYTES = "tokens/s", "bytes"
# What one text is longer than the other, whose difference is timed: both read the prompt.
_SHORT, _LONG = 8, 264
# Until the threads of whatever ran before have stopped spinning.
_PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class Opened:
    """An export in one of its runtimes: what it is, what is timed, how it compares, its size and a prompt.

    `least_speed`, in tokens/s, is what a person who reads along needs; where files are only compared, there is none.
    """

    what: str
    timed: Artefact
    parity: Parity
    agreement: Agreement
    bytes: int
    ids: tuple[int, ...]
    least_speed: float | None


@dataclass(frozen=True)
class _Times:
    """Seconds of the short and the long text in each turn."""

    short: list[float]
    long: list[float]


def run(quick: bool) -> Iterator[Result]:
    """Six results for each export and runtime: two errors, the share of same choices, the text, speed and size."""
    rounds = 3 if quick else 12
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        opened = [
            one
            for number, case in enumerate(FEW if quick else CASES)
            for one in open_export(case, Path(folder) / str(number), stack)
        ]
        for one in opened:
            _seconds(one, _SHORT)
        times: list[_Times] = [_Times([], []) for _ in opened]
        for _ in range(rounds):
            for one, taken in zip(opened, times, strict=True):
                taken.short.append(_seconds(one, _SHORT))
                taken.long.append(_seconds(one, _LONG))
        for one, taken in zip(opened, times, strict=True):
            yield from _results(one, taken)


def table(results: Sequence[Result]) -> Table:
    """One row for each export and runtime."""
    rows: dict[str, dict[str, Result]] = {}
    for result in results:
        rows.setdefault(result.what, {})[result.unit] = result
    drawn = Table("format", "model", "runtime", box=None)
    for name in ("RMS error", "median token", "top-1", "same text", "tokens/s", "bytes"):
        drawn.add_column(name, justify="right")
    for what, of in rows.items():
        drawn.add_row(
            *what.split(" | "),
            _coloured(of[_ERROR], f"{of[_ERROR].ours:.1e}"),
            f"{of[_MEDIAN].ours:.1e}",
            _coloured(of[_CHOICE], f"{of[_CHOICE].ours:.1%}"),
            _coloured(of[_TEXT], "yes" if of[_TEXT].ours else "to a tie" if of[_TEXT].ok else "no"),
            f"{of[_SPEED].ours:,.0f}",
            f"{of[_BYTES].ours:,.0f}",
        )
    return drawn


def _coloured(result: Result, text: str) -> str:
    return text if result.ok else f"[red]{text}"


def open_export(case: ExportCase, path: Path, stack: ExitStack) -> Iterator[Opened]:
    """Write an export to `path`, without a suffix, and open and compare it in each of its runtimes.

    What holds a process is ended with `stack`.
    """
    model = source(case.model)
    form = format_named(case.kind)
    path = path.with_suffix(form.suffix)
    exported = export_model(model, path, kind=case.kind, options=case.options, verify=False)
    first = _page(path) if case.kind == "web" else form.run(path, model, exported.written)
    first = first or Reloaded(path)
    for artefact in (first, *(open_in(path) for open_in in case.runtimes.values())):
        if isinstance(artefact, AbstractContextManager):
            stack.enter_context(artefact)
        yield Opened(
            what=f"{case.label} | {case.model} | {artefact.runtime}",
            timed=Reloaded(path, backend="auto") if isinstance(artefact, Reloaded) else artefact,
            parity=check_parity(model, artefact),
            agreement=measure_agreement(model, artefact),
            bytes=exported.bytes,
            ids=tuple(model.tokenizer.encode("fn main() {")),
            least_speed=30 if case.kind == "web" else None,
        )


class Reloaded:
    """An export that is read back and run by this package: an `Artefact`.

    Parameters
    ----------
    path : Path
        Anything that `nanochat.export.formats.load` reads.
    backend : str, optional
        See `nanochat.backends.choose`; absent is the one that it is compared with, so that only the file can differ.
    """

    tolerance = TOLERANCES["logits"].limit
    rounding: Rounding = "same"

    def __init__(self, path: Path, *, backend: str | None = None) -> None:
        bundle = load(path)
        name = (
            reference_backend(bundle.config)[0] if backend is None else backends.choose(backend)[0]
        )
        self._engine = start(bundle, name)
        self.runtime = f"nanochat-ternary, {name}"

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """See `Artefact.logits`."""
        return self._engine.logits(ids)

    def greedy(self, ids: Sequence[int], *, num_tokens: int) -> list[int]:
        """See `Artefact.greedy`."""
        return greedy(self._engine, ids, num_tokens=num_tokens)


def _page(path: Path) -> Artefact:
    from bench.peers.web import WebPage

    return WebPage(path)


def _seconds(one: Opened, num_tokens: int) -> float:
    time.sleep(_PAUSE_SECONDS)
    begin = time.perf_counter()
    one.timed.greedy(one.ids, num_tokens=num_tokens)
    return time.perf_counter() - begin


def _results(one: Opened, times: _Times) -> Iterator[Result]:
    report, agreement = one.parity.report, one.agreement

    def result(unit: str, ours: float, **fields: float | bool | None) -> Result:
        return Result(
            case="exports",
            what=one.what,
            unit=unit,
            ours=ours,
            peer_name=one.parity.reference,
            **fields,  # type: ignore[arg-type]  # names and types of Result's own
        )

    yield result(_ERROR, report.rms_ratio, target=report.tolerance, ok=report.ok)
    yield result(_MEDIAN, report.median_ratio)
    yield result(
        _CHOICE, agreement.share_same, target=agreement.least_same, ok=agreement.chooses_the_same
    )
    yield result(_TEXT, float(agreement.same_text), ok=agreement.writes_the_same)
    rates = sorted((_LONG - _SHORT) / (long - median(times.short)) for long in times.long)
    speed = median(rates)
    fast = one.least_speed is None or speed >= one.least_speed
    yield result(_SPEED, speed, low=rates[0], high=rates[-1], target=one.least_speed, ok=fast)
    yield result(_BYTES, float(one.bytes))
