"""This file holds the command `python -m bench CASE`, run from the root of a checkout."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import click
from rich.console import Console

from bench.case import EXPORTS, SUMMARIES, Case
from bench.result import Result, json_line

__all__ = ["main"]

# Columns of a table that nobody's window limits.
_WIDE = 160


@click.command(
    epilog="\b\nCases:\n" + "\n".join(f"  {name}: {summary}" for name, summary in SUMMARIES.items())
)
@click.argument("case", type=click.Choice(sorted(SUMMARIES)))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--quick", is_flag=True, help="End within 50 seconds on two cores.")
@click.option("--check", is_flag=True, help="Exit 1 and list the targets that were missed.")
@click.option(
    "--exports", is_flag=True, help="For parity: compare exported files, not the backends."
)
@click.option(
    "--url",
    "urls",
    multiple=True,
    help="For serve: another server to measure in turns, such as http://127.0.0.1:8080/v1; repeatable.",
)
@click.option(
    "--results",
    type=click.File("w"),
    help="Write one JSON object a line into this file, too, as each is measured.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the results into this SVG file.",
)
def main(
    case: str,
    *,
    as_json: bool,
    quick: bool,
    check: bool,
    exports: bool,
    urls: Sequence[str],
    results: TextIO | None,
    plot: Path | None,
) -> None:
    """Measure CASE and print a table."""
    if exports and case != "parity":
        raise click.UsageError(f"--exports is for parity, not for {case}")
    if urls and case != "serve":
        raise click.UsageError(f"--url is for serve, not for {case}")
    chosen = Case.of(EXPORTS if exports else case)
    found = []
    with Console(stderr=True).status(case) as status:
        for result in chosen.run(quick, urls=urls) if urls else chosen.run(quick):
            found.append(result)
            status.update(result.what)
            if as_json:
                click.echo(json_line(result))
            if results is not None:
                print(json_line(result), file=results, flush=True)
    if not as_json:
        window = Console()
        console = window if window.is_terminal else Console(width=_WIDE)
        console.print(chosen.table(found))
    if plot is not None:
        chosen.plot(found, plot)
    missed = [result for result in found if not result.ok]
    if check and missed:
        for result in missed:
            click.echo(
                f"missed: {result.what}: {_held(result)}, target {result.target}",
                err=True,
            )
        sys.exit(1)


def _held(result: Result) -> str:
    """What the target is about."""
    if result.ratio is None:
        return f"{result.ours:.3g} {result.unit}"
    return f"{result.ratio:.3g} times {result.peer_name}"


if __name__ == "__main__":
    main()
