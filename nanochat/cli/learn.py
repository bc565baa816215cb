"""This file holds `nanochat learn`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from nanochat.cli.judging import (
    SET,
    input_seed_option,
    levels_option,
    max_tokens_option,
    overwrite_option,
    progress_bars,
    seed_option,
    temperature_option,
    top_p_option,
)
from nanochat.cli.options import (
    as_json_option,
    backend_option,
    sandbox_option,
    threads_option,
    unpinned_option,
)
from nanochat.cli.output import note, print_json, print_table
from nanochat.errors import InputError
from nanochat.sandbox.layers import Kind

if TYPE_CHECKING:
    from nanochat.experience.library import Library
    from nanochat.experience.writer import Writer
    from nanochat.lm import Model

__all__ = ["learn"]

# What --references has no use for.
_OF_ATTEMPTS = {
    "num_samples": "--samples",
    "batch_size": "--batch",
    "epochs": "--epochs",
    "temperature": "--temperature",
    "top_p": "--top-p",
    "max_tokens": "--max-tokens",
    "seed": "--seed",
    "input_seed": "--input-seed",
    "model": "--model",
}

_EXAMPLES = """
\b
Examples:
  nanochat learn --method examples --problems templates --level 0 --out examples.json
  nanochat learn --model path/to/model --method lessons --out lessons.json
  nanochat learn --method lessons --writer https://api.openai.com/v1 --writer-model gpt-5 --out lessons.json
  nanochat eval nanochat-tiny --problems templates --split held-out --experience examples.json
"""


@click.command(epilog=_EXAMPLES)
@click.option(
    "--model",
    default="nanochat-tiny",
    show_default=True,
    help="Whose attempts are learnt from: any name that `nanochat generate` takes.",
)
@click.option(
    "--method",
    type=click.Choice(["lessons", "examples"]),
    required=True,
    help="Lessons need a writer that follows instructions; examples are functions that the model completed rightly.",
)
@click.option("--problems", default="templates", show_default=True, metavar="SET", help=SET)
@levels_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File of the library, written after each batch; an interrupted run goes on there.",
)
@click.option(
    "--writer",
    metavar="MODEL-OR-URL",
    help="Who writes lessons: a model, or an address as OpenAI's, whose key is in OPENAI_API_KEY.  [default: --model]",
)
@click.option("--writer-model", default="", help="The writer's name at its address.")
@click.option(
    "--references",
    is_flag=True,
    help="Take the problems' own references as examples, and no attempts; the file says so.",
)
@click.option(
    "--samples",
    "num_samples",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Attempts at each problem.",
)
@click.option(
    "--batch",
    "batch_size",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Problems between two merges, and two writings of the file.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How often each problem is tried.",
)
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Most tokens that may stand before a prompt.",
)
@click.option(
    "--most-lessons",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="That one problem may teach.",
)
@temperature_option
@top_p_option
@max_tokens_option
@seed_option
@input_seed_option
@sandbox_option
@overwrite_option
@backend_option
@threads_option
@unpinned_option
@as_json_option
def learn(
    *,
    model: str,
    method: str,
    problems: str,
    levels: Sequence[int],
    out: Path,
    writer: str | None,
    writer_model: str,
    references: bool,
    sandbox: Kind,
    overwrite: bool,
    backend: str,
    threads: int | None,
    unpinned: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Learn from a model's attempts at problems without a change of its weights: what stands before a prompt grows.

    Only problems that are trained on are learnt from, never those that models are measured with. Use what was learnt
    with `nanochat eval --experience`.
    """
    from nanochat.evaluation.completing import Drawing
    from nanochat.experience.attempts import trainable
    from nanochat.experience.learning import Learning, learn, learn_references
    from nanochat.judge.judge import Judge
    from nanochat.lm import Model

    _require_sense(method, writer, writer_model, references=references)
    chosen = trainable(problems, levels=levels)
    drawn = ("num_samples", "temperature", "top_p", "max_tokens", "seed")
    drawing = Drawing(**{name: asked.pop(name) for name in drawn})
    learning = Learning(drawing=drawing, **asked)
    if references:
        if overwrite:
            out.unlink(missing_ok=True)
        library = learn_references(chosen, out, budget=learning.budget)
    else:
        with (
            Model.from_pretrained(
                model, backend=backend, num_threads=threads, unpinned=unpinned
            ) as loaded,
            Judge(sandbox) as judge,
            progress_bars() as progress,
        ):
            writes = (
                _writer(writer, writer_model, loaded, backend, threads, unpinned=unpinned)
                if method == "lessons"
                else None
            )
            # Only when what may be a mistake has been looked at.
            if overwrite:
                out.unlink(missing_ok=True)
            library = learn(loaded, chosen, learning, judge, out, writer=writes, progress=progress)
    _show(library, as_json=as_json)
    note(f"wrote {out}")


def _require_sense(method: str, writer: str | None, writer_model: str, *, references: bool) -> None:
    if method == "examples" and (writer or writer_model):
        raise InputError("--writer and --writer-model are for --method lessons: leave them out")
    if method == "lessons" and references:
        raise InputError("--references is for --method examples: leave it out")
    if references:
        context = click.get_current_context()
        for name, option in _OF_ATTEMPTS.items():
            if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
                raise InputError(
                    f"{option} is for attempts, of which --references makes none: leave one of them out"
                )
    if writer_model and not _is_address(writer):
        raise InputError(
            "--writer-model is a name at an address: pass the address as --writer, or leave it out"
        )


def _is_address(writer: str | None) -> bool:
    return writer is not None and writer.startswith(("http://", "https://"))


def _writer(
    name: str | None,
    writer_model: str,
    model: "Model",
    backend: str,
    threads: int | None,
    *,
    unpinned: bool,
) -> "Writer":
    from nanochat.experience.writer import AddressWriter, ModelWriter
    from nanochat.lm import Model

    if name is None:
        return ModelWriter(model)
    if _is_address(name):
        return AddressWriter(name, writer_model)
    return ModelWriter(
        Model.from_pretrained(name, backend=backend, num_threads=threads, unpinned=unpinned)
    )


def _show(library: "Library", *, as_json: bool) -> None:
    def total(name: str) -> int:
        values = (batch.get(name, 0) for batch in library.batches)
        return sum(value for value in values if isinstance(value, int))

    found: dict[str, object] = {
        "sha256": library.identity,
        "source": library.learnt_from.get("source"),
        "budget": library.budget,
        "lessons": len(library.lessons),
        "examples": len(library.examples),
        **{
            name: total(name)
            for name in ("attempts", "passed", "mixed", "answers", "refused", "failed")
        },
    }
    if as_json:
        print_json(found)
        return
    print_table([*found.items()])
    for lesson in library.lessons:
        note(f"{lesson.id}: {lesson.text}")
