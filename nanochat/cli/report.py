"""This file holds `nanochat report`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from nanochat.cli.output import note, print_json
from nanochat.errors import InputError
from nanochat.files import atomic_write

__all__ = ["report"]

_EXAMPLES = """
\b
Examples:
  nanochat report runs/tiny
  nanochat report runs/* --out comparison.html
  nanochat report runs/* --json
"""
_PAGE = Path("report.html")


@click.command(epilog=_EXAMPLES)
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--out", type=click.Path(path_type=Path), help=f"File of the page.  [default: {_PAGE}]"
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the table of the runs as JSON, and write no page.",
)
def report(*, runs: Sequence[Path], out: Path | None, as_json: bool) -> None:
    """Compare training runs on one page.

    RUN is the directory of a run, or its log; it may be running. The page needs nothing besides itself: it shows what
    the runs reached, the settings in which they differ, every number of their logs as a chart, and what went wrong.
    """
    if as_json and out is not None:
        raise InputError(f"--json writes no page, and --out {out} asks for one: choose one of them")
    from nanochat.training.history import read_history
    from nanochat.training.report import html, summaries

    # A run that is named twice is one.
    logs = {history.path.resolve(): history for history in map(read_history, runs)}
    histories = list(logs.values())
    if as_json:
        print_json({"runs": summaries(histories)})
        return
    page = out or _PAGE
    if page.resolve() in logs:
        raise InputError(f"--out {page} is the log of a run: pass another file")
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    atomic_write(page, html(histories, made=made).encode())
    note(f"wrote {page}")
