"""This file holds what the verbs share that let models write programs and judge them: options, and bars of progress."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

__all__ = [
    "SET",
    "input_seed_option",
    "levels_option",
    "max_tokens_option",
    "overwrite_option",
    "progress_bars",
    "seed_option",
    "temperature_option",
    "top_p_option",
]

SET = "own, templates, a file, or owner/name[@revision][:config] of the Hub."
levels_option = click.option(
    "--level",
    "levels",
    type=click.IntRange(0, 4),
    multiple=True,
    help="Only problems of this level; repeatable.  [default: all]",
)
input_seed_option = click.option(
    "--input-seed",
    type=int,
    default=0,
    show_default=True,
    help="Of the arguments with which programs are tried.",
)
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Begin again, and delete what was written before."
)
temperature_option = click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.8,
    show_default=True,
    help="How evenly tokens are drawn; 0 takes the most probable.",
)
top_p_option = click.option(
    "--top-p",
    type=click.FloatRange(0, 1),
    default=0.95,
    show_default=True,
    help="Draw among the most probable tokens that have this probability together.",
)
max_tokens_option = click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Of each sample.",
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Of the samples.")


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Bars on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def update(work: str, done: int, total: int) -> None:
            if work not in tasks:
                tasks[work] = bars.add_task(work, total=total)
            bars.update(tasks[work], completed=done, total=total)

        yield update
