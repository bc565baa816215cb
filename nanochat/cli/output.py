"""This file holds what verbs print: results to standard output, everything else to standard error."""

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from nanochat.text.controls import without_controls

if TYPE_CHECKING:
    from rich.live import Live

__all__ = [
    "NoticeHandler",
    "format_bytes",
    "format_count",
    "note",
    "print_json",
    "print_table",
    "show_thought",
    "shown_progress",
    "write",
]

# With a unit, perhaps.
_NUMBER = re.compile(r"[\d.,]+( [a-zA-Z/]{1,3})?")
# Whether the last character on the terminal belongs to a line of the result.
_inside_line = False


def write(text: str) -> None:
    """Print a part of the result at once; on a terminal without control characters, which a model may make up."""
    global _inside_line
    shown = sys.stdout.isatty()
    if shown:
        NoticeHandler.stop()
    sys.stdout.write(without_controls(text) if shown else text)
    sys.stdout.flush()
    if shown and text:
        _inside_line = not text.endswith("\n")


def note(text: str) -> None:
    """Tell the user something that is no result."""
    print(without_controls(text), file=sys.stderr, flush=True)


def show_thought(text: str) -> None:
    """Show a part of what a model thinks, which is no result; dimmed on a terminal."""
    NoticeHandler.stop()
    click.secho(without_controls(text), dim=True, nl=False, err=True)


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON object on one line."""
    write(f"{json.dumps(value)}\n")


def print_table(rows: Sequence[Sequence[object]], *, header: Sequence[str] = ()) -> None:
    """Print rows in columns, numbers on the right."""
    cells = [list(map(str, row)) for row in (header, *rows) if row]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    body = cells[bool(header) :]
    numeric = [all(_NUMBER.fullmatch(row[i]) for row in body) for i in range(len(widths))]
    for row in cells:
        columns = zip(row, widths, numeric, strict=True)
        line = "  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in columns)
        write(f"{line.rstrip()}\n")


@contextmanager
def shown_progress(
    name: str,
) -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """A bar on standard error, where that is a terminal: how much of `name` is written, and what else is done now."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(escape(f"writing {name}"), total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        def announce(work: str) -> None:
            # How long it takes is not known.
            bar.reset(task, total=None, description=escape(f"{work} {name}"))

        yield update, announce


def format_bytes(count: float) -> str:
    """A size for people, in decimal units.

    >>> format_bytes(999), format_bytes(1_830_000)
    ('999 B', '1.83 MB')
    """
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def format_count(count: float) -> str:
    """A count for people.

    >>> format_count(999), format_count(5_775_232)
    ('999', '5.78 M')
    """
    return _scaled(count, ("", "k", "M", "G", "T")).rstrip()


def _scaled(count: float, units: Sequence[str]) -> str:
    power = 0
    while count >= 999.5 and power < len(units) - 1:
        count /= 1000
        power += 1
    return f"{count:.3g} {units[power]}"


class NoticeHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes records to standard error.

    On a terminal, a record whose attribute ``progress`` is "begin" moves until one with "end", or a part of the result,
    comes; other records are written above it.
    """

    # What moves on the terminal, of which there is one.
    _spinner: "Live | None" = None

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        progress = getattr(record, "progress", "")
        if progress:
            self.stop()
        elif NoticeHandler._spinner is not None:
            NoticeHandler._spinner.console.out(self.format(record), highlight=False)
            return
        terminal = self.stream.isatty()
        if terminal and _inside_line:
            # A part of the result stands there.
            write("\n")
        # Its end comes as information.
        moves = logging.getLogger("nanochat").isEnabledFor(logging.INFO)
        if not terminal or progress != "begin" or not moves:
            super().emit(record)
            return
        # Late: it takes longer to import than a command that compiles nothing takes to fail.
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner

        # The streams stay as they are: a result that comes early still goes to standard output.
        NoticeHandler._spinner = Live(
            Spinner("dots", self.format(record)),
            console=Console(file=self.stream),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        NoticeHandler._spinner.start()

    def format(self, record: logging.LogRecord) -> str:
        """The words of a record; what clients and files have put into them moves no cursor."""
        return without_controls(super().format(record))

    def close(self) -> None:
        """Give the terminal back as it was."""
        self.stop()
        super().close()

    @classmethod
    def stop(cls) -> None:
        """End what moves, if anything does."""
        if NoticeHandler._spinner is not None:
            NoticeHandler._spinner.stop()
            NoticeHandler._spinner = None
