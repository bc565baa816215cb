"""This file holds `nanochat tune`: which of the compiled kernels is the fastest here, measured ahead of their use."""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from nanochat.cli.options import as_json_option, find_config, threads_option
from nanochat.cli.output import note, print_json, print_table, write
from nanochat.errors import BackendError, InputError, counted

if TYPE_CHECKING:
    from nanochat.backends.numba.ops import NumbaOps
    from nanochat.backends.numba.tuning.choices import Choice, Finding, Key
    from nanochat.backends.numba.tuning.tuner import Matrix
    from nanochat.config import ModelConfig

__all__ = ["tune"]

# For each number of tokens.
_SECONDS = 1.0
_EXAMPLES = """\b
Examples:
  nanochat tune small-560m
  nanochat tune path/to/model --tokens 1 --threads 8
  nanochat tune --show
"""


@click.command(epilog=_EXAMPLES)
@click.argument("model", default="nanochat-tiny", metavar="[PRESET-OR-MODEL]")
@click.option(
    "--tokens",
    "numbers",
    type=click.IntRange(min=1),
    multiple=True,
    help="How many tokens go together; repeatable.  [default: one of each class]",
)
@threads_option
@click.option(
    "--show", is_flag=True, help="Print what has been measured before, and measure nothing."
)
@click.option(
    "--clear", is_flag=True, help="Forget what has been measured before, and measure nothing."
)
@as_json_option
def tune(
    model: str,
    *,
    numbers: Sequence[int],
    threads: int | None,
    show: bool,
    clear: bool,
    as_json: bool,
) -> None:
    """Measure which kernels of the CPU are the fastest for a model, and keep the answer for all later runs.

    Large models are measured by themselves when they are first used, but in less time; NANOCHAT_TUNE=off switches
    that, and the use of what is kept, off. Results are the same either way. Weights are not loaded: random numbers take
    their place.
    """
    from nanochat import backends

    if (reason := backends.unavailable("numba")) is not None:
        raise BackendError(f"only the kernels of the numba backend are measured: {reason}")
    if show and clear:
        raise InputError("--show prints what --clear would remove: choose one of them")

    from nanochat.backends.numba.tuning import choices

    if clear:
        count = choices.clear()
        if as_json:
            print_json({"removed": count})
        else:
            note(f"{counted(count, 'file')} removed")
        return
    found = choices.load() if show else _measure(find_config(model), numbers, threads)
    if as_json:
        path = choices.path()
        records = [choices.record(key, finding) for key, finding in found.items()]
        print_json({"file": None if path is None else str(path), "choices": records})
    elif found:
        print_table(list(_rows(found.items())), header=_HEADER)
    else:
        write("nothing has been measured yet\n")


def _measure(
    config: "ModelConfig", numbers: Sequence[int], threads: int | None
) -> "dict[Key, Finding]":
    from nanochat.backends.numba.ops import NumbaOps
    from nanochat.backends.numba.runtime.compilation import end_wait
    from nanochat.backends.numba.tuning.choices import CLASSES
    from nanochat.backends.numba.tuning.tuner import group, is_on

    if not is_on():
        raise InputError("NANOCHAT_TUNE=off: what is measured would not be used; unset it")
    ops = NumbaOps(num_threads=threads)
    tuner, matrices = ops.tuner, _matrices(config, ops)
    found: dict[Key, Finding] = {}
    for tokens in sorted({group(number) for number in numbers}) or CLASSES:
        found |= tuner.measure(matrices, tokens=tokens, seconds=_SECONDS)
    end_wait()
    return found


def _matrices(config: "ModelConfig", ops: "NumbaOps") -> "list[Matrix]":
    """Every matrix that a step multiplies with, laid out as `ops` would, made when it is needed."""
    from nanochat.backends.numba.runtime.lanes import fits_trits
    from nanochat.backends.numba.runtime.memory import WeightMemory
    from nanochat.backends.numba.tuning.choices import Kind, Shape
    from nanochat.backends.numba.tuning.tuner import random_matrix
    from nanochat.shapes import shapes
    from nanochat.weights import named_leaves

    tree = shapes(config)
    memory = WeightMemory()
    numbers = sum(math.prod(s.shape) for _, s in named_leaves(tree) if s.kind == "ternary")
    layout = ops.layout_of(numbers // 4)
    found: list[Matrix] = []
    for name, spec in named_leaves(tree):
        if spec.kind == "dense" or (name == "embedding" and tree.head is not None):
            continue
        rows, columns = spec.shape
        kind: Kind = spec.kind
        if (
            layout != "two_bits"
            and kind == "ternary"
            and fits_trits(columns, spec.activation_block)
        ):
            kind = layout
        shape = Shape(kind, rows, columns, spec.activation_block)
        weight_blocks = columns // spec.weight_block if spec.kind == "ternary" else 1
        make = functools.partial(random_matrix, shape, weight_blocks=weight_blocks, memory=memory)
        found.append((shape, make))
    return found


_HEADER = ("weights", "rows", "columns", "tokens", "threads", "chosen", "GOPS", "next best", "GOPS")


def _rows(found: "Iterable[tuple[Key, Finding]]") -> Iterable[Sequence[object]]:
    for key, finding in found:
        other = finding.next_best
        yield (
            *key.shape[:3],
            f"{key.tokens}" if key.tokens < 4 else f"{key.tokens}+",
            key.threads,
            _label(finding.choice),
            f"{finding.gops:.0f}",
            "" if other is None else _label(other),
            "" if other is None else f"{finding.next_gops:.0f}",
        )


def _label(choice: "Choice") -> str:
    from nanochat.backends.numba.products.linear import AHEAD

    together = f"{choice.variant % AHEAD} together"
    ahead = ", ahead" if choice.variant >= AHEAD else ""
    return f"{choice.isa}, {together}{ahead}{', one thread' if choice.alone else ''}"
