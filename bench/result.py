"""This file holds what one measurement says, and how it is written: a JSON line, or a row of a table."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

from bench.machine import commit, machine

__all__ = ["Result", "as_text", "json_line", "table"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number, and what it is compared with.

    Parameters
    ----------
    case, what, unit : str
        The case of `python -m bench`, what was measured, and the unit of all numbers but `ratio`.
    ours : float
        Median of the runs, or an error.
    low, high : float, optional
        The worst and the best of the runs, or of their turns.
    peer, peer_name : float and str, optional
        The same measured on something else, in turn with ours.
    ratio : float, optional
        How many times better ours is than the peer.
    bound : float, optional
        What the hardware allows.
    target : float, optional
        What `ours` or `ratio` is held to.
    ok : bool
        Whether it is met.
    """

    case: str
    what: str
    unit: str
    ours: float
    low: float | None = None
    high: float | None = None
    peer: float | None = None
    peer_name: str | None = None
    ratio: float | None = None
    bound: float | None = None
    target: float | None = None
    ok: bool = True


def json_line(result: Result) -> str:
    """One JSON object with the machine and the commit; a number that is not finite is null.

    Examples
    --------
    >>> line = json_line(Result(case="cpu", what="decode", unit="tokens/s", ours=41.0))
    >>> json.loads(line)["ours"]
    41.0
    """
    values = asdict(result) | {"machine": machine(), "commit": commit()}
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return json.dumps(finite)


def table(results: Sequence[Result]) -> Table:
    """One row for each result; what stands above it is not repeated."""
    ranges = any(result.low is not None for result in results)
    named = len({result.peer_name for result in results}) > 1
    drawn = Table("what", "unit", box=None)
    for name in ("ours", *["from - to"] * ranges, "peer", *["who"] * named):
        drawn.add_column(name, justify="left" if name == "who" else "right", no_wrap=True)
    for name in ("ratio", "bound", "target"):
        drawn.add_column(name, justify="right")
    drawn.add_column("ok")
    above = ""
    for result in results:
        cells = ["" if result.what == above else result.what, result.unit, as_text(result.ours)]
        if ranges:
            cells.append("" if result.low is None else f"{result.low:.3g} - {result.high:.3g}")
        cells.append(as_text(result.peer))
        if named:
            cells.append(result.peer_name or "")
        cells += map(as_text, (result.ratio, result.bound, result.target))
        drawn.add_row(*cells, "yes" if result.ok else "[red]no")
        above = result.what
    return drawn


def as_text(number: float | None) -> str:
    """A number in three digits or all before the point; nothing for None."""
    if number is None:
        return ""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"
