"""This file holds what verbs print: results to standard output, everything else to standard error."""

import json
import re
import sys
from collections.abc import Mapping, Sequence

__all__ = ["end_line", "format_bytes", "format_count", "note", "print_json", "print_table", "write"]

# With a unit, perhaps.
_NUMBER = re.compile(r"[\d.,]+( [a-zA-Z/]{1,3})?")
# Whether the last character on the terminal belongs to a line of the result.
_inside_line = False
# What a terminal obeys instead of showing it: C0 and C1 controls, but for tabs and new lines.
_CONTROLS = {
    code: "\N{REPLACEMENT CHARACTER}"
    for code in (*range(0x20), *range(0x7F, 0xA0))
    if chr(code) not in "\t\n"
}


def write(text: str, *, end: str = "") -> None:
    """Print a part of the result at once; on a terminal without control characters, which a model may make up."""
    global _inside_line
    shown = sys.stdout.isatty()
    sys.stdout.write((text.translate(_CONTROLS) if shown else text) + end)
    sys.stdout.flush()
    if shown and text + end:
        _inside_line = not (text + end).endswith("\n")


def end_line() -> None:
    """Begin a new line if the terminal shows a part of the result, before something else is shown there."""
    if _inside_line:
        write("\n")


def note(text: str) -> None:
    """Tell the user something that is no result."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON object on one line."""
    write(json.dumps(value), end="\n")


def print_table(rows: Sequence[Sequence[object]], *, header: Sequence[str] = ()) -> None:
    """Print rows in columns, numbers on the right."""
    cells = [list(map(str, row)) for row in (header, *rows) if row]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [all(_is_number(row[i]) for row in cells[bool(header) :]) for i in range(len(widths))]
    for row in cells:
        columns = zip(row, widths, numeric, strict=True)
        line = "  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in columns)
        write(line.rstrip(), end="\n")


def format_bytes(count: float) -> str:
    """A size for people, in decimal units.

    Examples
    --------
    >>> format_bytes(999), format_bytes(1_830_000)
    ('999 B', '1.83 MB')
    """
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def format_count(count: float) -> str:
    """A count for people.

    Examples
    --------
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


def _is_number(cell: str) -> bool:
    return _NUMBER.fullmatch(cell) is not None
