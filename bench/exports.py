"""This file holds the case `parity --exports`: every export in the runtime of its users, compared with the reference.

Each is written by `nanochat.export.formats`, as `nanochat-export` does, and opened in its runtime. Errors are those of
a fixed prompt; the text is 16 tokens, greedy; the speed is that of a token of such a text, all exports in turns. What
this package runs itself is compared on the reference backend, where nothing but the file can differ, and timed on the
backend that its users get.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.table import Table

from bench.export_cases import CASES, FEW, ExportCase, source
from bench.result import Result
from nanochat.export.formats import FORMATS, Reloaded, export_model
from nanochat.export.verify import Artefact, Parity, check_parity

__all__ = ["run", "table"]

_ERROR, _MEDIAN = "RMS error of logits", "median RMS error of a token"
_TEXT, _SPEED, _BYTES = "same greedy text", "tokens/s", "bytes"
# What one text is longer than the other, whose difference is timed: both read the prompt.
_SHORT, _LONG = 8, 72


@dataclass(frozen=True)
class _Opened:
    what: str
    timed: Artefact
    parity: Parity
    bytes: int
    ids: tuple[int, ...]


def run(quick: bool) -> Iterator[Result]:
    """Five results for each export and runtime: two errors, whether the text is the same, speed and size."""
    rounds = 3 if quick else 20
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        opened = [
            one
            for number, case in enumerate(FEW if quick else CASES)
            for one in _open(case, Path(folder) / str(number), stack)
        ]
        seconds: list[list[float]] = [[] for _ in opened]
        for _ in range(rounds):
            for one, times in zip(opened, seconds, strict=True):
                times.append(_seconds_per_token(one))
        for one, times in zip(opened, seconds, strict=True):
            yield from _results(one, times)


def table(results: Sequence[Result]) -> Table:
    """One row for each export and runtime."""
    rows: dict[str, dict[str, Result]] = {}
    for result in results:
        rows.setdefault(result.what, {})[result.unit] = result
    drawn = Table("format", "model", "runtime", box=None)
    for name in ("RMS error", "median token", "same text", "tokens/s", "bytes"):
        drawn.add_column(name, justify="right")
    for what, of in rows.items():
        colour = "" if of[_ERROR].ok else "[red]"
        drawn.add_row(
            *what.split(" | "),
            f"{colour}{of[_ERROR].ours:.1e}",
            f"{of[_MEDIAN].ours:.1e}",
            "yes" if of[_TEXT].ours else "no",
            f"{of[_SPEED].ours:,.0f}",
            f"{of[_BYTES].ours:,.0f}",
        )
    return drawn


def _open(case: ExportCase, path: Path, stack: ExitStack) -> Iterator[_Opened]:
    """Write an export, and open it in each of its runtimes."""
    model = source(case.model)
    form = FORMATS[case.kind]
    path = path.with_suffix(form.suffix)
    exported = export_model(model, path, kind=case.kind, choices=case.choices, verify=False)
    first = _page(path) if case.kind == "web" else form.run(path, model, exported.written_as)
    for artefact in (first, *(start(path) for start in case.runtimes.values())):
        # Some hold a process.
        if isinstance(artefact, AbstractContextManager):
            stack.enter_context(artefact)
        yield _Opened(
            what=f"{case.label} | {case.model} | {artefact.runtime}",
            timed=Reloaded(path, backend="auto") if isinstance(artefact, Reloaded) else artefact,
            parity=check_parity(model, artefact),
            bytes=exported.bytes,
            ids=tuple(model.tokenizer.encode("fn main() {")),
        )


def _page(path: Path) -> Artefact:
    from bench.peers.web import WebPage

    return WebPage(path)


def _seconds_per_token(one: _Opened) -> float:
    times = [time.perf_counter()]
    for num_tokens in (_SHORT, _LONG):
        one.timed.greedy(one.ids, num_tokens=num_tokens)
        times.append(time.perf_counter())
    return (times[2] - times[1] - (times[1] - times[0])) / (_LONG - _SHORT)


def _results(one: _Opened, seconds: Sequence[float]) -> Iterator[Result]:
    report = one.parity.report

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
    yield result(_TEXT, float(one.parity.same_text))
    # A turn in which the short text was held up has no speed.
    rates = [1 / one for one in seconds if one > 0]
    yield result(_SPEED, median(rates), low=min(rates), high=max(rates))
    yield result(_BYTES, float(one.bytes))
