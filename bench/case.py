"""This file holds what a case of `python -m bench` must offer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from bench.plot import draw
from bench.result import Result

__all__ = ["Case"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A case of `python -m bench`.

    `run` gives its results one by one; its argument is whether it must end within 50 seconds on two cores. `table`
    draws them for people, `plot` into an SVG file.
    """

    summary: str
    run: Callable[[bool], Iterator[Result]]
    table: Callable[[Sequence[Result]], Table]
    plot: Callable[[Sequence[Result], Path], None] = draw
