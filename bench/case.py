"""This file holds the cases of `python -m bench`: a sentence on each, and the import of the one that is chosen."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import click
from rich.table import Table

from bench.plot import draw
from bench.result import Result

__all__ = ["EXPORTS", "SUMMARIES", "Case"]

# By module of this package.
SUMMARIES = {
    "parity": "every option on every backend, compared with the reference",
    "backends": "speed of the shipped model on every backend",
    "cpu": "the Numba backend beside onnxruntime, torch and llama.cpp on this CPU",
    "public": "random weights in the shapes and formats of public models, beside llama.cpp",
    "start": "seconds from the start of Python to the first token",
    "load": "seconds and memory to load a large model on every backend",
    "memory": "what a model takes on every backend, beside what is estimated before it is loaded",
    "engine": "tokens a second of 1 to 64 texts at a time, beside llama.cpp and reading a prompt",
    "rows": "texts that come and leave, and share what they read",
    "drafts": "texts that are guessed, beside the same texts that are not, and texts held to a form",
    "serve": "the server beside the engine alone, and what its clients wait for",
    "storages": "what keys and values that are kept in fewer bits change of the logits",
    "sampling": "microseconds to draw a token, compiled and in NumPy",
    "steps": "tokens a second of training on this CPU, its start and its memory",
    "resume": "a training run that is killed at random moments, beside the same that is not",
    "judge": "what a completion costs to draw, to check, to build, to run and to judge",
    "evaluation": "what `nanochat eval` finds of the models that ship",
    "rl": "what runs of `nanochat rl` reach, by advantage, beside a control",
    "training": "what the shipped model's training log says, beside its unquantised twin's",
}
# With `parity --exports`: every export in the runtime of its users, compared with the reference.
EXPORTS = "exports"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A case of `python -m bench`.

    `run` gives its results one by one; its argument is whether it must end within 50 seconds on two cores. `table`
    draws them for people, `plot` into an SVG file.
    """

    run: Callable[..., Iterator[Result]]
    table: Callable[[Sequence[Result]], Table]
    plot: Callable[[Sequence[Result], Path], None]

    @classmethod
    def of(cls, name: str) -> "Case":
        """Import a case.

        Raises
        ------
        click.ClickException
            If a package is missing that it, or what it compares with, needs.
        """
        try:
            module = import_module(f"bench.{name}")
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"{name} needs the package {error.name}, which is not installed: run `pip install -e '.[dev]'` in the "
                "root of the checkout"
            ) from error
        return cls(run=module.run, table=module.table, plot=getattr(module, "plot", draw))
