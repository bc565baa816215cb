"""This file holds the command `python -m bench CASE`, run from the root of a checkout."""

import sys
from pathlib import Path

import click
from rich.console import Console

from bench import backends, cpu, exports, load, memory, parity, rows, sampling, start, training
from bench.case import Case
from bench.result import Result, json_line

__all__ = ["CASES", "main"]

CASES = {
    "parity": Case(
        summary="every option on every backend, compared with the reference",
        run=parity.run,
        table=parity.table,
    ),
    "backends": Case(
        summary="speed of the shipped model on every backend",
        run=backends.run,
        table=backends.table,
    ),
    "cpu": Case(
        summary="the Numba backend beside onnxruntime, torch and llama.cpp on this CPU",
        run=cpu.run,
        table=cpu.table,
    ),
    "start": Case(
        summary="seconds from the start of Python to the first token",
        run=start.run,
        table=start.table,
    ),
    "load": Case(
        summary="seconds and memory to load a large model on every backend",
        run=load.run,
        table=load.table,
    ),
    "memory": Case(
        summary="what a model takes on every backend, beside what is estimated before it is loaded",
        run=memory.run,
        table=memory.table,
    ),
    "rows": Case(
        summary="texts that are written together, come, leave and share what they read",
        run=rows.run,
        table=rows.table,
    ),
    "sampling": Case(
        summary="microseconds to draw a token, compiled and in NumPy",
        run=sampling.run,
        table=sampling.table,
    ),
    "training": Case(
        summary="what the shipped model's training log says, beside its unquantised twin's",
        run=training.run,
        table=training.table,
        plot=training.plot,
    ),
}


_EXPORTS = Case(
    summary="every export in the runtime of its users, compared with the reference",
    run=exports.run,
    table=exports.table,
)


@click.command(
    epilog="\b\nCases:\n" + "\n".join(f"  {name}: {case.summary}" for name, case in CASES.items())
)
@click.argument("case", type=click.Choice(sorted(CASES)))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--quick", is_flag=True, help="End within 50 seconds on two cores.")
@click.option("--check", is_flag=True, help="Exit 1 and list the targets that were missed.")
@click.option(
    "--exports", is_flag=True, help="For parity: compare exported files, not the backends."
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the results into this SVG file.",
)
def main(
    case: str, *, as_json: bool, quick: bool, check: bool, exports: bool, plot: Path | None
) -> None:
    """Measure CASE and print a table."""
    if exports and case != "parity":
        raise click.UsageError(f"--exports is for parity, not for {case}")
    chosen = _EXPORTS if exports else CASES[case]
    results = []
    with Console(stderr=True).status(case) as status:
        for result in chosen.run(quick):
            results.append(result)
            status.update(result.what)
            if as_json:
                click.echo(json_line(result))
    if not as_json:
        Console().print(chosen.table(results))
    if plot is not None:
        chosen.plot(results, plot)
    missed = [result for result in results if not result.ok]
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
